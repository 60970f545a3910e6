"""The command line: `mrm-stream COMMAND`. Flags say what and where; a YAML file says how.

Nothing heavy is imported until a command runs, so that `--help` is instant.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import click

import mrm_stream
from mrm_stream.errors import MrmStreamError

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


class _Commands(click.Group):
    """Commands whose errors are told to the user in full, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except MrmStreamError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(mrm_stream.__version__)
def main() -> None:
    """Pre-train a chest-radiograph encoder by Masked Record Modeling, from data set to weights."""


def _start() -> None:
    from mrm_stream.runtime import set_up_logging

    set_up_logging()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@main.command()
@click.option("--out", type=_DIRECTORY, required=True, help="New directory for the data set.")
@click.option("-n", "count", type=click.IntRange(min=1), required=True, help="Radiographs to make.")
@click.option("--size", type=click.IntRange(min=64), default=1024, show_default=True, help="Short side in pixels.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed, other patients.")
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Processes.  [default: one a core]")
def phantom(out: Path, count: int, size: int, seed: int, workers: int | None) -> None:
    """Make synthetic radiographs with reports, labels and masks, laid out as MIMIC-CXR-JPG.

    \b
    mrm-stream phantom --out data/phantom -n 1000
    """
    from mrm_stream.progress import progress
    from mrm_stream.sources.phantom.tree import write_phantom_tree

    _start()
    written = 0
    with progress("phantom", "radiographs") as advance:

        def show(more: int) -> None:
            nonlocal written
            written += more
            advance(written, count, "")

        write_phantom_tree(
            out,
            count,
            seed=seed,
            size=size,
            workers=workers or _cores(),
            progress=show,
        )
    click.echo(f"{count} radiographs with reports, labels and masks: {out}")
    click.echo(f"Next: mrm-stream shard --src mimic --root {out} --out shards/phantom")


@main.command()
@click.option("--src", "source", required=True, help="What lies at --root: mimic, training-csv or covid.")
@click.option("--root", type=_DIRECTORY, required=True, help="The data set's directory.")
@click.option("--out", type=_DIRECTORY, required=True, help="New directory for the shards.")
@click.option(
    "--short-side", type=click.IntRange(min=32), default=1024, show_default=True, help="Pixels; never up-scaled."
)
@click.option("--views", type=click.Choice(["all", "frontal"]), default="all", show_default=True, help="Which to pack.")
@click.option(
    "--vocabulary",
    type=click.IntRange(min=64, max=65_536),
    default=30_000,
    show_default=True,
    help="Tokenizer's size, at most.",
)
@click.option("--tokenizer", type=_FILE, help="Use this tokenizer.json instead of training one.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the order of the records.")
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Processes.  [default: one a core]")
def shard(
    source: str,
    root: Path,
    out: Path,
    short_side: int,
    views: Literal["all", "frontal"],
    vocabulary: int,
    tokenizer: Path | None,
    seed: int,
    workers: int | None,
) -> None:
    """Pack radiographs and reports into tar shards.

    \b
    mrm-stream shard --src mimic --root /data/mimic-cxr-jpg --out shards/mimic
    """
    from mrm_stream.packing.pack import PackOptions, Progress, pack
    from mrm_stream.progress import progress

    _start()
    options = PackOptions(short_side=short_side, seed=seed, vocabulary=vocabulary, tokenizer=tokenizer, views=views)
    with progress("packing", "records") as advance:

        def show(state: Progress) -> None:
            sizes = f"{state.bytes_in / 1e6:.0f} MB in, {state.bytes_out / 1e6:.0f} MB out"
            advance(state.records, state.total, f"{sizes}, {state.bad} bad")

        manifest = pack(source, root, out, options=options, workers=workers or _cores(), progress=show)
    splits = ", ".join(f"{manifest.samples(split)} {split}" for split in manifest.splits)
    click.echo(f"{splits} samples, a vocabulary of {manifest.vocabulary}: {out}")
    if manifest.quarantined:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.quarantined.items())
        click.echo(f"Left out: {reasons}; each is named in {out / 'quarantine.jsonl'}")
    click.echo(f"Next: mrm-stream train --config configs/mrm_vit_b16.yaml --shards {out} --out runs/first")


@main.command()
@click.option("--config", type=_FILE, required=True, help="YAML file of settings.")
@click.option("--shards", help="Packed data set; the same as --set data.shards=DIR.")
@click.option("--out", help="Directory of the run; the same as --set run.out=DIR.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable.")
@click.option("--ranks", type=click.IntRange(min=1), default=None, help="Processes.  [default: one a GPU, else 1]")
def train(config: Path, shards: str | None, out: str | None, overrides: tuple[str, ...], ranks: int | None) -> None:
    """Pre-train on this machine, or continue: the short way to `deepspeed mrm_stream/train.py`.

    \b
    mrm-stream train --config configs/mrm_vit_b16.yaml --shards shards/mimic --out runs/first
    """
    from mrm_stream.training.launch import launch

    _start()
    where = launch(config, shards=shards, out=out, overrides=overrides, ranks=ranks)
    click.echo(f"The encoder: {where / 'encoder.safetensors'}; losses: {where / 'metrics.jsonl'}, tensorboard/")
    click.echo(f"Next: mrm-stream reconstruct --run {where} --out {where / 'restored.png'}")


@main.command()
@click.option("--run", type=_DIRECTORY, required=True, help="Directory of a run; its newest checkpoint is used.")
@click.option("--out", type=_FILE, required=True, help="PNG to write; the run's curves go beside it, as *-curves.png.")
@click.option("--shards", type=_DIRECTORY, help="Packed data set.  [default: the run's own]")
@click.option("--split", type=click.Choice(["train", "validate", "test"]), help="[default: validate, else train]")
@click.option(
    "-n", "count", type=click.IntRange(min=1, max=64), default=4, show_default=True, help="Samples to restore."
)
def reconstruct(run: Path, out: Path, shards: Path | None, split: str | None, count: int) -> None:
    """Draw what a run restores: masked radiograph, restoration, truth, and the report's hidden words.

    The picture shows radiographs and reports: treat it as you treat the data set.

    \b
    mrm-stream reconstruct --run runs/first --out restored.png
    """
    from mrm_stream.visual.figures import check_place, curves_figure, restoration_figure, save_figure
    from mrm_stream.visual.restorations import restore_samples

    _start()
    check_place(out)
    samples = restore_samples(run, shards, split, count)
    curves = out.with_name(f"{out.stem}-curves.png")
    save_figure(curves_figure(run), curves)
    save_figure(restoration_figure(samples), out)
    hidden = [word for sample in samples for word in sample.words if word.restored is not None]
    right = sum(word.restored == word.truth for word in hidden)
    click.echo(f"{out}: {len(samples)} radiographs; {right} of {len(hidden)} hidden words restored rightly")
    click.echo(f"{curves}: the run's losses")


@main.command()
@click.option("--run", type=_DIRECTORY, required=True, help="Directory of a run; its newest checkpoint is used.")
@click.option("--out", type=_FILE, required=True, help="File to write.")
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

    The reference form holds the report decoder, which may know training reports by heart.

    \b
    mrm-stream export --run runs/first --out first.pth --as reference
    """
    from mrm_stream.config_file import dump_config
    from mrm_stream.model.weights import export_encoder, save_reference
    from mrm_stream.training.loop import load_run

    _start()
    config, checkpoint, model = load_run(run)
    if form == "encoder":
        export_encoder(model, out, {"config": dump_config(config)})
    else:
        save_reference(model, out)
    click.echo(f"{out}: the {form} of step {checkpoint.state['step']}")


if __name__ == "__main__":
    main()
