"""The order of the stages, and that the base install needs nothing of the training stack."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import wetread

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "timm", "mlflow", "ray", "pandas", "onnx", "optuna", "nncf", "s3fs", "authlib")
# Training, what runs when it is imported, what only Alembic or Triton can run, and what needs the extra `s3`.
LEFT_OUT = tuple(
    f"wetread.{name}"
    for name in ("train", "cluster", "__main__", "clinic.migrations", "clinic.bucket", "infer.triton_model")
)


def served_modules():
    """Every module that the base install must be able to import."""
    found = pkgutil.walk_packages(wetread.__path__, "wetread.", onerror=lambda name: None)
    return [module.name for module in found if not module.name.startswith(LEFT_OUT)]


def python(code, *arguments):
    """Run `code` in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=240)


def test_every_module_that_serves_imports_where_the_training_stack_is_missing():
    code = (
        f"import sys, importlib\nfor name in {HEAVY!r}: sys.modules[name] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)"
    )
    result = python(code, *served_modules())
    assert result.returncode == 0, result.stderr


def test_no_module_that_serves_imports_the_training_stack_where_it_is_there():
    code = (
        "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
        f"assert not (found := set({HEAVY!r}) & set(sys.modules)), found"
    )
    result = python(code, *served_modules())
    assert result.returncode == 0, result.stderr


def test_the_list_of_modules_is_not_empty_and_leaves_training_out():
    names = served_modules()
    assert {"wetread.cli", "wetread.config", "wetread.radiograph.read"} <= set(names)
    assert not [name for name in names if "train" in name.split(".")]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_command_line_answers_without_importing_numpy(arguments):
    code = (
        "import sys\nfrom wetread.cli import main\n"
        "sys.argv[0] = 'wetread'\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'numpy' not in sys.modules and 'fastapi' not in sys.modules"
    )
    result = python(code, *arguments)
    assert result.returncode == 0, result.stderr
    assert "wetread" in result.stdout


def test_importing_draws_no_random_number_and_starts_no_thread():
    code = (
        "import importlib, sys, threading\n"
        "import numpy as np\n"
        "before = np.random.get_state()[1].tobytes()\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "assert before == np.random.get_state()[1].tobytes(), 'global random state changed'\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    result = python(code, *served_modules())
    assert result.returncode == 0, result.stderr


def test_the_stages_import_only_what_stands_above_them():
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
