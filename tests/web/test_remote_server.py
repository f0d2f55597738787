"""Two servers, one asking the other, which is killed in the middle: every study is analysed, and rightly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
import tiny_package
from served import served
from starlette.testclient import TestClient

from wetread.clinic import access
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ModelError
from wetread.infer import bench
from wetread.radiograph import phantom

pytestmark = pytest.mark.system
PATIENCE_S = 60


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition; a test that waits longer than a minute has failed."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class Far:
    """A `wetread serve` process with a token, which can be killed and started again on its port."""

    def __init__(self, folder: Path, package: Path) -> None:
        self.folder, self.port = folder, 0
        self.environment = os.environ | {"WETREAD_MODELS": str(package), "WETREAD_RUNTIME": "onnxruntime"}
        database = Store.open(folder / "data")
        self.token = access.create(database, "clinic", "service", "default")
        database.close()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "wetread",
            "serve",
            "--data",
            str(self.folder / "data"),
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self.environment, cwd=self.folder
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = httpx.URL(line.strip()).port or 0
        until(lambda: self.get("/v2/health/ready") == 200)

    def get(self, path: str) -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{path}").status_code
        except httpx.HTTPError:
            return 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    package = tiny_package.write(tmp_path / "near" / "models" / "tiny").path
    server = Far(tmp_path, package)
    server.start()
    yield server
    if server.process.poll() is None:
        server.kill()


def film(number: int, chest: np.ndarray) -> bytes:
    noise = np.random.default_rng(number).integers(-9, 10, chest.shape)
    return cv2.imencode(".png", np.clip(chest + noise, 0, 255).astype(np.uint8))[1].tobytes()


def number_of(text: str, line: str) -> float:
    return sum(float(found.rpartition(" ")[2]) for found in text.splitlines() if found.startswith(line))


def test_no_study_is_lost_or_wrong_when_the_remote_is_killed(far: Far, tmp_path: Path) -> None:
    app = served(
        tmp_path / "near",
        f"v2+http://127.0.0.1:{far.port}/tiny",
        remote_token=far.token,
        remote_timeout_s=5,
        remote_pause_s=0.5,
        remote_failures=2,
    )
    chest = phantom.make(0, size=128).radiograph.pixels.astype(np.int16)
    films = [film(number, chest) for number in range(40)]
    with TestClient(app, base_url="http://127.0.0.1") as http:
        clinic = app.state.clinic
        http.headers["Authorization"] = f"Bearer {access.create(clinic.database, 'me', 'administrator', 'default')}"

        def send(content: bytes, name: str) -> str:
            answer = http.post("/api/v1/studies", files=[("files", (name, content))])
            assert answer.status_code == 201, answer.text
            return answer.json()["studies"][0]["study"]

        def study(key: str) -> dict:
            return http.get(f"/api/v1/studies/{key}").json()

        def metrics() -> str:
            return http.get("/metrics").text

        remote = next(iter(clinic.models.values())).predictor.remote
        keys = [send(content, f"{n}.png") for n, content in enumerate(films[:10])]
        until(lambda: all(study(key)["status"] == "analysed" for key in keys))
        assert remote.breaker.state == "closed"
        assert number_of(metrics(), 'wetread_remote_total{model="tiny",outcome="remote"}') > 0
        assert number_of(metrics(), 'wetread_remote_total{model="tiny",outcome="local"}') == 0

        keys += [send(content, f"{n}.png") for n, content in enumerate(films[10:20], 10)]
        far.kill()
        keys += [send(content, f"{n}.png") for n, content in enumerate(films[20:], 20)]
        until(lambda: all(study(key)["status"] == "analysed" for key in keys))
        until(lambda: remote.breaker.state == "open")
        state = clinic.ai("default")
        assert (state.on, state.models[0].state) == (True, "local")
        assert "does not answer" in state.banner
        assert "no answer" in state.models[0].reason
        assert number_of(metrics(), 'wetread_remote_breaker{model="tiny"}') > 0
        assert number_of(metrics(), 'wetread_remote_total{model="tiny",outcome="local"}') > 0
        assert number_of(metrics(), 'wetread_model_serving{model="tiny"}') == 1

        package = next(iter(clinic.models.values())).predictor.package
        for key, content in zip(keys, films, strict=True):
            (image,) = study(key)["images"]
            found = image["results"][0]["findings"]
            seen = package.transform(package.transform.read(content)).array
            wanted = tiny_package.answer(seen[None, None], 2).probability[0]
            np.testing.assert_allclose([finding["probability"] for finding in found], wanted, atol=1e-4)

        far.start()

        def back() -> bool:
            send(film(1000 + len(keys), chest), "later.png")
            keys.append("later")
            return remote.breaker.state == "closed"

        until(back)
        until(lambda: clinic.ai("default").banner is None)


def test_the_speed_of_a_server_is_measured_and_never_that_of_its_stand_in(
    far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "SIDE", 256)
    monkeypatch.setattr(bench, "LEAST", 5)
    settings = Settings.model_validate({"threads": 1, "remote_token": far.token, "remote_timeout_s": PATIENCE_S})
    plan = bench.Conditions(threads=1, seconds=0.01, batch=2, callers=(2,))
    model = f"v2+http://127.0.0.1:{far.port}/tiny"
    found = bench.measure(model, tmp_path / "near", settings, plan)
    assert [each.callers for each in found.concurrency] == [1, 2]
    far.kill()
    with pytest.raises(ModelError, match="tiny: the server did not answer for it throughout: no answer"):
        bench.measure(model, tmp_path / "near", settings, plan)
