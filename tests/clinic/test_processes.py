"""Several processes on one PostgreSQL: jobs done once each, one leader, and a killed one that nobody misses."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
import tiny_package
from peers import free_port
from prometheus_client.parser import text_string_to_metric_families
from ward import SITE, NameReader, Ward, png

from wetread.clinic import access, audit, processes, store, verify
from wetread.clinic.archive import Archive
from wetread.clinic.jobs import Queue
from wetread.clinic.processes import Leader, Presence
from wetread.clinic.store import Store
from wetread.findings import CHEXPERT


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.1)


def test_alone_on_sqlite(ward: Ward) -> None:
    leader = Leader(ward.database, "x")
    assert leader.leads()
    leader.resign()
    presence = Presence(ward.database, "a", "serve", lambda: ["m"])
    with ward.database.write() as connection:
        connection.execute(
            store.process.insert().values(
                id="dead", kind="serve", host="h", pid=1, models=[], started_at=store.now(), seen_at=store.now()
            )
        )
    presence.enter()
    assert presence.others() == []
    assert [(row["kind"], row["models"]) for row in processes.alive(ward.database)] == [("serve", ["m"])]
    presence.beat()
    presence.leave()
    assert processes.alive(ward.database) == []


@pytest.fixture
def database(postgresql: str, request: pytest.FixtureRequest) -> str:
    """A database of one test."""
    name, server = f"t{abs(hash(request.node.name))}", sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    server.dispose()
    return postgresql.rsplit("/", 1)[0] + f"/{name}"


@pytest.mark.system
def test_jobs_are_taken_without_waiting_and_once_each(database: str, tmp_path: Path) -> None:
    ward = Ward(tmp_path, [NameReader()], database)
    other = Store(database)
    for number in range(8):
        ward.take(png(number), "edema.png")
    models = list(ward.models)
    one, two = Queue(ward.database, "one"), Queue(other, "two")
    with ward.database.write() as connection:  # somebody writes for long: events have their order, jobs go on
        store.emit(connection, "x", SITE)
        first, second = one.take(models), two.take(models)
        one.renew()
    assert first is not None
    assert second is not None
    assert first.id != second.id
    with other.write(ordered=False) as holding:
        holding.execute(sa.select(store.job.c.id).where(store.job.c.state == "queued").limit(5).with_for_update())
        third = one.take(models)
        assert third is not None
        assert one.take(models) is None  # what another has in hand is skipped, not waited for
    taken, lock = [first.id, second.id, third.id], threading.Lock()

    def drain(queue: Queue) -> None:
        while job := queue.take(models):
            with lock:
                taken.append(job.id)

    threads = [threading.Thread(target=drain, args=(queue,)) for queue in (one, two, one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 9))
    other.close()
    ward.database.close()


@pytest.mark.system
def test_one_leads_until_it_is_gone(database: str) -> None:
    one, two = Store(database), Store(database)
    first, second = Leader(one, "watch"), Leader(two, "watch")
    assert first.leads()
    assert not second.leads()
    other = Leader(two, "upkeep")
    assert other.leads()
    other.resign()
    assert first.leads()
    with two.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:  # it loses its connection
        assert first._connection is not None
        backend = first._connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        connection.execute(sa.select(sa.func.pg_terminate_backend(backend)))
    wait_for(second.leads)
    assert not first.leads()
    second.resign()
    wait_for(first.leads)
    first.resign()
    one.close()
    two.close()


@pytest.mark.system
def test_a_start_takes_back_only_what_the_dead_left(database: str, tmp_path: Path) -> None:
    ward = Ward(tmp_path, [NameReader()], database)
    ward.take(png(0), "a.png")
    ward.take(png(1), "b.png")
    models = list(ward.models)
    assert Queue(ward.database, "alive").take(models) is not None
    assert Queue(ward.database, "dead").take(models) is not None
    sleeper = subprocess.Popen(["sleep", "600"])
    gone = subprocess.Popen(["true"])
    gone.wait()
    with ward.database.write() as connection:
        for name, pid in (("alive", sleeper.pid), ("dead", gone.pid)):
            connection.execute(
                store.process.insert().values(
                    id=name, kind="serve", host=os.uname().nodename, pid=pid, models=[], started_at=store.now(),
                    seen_at=store.now(),
                )
            )  # fmt: skip
    try:
        presence = Presence(ward.database, "new", "serve", lambda: models)
        presence.enter()
        others = [row["id"] for row in presence.others()]
        assert others == ["alive"]
        assert Queue(ward.database, "new").take_back(others) == 1
        with ward.database.read() as connection:
            rows = connection.execute(sa.select(store.job.c.worker, store.job.c.state)).all()
        assert sorted(map(tuple, rows)) == [("alive", "running"), ("dead", "queued")]
    finally:
        sleeper.kill()
        sleeper.wait()
        ward.database.close()


class Process:
    """A `wetread serve` or `wetread work` process."""

    def __init__(self, kind: str, data: Path, **settings: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")} | settings
        command = [sys.executable, "-m", "wetread", kind, "--data", str(data), *(["--port", "0"] * (kind == "serve"))]
        with (data.parent / f"{kind}.log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=data.parent, text=True
            )

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def counted(port: int) -> float:
    """Return how many analyses a process tells Prometheus of."""
    families = text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
    return sum(s.value for one in families for s in one.samples if s.name == "wetread_analyses_total")


@pytest.mark.system
def test_two_servers_and_a_worker_of_which_one_is_killed(
    database: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every image that was acknowledged has exactly one result, whoever took it in and whoever was killed."""
    model = tiny_package.write(tmp_path_factory.mktemp("model") / "tiny", CHEXPERT).path
    data, watched, images = tmp_path / "clinic", tmp_path / "watched", []
    settings = {
        "WETREAD_DATABASE": database, "WETREAD_MODELS": str(model), "WETREAD_THREADS": "1",
        "WETREAD_WATCH": str(watched),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        serves = [Process("serve", data, **settings) for _ in range(2)]
        port = free_port()
        worker = Process("work", data, **settings, WETREAD_METRICS_PORT=str(port))
        for each in (*serves, worker):
            stack.callback(each.stop)
        addresses = [each.said().split("/login")[0] for each in serves]
        assert "working: " in worker.said()
        base = Store(database)
        stack.callback(base.close)
        secret = access.create(base, "test", "service", SITE)
        assert sorted(row["kind"] for row in processes.alive(base)) == ["serve", "serve", "work"]
        clients = [
            stack.enter_context(httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}, timeout=60))
            for url in addresses
        ]

        def send(number: int, to: int) -> None:
            with contextlib.suppress(httpx.HTTPError):
                answer = clients[to].post("/api/v1/studies", files=[("files", (f"{number}.png", png(number, 200)))])
                if answer.status_code == 201:
                    images.extend(image["image"] for image in answer.json()["images"])

        for number in range(12):
            send(number, number % 2)
        (watched / "incoming" / "w.png").write_bytes(png(900, 200))
        killed = serves[0].process
        killed.kill()
        killed.wait()
        for number in range(12, 24):
            send(number, 1)
        assert len(images) == 24
        wait_for(lambda: (watched / "done" / "w.png").exists())

        def open_jobs() -> int:
            with base.read() as connection:
                found = sa.select(sa.func.count()).where(store.job.c.state != "done")
                return int(connection.execute(found).scalar_one())

        wait_for(lambda: open_jobs() == 0)
        with base.read() as connection:
            results = connection.execute(sa.select(store.image_result.c.instance, store.image_result.c.code)).all()
            workers = set(connection.execute(sa.select(store.job.c.worker)).scalars())
        assert len(results) == len({row.instance for row in results}) == 25
        assert set(images) < {row.instance for row in results}
        assert not any(row.code == "MODEL_FAILED" for row in results)
        assert len(workers) >= 2
        (one,) = (row["id"] for row in processes.alive(base) if row["kind"] == "work")
        with base.read() as connection:
            mine = connection.execute(sa.select(sa.func.count()).where(store.job.c.worker == one)).scalar_one()
        wait_for(lambda: counted(port) == mine)
        assert audit.verify(base) is None
        assert [each.stop() for each in (serves[1], worker)] == [0, 0]
        assert verify.verify(base, Archive(data / "archive"), grace_s=0.0).whole
    assert "Traceback" not in (tmp_path / "serve.log").read_text() + (tmp_path / "work.log").read_text()
