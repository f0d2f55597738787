"""The build of the front end: from a distribution without npm, and with one line when npm fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DIST = Path("src/wetread/web/static/dist")
NO_REGISTRY = {"npm_config_registry": "http://127.0.0.1:9", "npm_config_fetch_retries": "0"}

pytestmark = pytest.mark.system


def copy(target, *, built):
    """Copy the tracked files, and the built front end when wanted."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if name.startswith(("src/", "frontend/", "hatch_build.py", "pyproject.toml", "README.md", "LICENSE")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    if built:
        shutil.copytree(ROOT / DIST, target / DIST)
        (target / DIST / "sources.sha256").write_text(digest(target))  # as if it were built of these sources
    return target


def wheel(tree, out):
    """Build a wheel where npm's registry cannot be reached."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", out, tree]
    environment = os.environ | NO_REGISTRY | {"npm_config_cache": str(out / "cache")}
    return subprocess.run(build, capture_output=True, text=True, timeout=280, env=environment, check=False)


def test_a_tree_that_is_built_needs_no_registry(tmp_path):
    done = wheel(copy(tmp_path / "tree", built=True), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("wetread-*.whl"))


def test_without_a_registry_the_build_says_so_in_one_line(tmp_path):
    done = wheel(copy(tmp_path / "tree", built=False), tmp_path)
    assert done.returncode != 0
    told = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "wetread front end" in line]
    assert told
    assert "npm registry must be reachable" in told[0]
    assert "ECONNREFUSED" in told[0]


def test_a_change_of_a_source_is_a_change_of_the_digest(tmp_path):
    tree = copy(tmp_path / "tree", built=False)
    before = digest(tree)
    assert before == digest(tree)
    (tree / "frontend/node_modules").mkdir()
    (tree / "frontend/node_modules/x.ts").write_text("x")
    assert digest(tree) == before
    source = tree / "frontend/src/page.ts"
    source.write_text(source.read_text() + "\n")
    changed = digest(tree)
    assert changed != before
    source.rename(source.with_name("paged.ts"))
    assert digest(tree) not in (before, changed)


def digest(tree):
    ask = "import hatch_build, pathlib; print(hatch_build.digest(pathlib.Path('frontend')))"
    code = f"import sys, types\n{STUB}\n{ask}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True, text=True)
    return done.stdout.strip()


# hatchling is there while a build runs, not in every environment of the tests; its base class is all that is imported.
STUB = """
name = "hatchling.builders.hooks.plugin.interface"
for i in range(1, 6):
    sys.modules[".".join(name.split(".")[:i])] = types.ModuleType(name)
generic = {"__class_getitem__": classmethod(lambda cls, item: cls)}
sys.modules[name].BuildHookInterface = type("BuildHookInterface", (), generic)
sys.path.insert(0, ".")
"""
