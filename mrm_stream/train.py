"""Pre-train: the script that `deepspeed`, `torchrun` and `srun` start, once for each rank.

deepspeed mrm_stream/train.py --config configs/mrm_vit_b16.yaml --shards DIR --out DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

# Started as a script, Python puts this file's own folder first, where `records.py` and `stream/` would hide others.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import click

from mrm_stream.config.file import load_config, with_paths
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.distributed.orphan import end_with_launcher
from mrm_stream.errors import MrmStreamError
from mrm_stream.storage.access import naming_files


@click.command()
@click.option("--config", type=click.Path(path_type=Path), required=True, help="YAML file of settings.")
@click.option("--shards", help="Packed data set; the same as --set data.shards=DIR.")
@click.option("--out", help="Directory of the run; the same as --set run.out=DIR.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting; the last wins.")
@click.option(
    "--local_rank", "--local-rank", type=int, expose_value=False, hidden=True
)  # DeepSpeed's launcher adds it.
def main(config: Path, shards: str | None, out: str | None, overrides: tuple[str, ...]) -> None:
    """Pre-train an encoder; a run found in the output directory is continued."""
    end_with_launcher()  # Which may be killed while what follows is imported.
    from mrm_stream.distributed.connection import disconnect
    from mrm_stream.distributed.ranks import FirstRankFailedError
    from mrm_stream.distributed.runtime import set_up_logging, start_runtime
    from mrm_stream.tasks.pretrain import Pretraining
    from mrm_stream.training.trainer import train

    try:
        with naming_files():
            settings = with_paths(load_config(PretrainConfig, config, overrides), shards=shards, out=out)
            runtime = start_runtime()
            set_up_logging(quiet=not runtime.is_first)
            train(Pretraining(settings), runtime)
            disconnect()
    except FirstRankFailedError:
        sys.exit(1)
    except MrmStreamError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
