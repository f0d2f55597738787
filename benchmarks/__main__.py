"""List the benchmarks, or run one: `python -m benchmarks [NAME [ARGUMENTS]]`."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path


def described() -> dict[str, str]:
    """Return each benchmark and the first line of its docstring, without running any."""
    files = sorted(file for file in Path(__file__).parent.glob("*.py") if not file.name.startswith("_"))
    return {file.stem: (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n")[0] for file in files}


def main() -> None:
    known = described()
    if len(sys.argv) < 2:
        for name, line in known.items():
            print(f"{name:<14} {line}")
        print("\nmake bench NAME=…, or: python -m benchmarks NAME --help")
    elif sys.argv[1] not in known:
        sys.exit(f"benchmarks: no such benchmark: {sys.argv[1]}; known: {', '.join(known)}")
    else:
        del sys.argv[0]
        runpy.run_module(f"benchmarks.{sys.argv[0]}", run_name="__main__", alter_sys=True)


main()
