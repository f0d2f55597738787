"""The closed loop in one script, at its small size: every step comes out as it was to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.system
@pytest.mark.train
@pytest.mark.timeout(3000)
def test_the_loop_closes(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    if not (ROOT / "runs").is_dir():
        pytest.skip("runs/ is not part of an installed package")
    tools = Path(sys.executable).parent
    environment = os.environ | {"LOOP_SIZE": "small", "WETREAD": str(tools / "wetread"), "PYTHON": sys.executable}
    ran = subprocess.run(
        ["bash", str(ROOT / "runs" / "loop.sh"), str(tmp_path / "loop")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = ran.stdout[-8000:] + ran.stderr[-4000:]
    assert ran.returncode == 0, said
    table = (tmp_path / "loop" / "table.md").read_text(encoding="utf-8")
    assert "**no**" not in table, said
    assert "| drift after the middle | alarm | yes |" in table, said
    assert "| the sabotaged candidate | sabotage: rolled_back | yes |" in table, said
