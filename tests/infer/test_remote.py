"""A model on another server: trusted by its golden outputs, given up in time, never a wrong answer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
import tiny_package

from wetread.config import Settings
from wetread.errors import ConfigError
from wetread.infer import remote as remotes
from wetread.infer import runtime, tensors
from wetread.infer.predict import Predictor
from wetread.infer.remote import Breaker, Remote
from wetread.model.golden import Outputs

SIDE = tiny_package.SIZE


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return tiny_package.write(tmp_path_factory.mktemp("remote") / "tiny")


@pytest.fixture(scope="module")
def engine(package):
    return runtime.load(package.onnx)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Server:
    """A v2 server in this process; `spoil` may change or refuse any answer."""

    def __init__(self, package, engine) -> None:
        self.package, self.engine, self.version = package, engine, package.id
        self.requests: list[httpx.Request] = []
        self.spoil: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
        self.change: Callable[[Outputs], dict[str, np.ndarray]] = lambda outputs: outputs._asdict()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if (answer := self.spoil(request)) is not None:
            return answer
        if request.method == "GET":
            return httpx.Response(200, json={"name": "tiny", "versions": [self.version]})
        _, given = tensors.unpack(request.read(), request.headers.get(tensors.HEADER), "inputs")
        outputs = self.change(self.engine.run(given["pixels"]))
        about = {"model_name": "tiny", "model_version": self.version}
        body, length = tensors.pack(about, "outputs", outputs, outputs)
        return httpx.Response(200, content=body, headers={tensors.HEADER: str(length)})

    def inferences(self) -> int:
        return sum(request.method == "POST" for request in self.requests)


class Here:
    """The local engine, which counts how often it is asked."""

    runtime = "onnxruntime"

    def __init__(self, engine) -> None:
        self.engine, self.calls = engine, 0

    def run(self, pixels):
        self.calls += 1
        return self.engine.run(pixels)


def connect(server: Server, **more) -> tuple[Remote, Here, Clock]:
    here, clock = Here(server.engine), Clock()
    options = {"retries": 0, "failures": 2, "pause_s": 10.0, "timeout_s": 5.0} | more
    url = "https://host.example/prefix/tiny"
    made = Remote(server.package, url, here, transport=httpx.MockTransport(server), **options)
    made.breaker._clock = clock
    return made, here, clock


@pytest.fixture
def server(package, engine) -> Server:
    return Server(package, engine)


def pixels(seed: int = 0, count: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, SIDE, SIDE), dtype=np.uint8)


def right(outputs: Outputs, given: np.ndarray) -> None:
    for got, wanted in zip(outputs, tiny_package.answer(given, 2), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_the_remote_answers_when_it_is_the_same_package(server) -> None:
    made, here, _ = connect(server, token="secret")
    right(made.run(pixels()), pixels())
    assert here.calls == 0
    assert made.runtime == "remote (host.example)"
    assert made.since() == {"remote": 1}
    assert made.since() == {}
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer secret"}
    paths = {request.url.path for request in server.requests}
    assert paths == {"/prefix/v2/models/tiny", f"/prefix/v2/models/tiny/versions/{server.package.id}/infer"}


def test_only_pixels_leave_this_machine(server) -> None:
    made, _, _ = connect(server)
    given = pixels()
    made.run(given)
    request = server.requests[-1]
    message, found = tensors.unpack(request.read(), request.headers[tensors.HEADER], "inputs")
    assert set(message) == {"inputs", "parameters"}
    assert list(found) == ["pixels"]
    np.testing.assert_array_equal(found["pixels"], given)
    assert len(request.content) == int(request.headers[tensors.HEADER]) + given.size


@pytest.mark.parametrize("version", ["f" * 64, "", "1.0", "x"])
def test_another_package_is_never_asked(server, version: str) -> None:
    server.version = version
    made, here, _ = connect(server)
    right(made.run(pixels()), pixels())
    assert server.inferences() == 0
    assert here.calls == 1
    assert made.breaker.state == "open"
    assert "another package" in made.reason


def test_a_server_that_numbers_versions_is_held_to_the_one_that_was_proven(server) -> None:
    server.version = "7"
    made, here, _ = connect(server)
    right(made.run(pixels()), pixels())
    assert here.calls == 0
    server.spoil = lambda request: httpx.Response(404) if "/versions/7/" in request.url.path else None
    server.version = "8"
    right(made.run(pixels()), pixels())
    assert here.calls == 1


def test_a_server_that_does_not_keep_the_golden_outputs_is_not_trusted(server) -> None:
    server.change = lambda outputs: outputs._replace(probability=1 - outputs.probability)._asdict()
    made, here, _ = connect(server)
    right(made.run(pixels()), pixels())
    assert here.calls == 1
    assert server.inferences() == 1, "the golden radiographs, and nothing of a patient"
    assert "golden check failed" in made.reason


def drop(name: str) -> Callable[[Outputs], dict[str, np.ndarray]]:
    return lambda outputs: {key: value for key, value in outputs._asdict().items() if key != name}


def nan(outputs: Outputs) -> dict[str, np.ndarray]:
    outputs.probability[0, 0] = np.nan
    return outputs._asdict()


@pytest.mark.parametrize(
    "change",
    [
        drop("familiarity"),
        nan,
        lambda outputs: outputs._replace(probability=outputs.probability[:1])._asdict(),
        lambda outputs: outputs._replace(abnormal=outputs.abnormal[None])._asdict(),
        lambda outputs: outputs._asdict() | {"features": outputs.features > 0},
    ],
)
def test_an_answer_of_another_form_is_not_taken(server, change) -> None:
    made, here, _ = connect(server)
    server.change = change
    right(made.run(pixels()), pixels())
    assert here.calls == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500),
        httpx.Response(503, json={"error": "busy"}),
        httpx.Response(301, headers={"Location": "https://elsewhere.example/"}),
        httpx.Response(200, content=b""),
        httpx.Response(200, content=b"\x00" * 100, headers={tensors.HEADER: "50"}),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"model_version": "other", "outputs": []}),
    ],
    ids=lambda answer: f"{answer.status_code} {answer.content[:10]!r}",
)
def test_whatever_it_answers_this_machine_answers_instead(server, answer) -> None:
    made, here, _ = connect(server)
    server.spoil = lambda request: httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)
    right(made.run(pixels()), pixels())
    assert here.calls == 1


def test_tries_are_bounded(server) -> None:
    made, here, _ = connect(server, retries=2)
    before = server.inferences()
    broken = iter([httpx.Response(500), httpx.Response(502)])
    server.spoil = lambda request: next(broken, None)
    right(made.run(pixels()), pixels())
    assert (server.inferences() - before, here.calls) == (3, 0)
    server.spoil = lambda request: httpx.Response(500)
    made.run(pixels())
    assert (server.inferences() - before, here.calls) == (6, 1)


def test_the_breaker_opens_tries_again_and_proves_before_it_closes(server) -> None:
    made, here, clock = connect(server)
    server.spoil = lambda request: httpx.Response(500)
    made.run(pixels())
    assert made.breaker.state == "closed"
    made.run(pixels())
    assert made.breaker.state == "open"
    asked = len(server.requests)
    for _ in range(5):
        made.run(pixels())
    assert len(server.requests) == asked, "an open breaker asks nobody"
    assert here.calls == 7
    assert made.runtime == "onnxruntime"
    clock.now = 10.0
    made.run(pixels())
    assert (len(server.requests), made.breaker.state) == (asked + 1, "open"), "one trial, which failed"
    clock.now = 20.0
    server.spoil = lambda request: None
    server.change = lambda outputs: outputs._replace(probability=1 - outputs.probability)._asdict()
    right(made.run(pixels()), pixels())
    assert made.breaker.state == "open", "it came back as something else"
    clock.now = 30.0
    server.change = lambda outputs: outputs._asdict()
    right(made.run(pixels()), pixels())
    assert (made.breaker.state, made.reason) == ("closed", "")
    counts = made.since()
    assert (counts["remote"], counts["local"], counts["opened"]) == (1, 9, 3)


def test_half_open_lets_one_try() -> None:
    clock = Clock()
    breaker = Breaker(1, 5.0, clock)
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    clock.now = 5.0
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: breaker.allows(), range(50))) == 1
    breaker.failed()
    assert breaker.state == "open"
    clock.now = 9.9
    assert not breaker.allows()
    clock.now = 10.0
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.allows()


class Dripping(BaseHTTPRequestHandler):
    """Answers a byte now and then, for ever."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        try:
            while not self.server.over.wait(0.02):  # type: ignore[attr-defined]
                self.wfile.write(b" ")
        except OSError:
            pass

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def slow() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    server.over = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/tiny"
    server.over.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_that_drips_or_is_silent_is_given_up_in_time(package, engine, slow: str) -> None:
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    for url in (slow, f"http://127.0.0.1:{silent.getsockname()[1]}/tiny"):
        made = Remote(package, url, engine, timeout_s=0.3)  # would never end without a limit
        assert made.breaker.state == "open"
        assert "no answer" in made.reason
        right(made.run(pixels()), pixels())
        made.close()
    silent.close()


def test_a_predictor_asks_the_server_of_its_name(package, engine, monkeypatch) -> None:
    server = Server(package, engine)
    client = httpx.Client
    monkeypatch.setattr(
        remotes.httpx, "Client", lambda **more: client(**more | {"transport": httpx.MockTransport(server)})
    )
    monkeypatch.chdir(package.path.parent)
    settings = Settings(runtime="onnxruntime", remote_token="t")
    with Predictor.open("v2+http://other.example:8080/tiny", settings) as predictor:
        given = pixels(count=5)
        right(predictor.infer(given), given)
        assert predictor.remote is not None
        assert predictor.runtime == "remote (other.example)"
        assert server.inferences() > 1
    with Predictor.open(package.path, settings) as predictor:
        assert predictor.remote is None


@pytest.mark.parametrize(
    "url",
    [
        "v2+ftp://host/m",
        "v2+https://host",
        "v2+https://host/",
        "v2+https:///m",
        "v2+https://a:b@host/m",
        "v2+https://h/m?x=1",
    ],
)
def test_an_address_that_is_none_says_how_it_should_look(url: str) -> None:
    with pytest.raises(ConfigError, match=r"give v2\+https://host") as caught:
        Predictor.open(url)
    assert "a:b" not in str(caught.value)


def test_the_token_is_not_shown(package) -> None:
    settings = Settings(remote_token="hush-hush")
    assert "hush" not in repr(settings)
    assert json.loads(settings.model_dump_json())["remote_token"]


def test_what_triton_gives_as_a_column_is_taken_as_one_number_an_image(server) -> None:
    server.change = lambda o: o._asdict() | {"abnormal": o.abnormal[:, None], "familiarity": o.familiarity[:, None]}
    made, here, _ = connect(server)
    right(made.run(pixels()), pixels())
    assert here.calls == 0
