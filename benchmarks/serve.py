"""Measure `wetread serve`: uploads to analysis with concurrent users, the worklist of a large department, memory.

A real server process over its own HTTP interface. Each upload is another file of 1024 px, and counts from the first
byte sent to the answer that carries the analysis. The worklist is filled beforehand with so many unread studies.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks._models import films, random_package
from wetread.clinic import access, priority, store
from wetread.clinic.priority import Priority
from wetread.clinic.store import Store

SITE = "default"


def fill(database: Store, count: int) -> None:
    """Insert unread studies of all classes."""
    rng, now = np.random.default_rng(0), store.now()
    classes = rng.choice(list(Priority), count, p=[0.03, 0.17, 0.8])
    with database.write() as connection:
        store.ensure_site(connection, SITE)
        for start in range(0, count, 1000):
            rows = []
            for number in range(start, min(start + 1000, count)):
                cls = Priority(classes[number])
                rows.append(
                    {
                        "id": store.new_id(), "site": SITE, "study_uid": f"1.{number}", "patient_id": f"P{number}",
                        "patient_name": f"Phantom, {number}", "sex": "F", "age_years": 50.0, "views": "PA", "images": 1,
                        "cautions": [], "received_at": now - timedelta(seconds=int(rng.integers(0, 10**6))),
                        "analysis": "analysed", "reading": "unread", "floor": "routine", "priority": str(cls),
                        "reason": "Edema likely (x 1)", "overdue": False, "overdue_at": now + timedelta(days=9),
                        "rank": priority.rank(cls, False),
                    }
                )  # fmt: skip
            connection.execute(store.study.insert(), rows)


def anonymous_mib(pid: int) -> float:
    """Return the anonymous memory of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def processor_s(pid: int) -> float:
    """Return the processor time that a process and its children have used, in s: other load disturbs it less."""
    process = psutil.Process(pid)
    used = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(times.user + times.system for times in used)


def percentiles(seconds: list[float]) -> str:
    p50, p95 = 1000 * np.percentile(seconds, [50, 95])
    return f"{p50:.0f} | {p95:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="package: name or path; by default a MobileNetV2 with random weights")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--studies", type=int, default=100_000, help="unread studies in the list")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "clinic"
        model = chosen.model or str(random_package(Path(folder) / "model" / "m", "mobilenetv2_100").path)
        jpeg, _ = films(Path(folder) / "films")
        pictures = [file.read_bytes() for file in jpeg]
        database = Store.open(data)
        secret = access.create(database, "benchmark", "administrator", SITE)
        environment = os.environ | {"WETREAD_MODELS": model}
        with subprocess.Popen(
            [sys.executable, "-m", "wetread", "serve", "--data", str(data), "--port", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True, cwd=folder,
        ) as server:  # fmt: skip
            assert server.stdout is not None
            base = server.stdout.readline().split("/login")[0]
            headers = {"Authorization": f"Bearer {secret}"}
            numbers = itertools.count()
            print(f"load before {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, model {Path(model).name}")
            print("| case | p50 ms | p95 ms | per s | CPU ms each |\n|---|---|---|---|---|")

            def upload(client: httpx.Client, wait: float) -> str:
                number = next(numbers)
                content = pictures[number % len(pictures)] + number.to_bytes(8, "big")
                files = {"files": (f"{number}.jpg", content)}
                answer = client.post("/api/v1/studies", files=files, params={"wait": wait})
                assert answer.status_code == 201, answer.text
                return str(answer.json()["studies"][0]["status"])

            def users(count: int, wait: float) -> None:
                times: list[float] = []
                statuses: set[str] = set()
                before, stop = processor_s(server.pid), time.perf_counter() + chosen.seconds

                def user() -> None:
                    with httpx.Client(base_url=base, headers=headers, timeout=60, trust_env=False) as client:
                        while (begun := time.perf_counter()) < stop:
                            statuses.add(upload(client, wait))
                            times.append(time.perf_counter() - begun)

                threads = [threading.Thread(target=user) for _ in range(count)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                what = "upload to analysis" if wait else "upload to safe on disk"
                print(
                    f"| {what}, {count} users ({', '.join(sorted(statuses))}) "
                    f"| {percentiles(times)} | {len(times) / chosen.seconds:.1f} "
                    f"| {1000 * (processor_s(server.pid) - before) / len(times):.1f} |"
                )

            with httpx.Client(base_url=base, headers=headers, timeout=60, trust_env=False) as client:
                for _ in range(5):
                    upload(client, 30)
                for count in chosen.clients:
                    users(count, 30)
                users(chosen.clients[-1], 0)
                fill(database, chosen.studies)
                times = []
                for _ in range(100):
                    begun = time.perf_counter()
                    client.get("/api/v1/worklist").raise_for_status()
                    times.append(time.perf_counter() - begun)
                print(f"| worklist of {chosen.studies} unread, first page | {percentiles(times)} | | |")
            print(f"\nRssAnon {anonymous_mib(server.pid):.0f} MiB")
            server.terminate()
        database.close()


if __name__ == "__main__":
    main()
