"""The fuzzer itself, for a few seconds: `make fuzz` runs it for an hour."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from wetread.radiograph.read import Limits, read

FUZZ = Path(__file__).parents[2] / "fuzz"
SECONDS = 12


@pytest.mark.system
def test_no_damage_to_a_file_breaks_the_reader(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="needs atheris, which has wheels for Linux on x86-64 only")
    corpus = tmp_path / "corpus"
    subprocess.run([sys.executable, str(FUZZ / "seeds.py"), str(corpus)], check=True, timeout=120)
    seeds = {file.name: read(file, limits=Limits()) for file in corpus.iterdir() if "jpeg-12" not in file.name}
    assert {film.source for film in seeds.values()} == {"phantom", "jpeg", "png", "webp", "tiff"}
    assert len(seeds) >= 30
    command = [sys.executable, str(FUZZ / "read.py"), str(corpus), f"-max_total_time={SECONDS}", "-max_len=6000"]
    command += ["-timeout=60", "-rss_limit_mb=3000", "-print_final_stats=1", f"-artifact_prefix={tmp_path}/"]
    # Linux counts the memory of whoever starts a program as that program's own peak, and this process may have trained
    # a network before: a shell in between starts the count anew.
    command = ["/bin/sh", "-c", '"$@"; exit $?', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not [*tmp_path.glob("crash-*"), *tmp_path.glob("timeout-*"), *tmp_path.glob("oom-*")]
    runs = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    assert runs is not None
    assert int(runs[1]) > len(seeds)
    print(f"{runs[1]} executions in {SECONDS} s, no finding")  # noqa: T201
