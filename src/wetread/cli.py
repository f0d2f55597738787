"""The command line: one command per stage, in the order in which data flows.

Each command imports its stage when it runs, so that `--help` is instant and the base install
never needs an extra that the command does not use.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from wetread import __version__
from wetread.errors import WetreadError

app = typer.Typer(
    name="wetread",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="A first quick look at every chest radiograph, so that the urgent one does not wait. Research use only.",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"wetread {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line: an error on purpose is one line and exit code 2, never a traceback."""
    try:
        app()
    except WetreadError as error:
        typer.echo(f"wetread: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        extra = {
            "torch": "train",
            "timm": "train",
            "mlflow": "train",
            "onnx": "train",
            "optuna": "train",
            "ray": "cluster",
        }
        name = (error.name or "").split(".")[0]
        if name not in extra:
            raise
        typer.echo(f"wetread: {name} is not installed; pip install 'wetread[{extra[name]}]'", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
