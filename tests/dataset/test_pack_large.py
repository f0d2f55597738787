"""Memory of packing a collection of CheXpert's size: flat, far below 1 GiB."""

import subprocess
import sys

import pytest

from wetread.dataset.dataset import Dataset
from wetread.findings import CHEXPERT

IMAGES = 223_414  # the published training images

# Runs in a process of its own; a thread samples the anonymous memory of it and of its workers.
MEASURE = """
import sys, threading, time
from dataclasses import replace
from pathlib import Path
import psutil

def anonymous(process):
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0

def watch(peaks, end):
    me = psutil.Process()
    while not end.is_set():
        total = 0
        for process in (me, *me.children(recursive=True)):
            try:
                total += anonymous(process)
            except (OSError, psutil.NoSuchProcess):
                continue
        peaks.append(total)
        time.sleep(0.05)

if __name__ == "__main__":
    from wetread.dataset import sources, split
    from wetread.dataset.pack import pack
    from wetread.radiograph.pixels import plain

    peaks, end = [0], threading.Event()
    watcher = threading.Thread(target=watch, args=(peaks, end))
    watcher.start()
    collection = sources.collect("chexpert", Path(sys.argv[1]), views="all")
    rows, refused = split.assign(collection.rows, collection.task)
    collection = replace(collection, rows=rows, refused=collection.refused + refused)
    collected = max(peaks)
    pack(collection, Path(sys.argv[2]), transform=plain(8, 8))
    end.set()
    watcher.join()
    print(collected, max(peaks))
"""


@pytest.mark.system
@pytest.mark.timeout(1500)
def test_223414_images_from_zip_batches_stay_below_a_gibibyte_of_anonymous_memory(tmp_path, picture):
    import zipfile

    data = picture(1, 16, 16)
    root = tmp_path / "root"
    root.mkdir()
    labels = "1.0,,0.0,-1.0" + "," * (len(CHEXPERT.findings) - 4)
    lines = [",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT.findings])]
    for batch in range(3):
        numbers = range(batch * IMAGES // 3, (batch + 1) * IMAGES // 3)
        with zipfile.ZipFile(root / f"CheXpert-v1.0 batch {batch + 2} (train {batch + 1}).zip", "w") as archive:
            for number in numbers:
                name = f"patient{number // 3:05d}/study{number % 3 + 1}/view1_frontal.jpg"
                archive.writestr(f"CheXpert-v1.0 batch {batch + 2} (train {batch + 1})/{name}", data)
                lines.append(f"CheXpert-v1.0/train/{name},Female,60,Frontal,PA,{labels}")
    (root / "train.csv").write_text("\n".join(lines))
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    command = [sys.executable, str(script), str(root), str(tmp_path / "out")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    collecting, packing = (int(value) for value in output)
    print(f"RssAnon, with workers: collecting {collecting / 2**20:.0f} MiB, in all {packing / 2**20:.0f} MiB")  # noqa: T201
    dataset = Dataset.open(tmp_path / "out")
    assert len(dataset) == IMAGES
    assert packing < 2**30
