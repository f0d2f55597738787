"""Measure how long a promotion and a roll back take: from the command to the whole list ranked by the other model.

`wetread serve` runs over a folder with unread studies, and more come in all the time. A challenger is in canary for
every study, so that each unread one is ranked by it; then `wetread rollout rollback` is given. After that it is tried
again, promoted, and the roll back given once more: now the champion of before has to analyse anew what came meanwhile.
Counted from before the command starts: when it ended, when no unread study tells the word of the other model any more
(the list is safe: first come, first served where nothing else is known), and when every one is ranked by the right one.
Both packages are the tests' tiny ones: what is measured is everything but the graph. No study may be lost.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny_package  # type: ignore[import-not-found]
from serving import Server  # type: ignore[import-not-found]
from ward import film  # type: ignore[import-not-found]

from wetread.clinic import deployments, store
from wetread.clinic.store import Store
from wetread.improve import policy, rollout

LENIENT = "[staging]\nimages = 10\nphantoms = 2\nmost_flips = 1.0\nleast_rises = 0.0\n[staging.load]\nratio = 1000.0\n"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks rollout", description=__doc__)
    parser.add_argument("--studies", type=int, default=200, help="unread in the list")
    parser.add_argument("--database", default="", help="URL of an empty PostgreSQL database; default: SQLite")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), wanted.studies, wanted.database)


def measure(folder: Path, studies: int, url: str) -> None:
    # Both flag what they see, so that each ranks everything.
    old = tiny_package.write(folder / "old", seed=3, code_version="1")
    new = tiny_package.write(folder / "new", seed=9, code_version="2")
    (folder / "rollout.toml").write_text(LENIENT)
    policy.load(folder / "rollout.toml", rollout.RolloutPolicy)
    environment = {"WETREAD_MODELS": str(old.path), "WETREAD_RUNTIME": "onnxruntime", "WETREAD_DATABASE": url}
    server = Server(folder / "data", **environment)
    database = Store.existing(folder / "data", url)
    sent, stop = [0], threading.Event()

    def send() -> None:
        server.send((f"{sent[0]}.png", film(sent[0])))
        sent[0] += 1

    def keep_sending() -> None:
        while not stop.wait(0.2):
            send()

    def said() -> dict[str | None, int]:
        table = store.study.c
        wanted = sa.select(table.model, sa.func.count()).where(sa.text("reading != 'signed'")).group_by(table.model)
        with database.read() as connection:
            return {model: count for model, count in connection.execute(wanted)}  # noqa: C416

    def all_by(version: str) -> bool:
        return set(said()) == {f"tiny {version}"}

    def command(*words: str) -> None:
        ran = server.wetread("rollout", *words)
        if ran.returncode:
            sys.exit(ran.stderr or ran.stdout)

    def until(true: Callable[[], bool]) -> float:
        while not true():
            time.sleep(0.01)
        return time.monotonic()

    try:
        send()
        command("stage", str(new.path), "--policy", str(folder / "rollout.toml"))
        command("shadow", str(new.path))
        command("canary", "--share", "0.999")
        until(lambda: loaded(server))
        for _ in range(studies):
            send()
        until(lambda: said().get("tiny 2", 0) >= 0.98 * studies)
        print(f"{studies} unread studies, {platform.processor() or platform.machine()}, {os.cpu_count()} processors, "
              f"{database.url.get_backend_name()}")  # fmt: skip
        print(f"{'':<34}{'command':>9}{'safe':>9}{'ranked':>9}")
        sending = threading.Thread(target=keep_sending)
        sending.start()
        for name, words, gone, right in (
            ("roll back a canary", ("rollback", "--reason", "measured"), "2", "1"),
            ("shadow", ("shadow", str(new.path)), "", "1"),
            ("promote", ("promote", "--reason", "measured"), "", "2"),
            ("roll back a champion", ("rollback", "--reason", "measured"), "2", "1"),
        ):
            start = time.monotonic()
            command(*words)
            ended = time.monotonic()
            safe = until(lambda gone=gone: f"tiny {gone}" not in said()) if gone else ended
            ranked = until(lambda right=right: all_by(right))
            print(f"{name:<34}" + "".join(f"{at - start:>7.2f} s" for at in (ended, safe, ranked)), flush=True)
        stop.set()
        sending.join()
        with database.read() as connection:
            kept = connection.execute(sa.select(sa.func.count()).select_from(store.study)).scalar_one()
            changes = len(deployments.history(connection))
        print(f"{kept} studies of {sent[0]} sent are there; {changes} rows tell what was deployed")
    finally:
        stop.set()
        server.stop()
        database.close()


def loaded(server: Server) -> bool:
    """Tell whether the service has every package that is deployed."""
    return all(row["here"] for row in server.http.get("/api/v1/deployments").json()["deployments"])


if __name__ == "__main__":
    main()
