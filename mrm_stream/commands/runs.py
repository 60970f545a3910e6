"""Commands about runs: pre-train, look at what was learnt, take the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrm_stream.commands.common import DIRECTORY, FILE, PATH_OR_URL, check_output, counted, start

if TYPE_CHECKING:
    from mrm_stream.storage.paths import AnyPath


@click.command()
@click.option("--config", type=FILE, required=True, help="YAML file of settings.")
@click.option("--shards", help="Packed data set; the same as --set data.shards=DIR.")
@click.option("--out", help="Directory of the run; the same as --set run.out=DIR.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting; the last wins.")
@click.option("--ranks", type=click.IntRange(min=1), default=None, help="Processes.  [default: one a GPU, else 1]")
def train(config: Path, shards: str | None, out: str | None, overrides: tuple[str, ...], ranks: int | None) -> None:
    """Pre-train on this machine, or continue: the short way to `deepspeed mrm_stream/train.py`.

    \b
    mrm-stream train --config configs/mrm_vit_b16.yaml --shards shards/mimic --out runs/first
    """
    from mrm_stream.errors import command_line
    from mrm_stream.tasks.pretrain_launch import launch_pretraining

    start()
    where = launch_pretraining(config, shards=shards, out=out, overrides=overrides, ranks=ranks)
    click.echo(f"The encoder: {where / 'encoder.safetensors'}; losses: {where / 'metrics.jsonl'}, tensorboard/")
    words = ("reconstruct", "--run", where, "--out", where / "reconstructed.png")
    click.echo(f"Next: {command_line('mrm-stream', *words)}")


@click.command()
@click.option("--run", type=DIRECTORY, required=True, help="Directory of a run; its newest checkpoint is used.")
@click.option("--out", type=FILE, required=True, help="PNG to write; the run's curves go beside it, as *-curves.png.")
@click.option("--shards", type=PATH_OR_URL, help="Packed data set.  [default: the run's own]")
@click.option("--split", type=click.Choice(["train", "validate", "test"]), help="[default: validate, else train]")
@click.option(
    "-n", "count", type=click.IntRange(min=1, max=64), default=4, show_default=True, help="Samples to reconstruct."
)
def reconstruct(run: Path, out: Path, shards: AnyPath | None, split: str | None, count: int) -> None:
    """Draw what a run reconstructs: masked radiograph, reconstruction, truth, and the report's masked words.

    The picture shows radiographs and reports: treat it as you treat the data set.

    \b
    mrm-stream reconstruct --run runs/first --out reconstructed.png
    """
    from mrm_stream.visual.figures import check_picture, curves_figure, reconstruction_figure, save_figure
    from mrm_stream.visual.reconstructions import counted_words, reconstruct_samples

    start()
    check_output(out)
    check_picture(out)
    samples = reconstruct_samples(run, shards, split, count)
    curves = out.with_name(f"{out.stem}-curves.png")
    # All that may be refused comes before the first of the two is written.
    pictures = {curves: curves_figure(run), out: reconstruction_figure(samples)}
    for path, picture in pictures.items():
        save_figure(picture, path)
    right, masked = counted_words(samples)
    drawn = f"{counted(len(samples), 'radiograph')} of the split {samples[0].split}"
    click.echo(f"{out}: {drawn}; {right} of {masked} masked words reconstructed correctly")
    click.echo(f"{curves}: the run's losses")


@click.command()
@click.option("--run", type=DIRECTORY, required=True, help="Directory of a run; its newest checkpoint is used.")
@click.option("--out", type=FILE, required=True, help="File to write.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["encoder", "reference"]),
    default="encoder",
    show_default=True,
    help="The encoder alone, for timm (.safetensors); or all of it in the reference code's naming (.pth).",
)
def export(run: Path, out: Path, form: str) -> None:
    """Save a run's weights for others to use; a complete run has exported its encoder already.

    The reference form holds the report decoder, which may have memorised training reports.

    \b
    mrm-stream export --run runs/first --out first.pth --as reference
    """
    from mrm_stream.config.file import portable_settings
    from mrm_stream.pretrained.encoder import export_encoder
    from mrm_stream.pretrained.reference import save_reference
    from mrm_stream.tasks.pretrain import load_run

    start()
    check_output(out)
    config, checkpoint, model = load_run(run)
    if form == "encoder":
        export_encoder(model, out, {"config": portable_settings(config)})
    else:
        save_reference(model, out)
    click.echo(f"{out}: the {form} of step {checkpoint.state['step']}")
