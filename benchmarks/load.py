"""How many clinics `wetread serve` holds: from a study's last byte to its ranked row, doubling until the knee.

A server process over a folder of its own with the shipped phantom model; see `wetread simulate load`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from wetread.clinic import access
from wetread.clinic.store import Store
from wetread.simulate import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="phantom", help="package: name or path")
    parser.add_argument("--clinics", type=int, default=4, help="at first")
    parser.add_argument("--most", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15, help="for each number of clinics")
    parser.add_argument("--limit", type=float, default=1.0, help="within which 95 %% must be ranked, in s")
    parser.add_argument("--pause", type=float, default=0.0, help="between two studies of a clinic, in s")
    parser.add_argument("--size", type=int, default=1024, help="side of the images, in pixels")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: the temporary folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        data = Path(folder) / "clinic"
        database = Store.open(data)
        secret = access.create(database, "benchmark", "administrator", "default")
        database.close()
        command = [sys.executable, "-m", "wetread", "serve", "--data", str(data), "--port", "0"]
        environment = os.environ | {"WETREAD_MODELS": chosen.model}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True, cwd=folder
        ) as server:
            assert server.stdout is not None
            url = server.stdout.readline().split("/login")[0]
            print(f"load before {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, model {Path(chosen.model).name}")
            try:
                steps = load.run(
                    url, secret, clinics=chosen.clinics, most=chosen.most, seconds=chosen.seconds,
                    limit_s=chosen.limit, pause_s=chosen.pause, size=chosen.size,
                )  # fmt: skip
            finally:
                server.terminate()
        found = load.report(steps, chosen.limit)
        print(f"{load.table(found)}\n\n{json.dumps(found)}")


if __name__ == "__main__":
    main()
