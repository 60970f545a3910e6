"""The command line: `mrm-stream COMMAND`. Flags say what and where; a YAML file says how."""

from __future__ import annotations

from typing import Any

import click

import mrm_stream
from mrm_stream.commands.bench import bench
from mrm_stream.commands.bench_order import bench_order
from mrm_stream.commands.packed import inspect, repair, tokenize, verify
from mrm_stream.commands.phantom import phantom
from mrm_stream.commands.plan import plan
from mrm_stream.commands.runs import export, reconstruct, train
from mrm_stream.commands.shard import shard
from mrm_stream.errors import MrmStreamError
from mrm_stream.storage.access import naming_files


class _Commands(click.Group):
    """Commands whose errors are told to the user in full, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            with naming_files():
                return super().invoke(ctx)
        except MrmStreamError as error:
            raise click.ClickException(str(error)) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which one needs them."""
        return list(self.commands)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(mrm_stream.__version__)
def main() -> None:
    """Pre-train a chest-radiograph encoder by Masked Record Modeling, from data set to weights."""


bench.add_command(bench_order)
for _command in (phantom, shard, verify, inspect, repair, tokenize, train, reconstruct, export, plan, bench):
    main.add_command(_command)


if __name__ == "__main__":
    main()
