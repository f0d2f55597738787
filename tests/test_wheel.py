"""The wheel carries all that the tree has, and what the build adds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.system
def test_the_wheel_carries_every_file_of_the_package_and_the_front_end(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True, timeout=280, cwd=tmp_path)
    [wheel] = tmp_path.glob("wetread-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    listed = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, check=True, capture_output=True, text=True)
    tracked = {line.removeprefix("src/") for line in listed.stdout.splitlines() if not line.endswith(".gitignore")}
    assert tracked - inside == set()
    assert any(name.startswith("wetread/web/static/dist/") and name.endswith(".js") for name in inside)
