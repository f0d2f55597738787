"""Every command of the program, as its own help lists them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from wetread import cli


def _walk(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            if command.invoke_without_command:  # a command of its own, beside those below it
                yield (*path, name), command
            yield from _walk(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(_walk(typer.main.get_command(cli.app)))
"""The words that call a command, sub-commands included, and the command."""
