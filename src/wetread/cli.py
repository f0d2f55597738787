"""The command line: one command per stage, in the order in which data flows.

Each command imports its stage when it runs, so that `--help` is instant and the base install
never needs an extra that the command does not use.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

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


# The extra that brings a module which the base install lacks.
_EXTRAS = {
    "torch": "train",
    "timm": "train",
    "mlflow": "train",
    "onnx": "train",
    "optuna": "train",
    "nncf": "train",
    "ray": "cluster",
    "psycopg": "postgres",
    "s3fs": "s3",
}


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
    """Run the command line: an error is one line and exit code 2, never a traceback."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="wetread", standalone_mode=False))
    except typer.TyperException as error:  # wrong usage
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "wetread"
        _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`")
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in _EXTRAS:
            raise
        _fail(f"{name} is not installed; pip install 'wetread[{_EXTRAS[name]}]'")
    except (WetreadError, OSError) as error:  # on purpose, or the machine's: permission, disk full, port in use
        _fail(str(error))
    except typer.Abort:
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    typer.echo(f"wetread: {' '.join(message.splitlines())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
