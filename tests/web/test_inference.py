"""The Open Inference Protocol v2: as tritonclient speaks it, and as hostile clients do."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import tiny_package
import uvicorn
from served import served
from starlette.testclient import TestClient

from wetread.clinic import access
from wetread.config import Settings
from wetread.infer import tensors
from wetread.model.golden import Outputs

SIDE = tiny_package.SIZE


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("inference")
    settings = {"infer_max_bytes": 2**20, "queue_limit": 16, "batch_size": 4, "threads": 1}
    return served(folder, tiny_package.write(folder / "tiny").path, **settings)


@pytest.fixture(scope="module")
def http(app) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1") as client:
        token = access.create(app.state.clinic.database, "caller", "service", "default")
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 1, SIDE, SIDE), dtype=np.uint8)


def post(http, body: bytes, header: int | str | bytes | None = None, **more):
    headers = {} if header is None else {tensors.HEADER: header if isinstance(header, bytes) else str(header)}
    return http.post("/v2/models/tiny/infer", content=body, headers=headers, **more)


def check(found: dict[str, np.ndarray], pixels: np.ndarray) -> None:
    wanted = tiny_package.answer(pixels, 2)._asdict()
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, wanted[name], atol=1e-4)


@pytest.fixture(scope="module")
def triton(http) -> Iterator[object]:
    """Give NVIDIA's own client, connected to the application over a real socket."""
    client = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]", exc_type=RuntimeError)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(http.app, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    connected = client.InferenceServerClient(f"127.0.0.1:{listener.getsockname()[1]}")
    yield client, connected, {"Authorization": http.headers["Authorization"]}
    connected.close()
    server.should_exit = True
    thread.join()


def test_tritonclient_finds_server_and_model(triton, app) -> None:
    _, client, headers = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", headers=headers)
    assert tensors.BINARY in client.get_server_metadata(headers=headers)["extensions"]
    found = client.get_model_metadata("tiny", headers=headers)
    assert found["versions"] == [next(iter(app.state.clinic.models))]
    assert found["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 1, SIDE, SIDE]}]
    assert [o["name"] for o in found["outputs"]] == list(Outputs._fields)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_infers_by_bytes_and_by_json(triton, binary: bool) -> None:
    module, client, headers = triton
    pixels = images()
    given = module.InferInput("pixels", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels, binary_data=binary)
    for names in (None, list(Outputs._fields), ["maps", "abnormal"]):
        wanted = names and [module.InferRequestedOutput(name, binary_data=binary) for name in names]
        # The client writes into the headers that it is given.
        result = client.infer("tiny", [given], outputs=wanted, headers=dict(headers), request_id="r7")
        assert result.get_response()["id"] == "r7"
        got = [output["name"] for output in result.get_response()["outputs"]]
        assert got == (names or list(Outputs._fields))
        check({name: result.as_numpy(name) for name in got}, pixels)


def test_tritonclient_is_told_what_was_wrong(triton) -> None:
    module, client, headers = triton
    given = module.InferInput("pixels", [1, 1, 8, 8], "UINT8")
    given.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.uint8))
    with pytest.raises(module.InferenceServerException, match="must be UINT8") as caught:
        client.infer("tiny", [given], headers=dict(headers))
    assert caught.value.status() == "400"
    with pytest.raises(module.InferenceServerException, match="no such model"):
        client.infer("other", [given], headers=dict(headers))
    with pytest.raises(module.InferenceServerException, match="not signed in"):
        client.infer("tiny", [given])
    assert not client.is_model_ready("other", headers=headers)


def test_json_lists_may_be_nested_and_outputs_chosen(http) -> None:
    pixels = images(2)
    for data in (pixels.ravel().tolist(), pixels.tolist()):
        entry = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape), "data": data}
        answer = http.post("/v2/models/tiny/infer", json={"inputs": [entry], "outputs": [{"name": "probability"}]})
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["outputs"]
        check({"probability": np.float32(found["data"]).reshape(found["shape"])}, pixels)


def test_many_callers_share_batches_and_get_their_own(http) -> None:
    def ask(seed: int) -> None:
        pixels = np.random.default_rng(seed).integers(0, 256, (1, 1, SIDE, SIDE), dtype=np.uint8)
        body, length = tensors.pack(
            {"parameters": {"binary_data_output": True}}, "inputs", {"pixels": pixels}, ["pixels"]
        )
        answer = post(http, body, length)
        assert answer.status_code == 200, answer.text
        check(tensors.unpack(answer.content, answer.headers[tensors.HEADER], "outputs")[1], pixels)

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))


def tensor(**changes: object) -> dict[str, object]:
    entry: dict[str, object] = {
        "name": "pixels",
        "datatype": "UINT8",
        "shape": [1, 1, SIDE, SIDE],
        "data": [7] * SIDE**2,
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


BAD = {
    "not JSON": (b"{", None),
    "not UTF-8": (b"\xff\xfe{}", None),
    "deep": (b"[" * 100_000, None),
    "a list": (b"[]", None),
    "no inputs": (b"{}", None),
    "inputs no list": (b'{"inputs": {}}', None),
    "a tensor that is none": (b'{"inputs": [3]}', None),
    "header too long": (b"{}", "9"),
    "header no number": (b"{}", "-1"),
    "header of no digits": (b"{}", "²".encode("latin-1")),
    "bytes too many": (json.dumps({"inputs": [tensor()]}).encode() + b"xx", len(json.dumps({"inputs": [tensor()]}))),
}
BAD_TENSORS = {
    "missing name": tensor(name=None),
    "other name": tensor(name="image"),
    "study input of an image model": tensor(name="present", datatype="BOOL", shape=[1], data=[1]),
    "datatype": tensor(datatype="BYTES"),
    "float pixels": tensor(datatype="FP32"),
    "datatype a list": tensor(datatype=["UINT8"]),
    "shape of floats": tensor(shape=[1.0, 1, SIDE, SIDE]),
    "shape of booleans": tensor(shape=[True, True, SIDE, SIDE]),
    "shape negative": tensor(shape=[-1, 1, SIDE, SIDE]),
    "shape huge": tensor(shape=[2**30, 2**30, 2**30, 2**30]),
    "shape of nothing": tensor(shape=[0, 1, SIDE, SIDE], data=[]),
    "other shape": tensor(shape=[1, SIDE, SIDE, 1]),
    "too few values": tensor(data=[1, 2]),
    "ragged": tensor(data=[[1, 2], [3]]),
    "negative value": tensor(data=[-1] * SIDE**2),
    "value too large": tensor(data=[256] * SIDE**2),
    "huge value": tensor(data=[10**40] * SIDE**2),
    "text": tensor(data=["7"] * SIDE**2),
    "fractions": tensor(data=[0.5] * SIDE**2),
    "null": tensor(data=[None] * SIDE**2),
    "no data": tensor(data=None),
    "bytes promised, none there": tensor(data=None, parameters={"binary_data_size": SIDE**2}),
    "bytes negative": tensor(data=None, parameters={"binary_data_size": -1}),
    "bytes no number": tensor(data=None, parameters={"binary_data_size": "1"}),
    "data and bytes": tensor(parameters={"binary_data_size": 1}),
}
BAD_OUTPUTS = [
    [{"name": "other"}],
    [{"name": "maps"}, {"name": "maps"}],
    [3],
    "maps",
    [{"name": "maps", "parameters": {"classification": 2}}],
]


@pytest.mark.parametrize("case", [*BAD, *BAD_TENSORS, *range(len(BAD_OUTPUTS)), "twice"])
def test_what_breaks_the_protocol_is_refused_in_one_line(http, case) -> None:
    if case in BAD:
        answer = post(http, *BAD[case])
    else:
        message: dict[str, object] = {"inputs": [BAD_TENSORS.get(case, tensor())]}
        if isinstance(case, int):
            message["outputs"] = BAD_OUTPUTS[case]
        if case == "twice":
            message["inputs"] = [tensor(), tensor()]
        answer = http.post("/v2/models/tiny/infer", json=message)
    assert answer.status_code == 400, answer.text
    assert "\n" not in answer.json()["error"]
    assert len(answer.json()["error"]) < 400


def test_limits_and_encodings(http) -> None:
    answer = post(http, b" " * (2**20 + 1))
    assert answer.status_code == 413
    assert "1048576" in answer.json()["error"]
    pixels = np.zeros((17, 1, SIDE, SIDE), np.uint8)
    body, length = tensors.pack({}, "inputs", {"pixels": pixels}, ["pixels"])
    assert "1 to 16" in post(http, body, length).json()["error"]
    answer = http.post("/v2/models/tiny/infer", content=b"x", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_versions_are_package_ids(http, app) -> None:
    (key,) = app.state.clinic.models
    assert http.get(f"/v2/models/tiny/versions/{key}").json()["versions"] == [key]
    assert http.get(f"/v2/models/tiny/versions/{key}/ready").json() == {"name": "tiny", "ready": True}
    assert http.get("/v2/models/tiny/versions/1").status_code == 404
    assert http.post("/v2/models/tiny/versions/1/infer", json={"inputs": [tensor()]}).status_code == 404


def test_nothing_is_kept_of_a_request(http, app) -> None:
    assert http.post("/v2/models/tiny/infer", json={"inputs": [tensor()]}).status_code == 200
    assert http.get("/api/v1/worklist").json()["studies"] == []


def test_a_full_queue_says_so(http, app, monkeypatch) -> None:
    from wetread.errors import BusyError, ModelError

    (model,) = app.state.clinic.models.values()
    for error, status in ((BusyError("full"), 503), (ModelError("broken"), 500)):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(model.predictor, "infer", fail)
        answer = http.post("/v2/models/tiny/infer", json={"inputs": [tensor()]})
        assert (answer.status_code, answer.json()) == (status, {"error": str(error)})


def test_a_model_of_studies_takes_both_views_and_which_are_there(tmp_path) -> None:
    import study_package

    package = study_package.write(tmp_path / "pair")
    with TestClient(served(tmp_path / "data", package.path), base_url="http://127.0.0.1") as client:
        token = access.create(client.app.state.clinic.database, "caller", "service", "default")
        client.headers["Authorization"] = f"Bearer {token}"
        path = f"/v2/models/{package.name}"
        inputs = client.get(path).json()["inputs"]
        side = package.transform.size
        assert [i["shape"] for i in inputs] == [[-1, 2, side, side], [-1, 2]]
        pixels = np.random.default_rng(0).integers(1, 256, (2, 2, side, side), dtype=np.uint8)
        present = np.array([[True, True], [True, False]])
        blacked = pixels * present[:, :, None, None].astype(np.uint8)
        found = []
        for given in ({"pixels": pixels, "present": present}, {"pixels": blacked}):
            body, length = tensors.pack({}, "inputs", given, list(given))
            answer = client.post(f"{path}/infer", content=body, headers={tensors.HEADER: str(length)})
            assert answer.status_code == 200, answer.text
            found.append(tensors.unpack(answer.content, None, "outputs")[1])
        np.testing.assert_array_equal(found[0]["probability"], found[1]["probability"])
        bad = {"pixels": pixels, "present": present[:1]}
        body, length = tensors.pack({}, "inputs", bad, list(bad))
        assert client.post(f"{path}/infer", content=body, headers={tensors.HEADER: str(length)}).status_code == 400


def test_settings_of_the_application_reach_the_models(app) -> None:
    assert isinstance(app.state.clinic.settings, Settings)
