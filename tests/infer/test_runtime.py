"""Both runtimes against the closed form of the tiny graph, and against each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_package
from hypothesis import given, settings
from hypothesis import strategies as st

from wetread.errors import ModelError
from wetread.findings import CHEXPERT
from wetread.infer import runtime
from wetread.model import golden
from wetread.model.golden import Outputs

NAMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def engines() -> dict[str, runtime.Engine]:
    return {name: runtime.load(tiny_package.graph(14), runtime=name) for name in NAMES}  # type: ignore[arg-type]


def pixels(seed: int, count: int) -> np.ndarray:
    size = tiny_package.SIZE
    return np.random.default_rng(seed).integers(0, 256, (count, 1, size, size), dtype=np.uint8)


def assert_close(got: Outputs, wanted: Outputs, tolerance: float = 2e-6) -> None:
    assert max(golden.differences(wanted, got).values()) < tolerance


@given(seed=st.integers(0, 1000), count=st.integers(1, 17))
@settings(max_examples=25, deadline=None)
def test_any_batch_size_gives_the_closed_form_on_both(
    engines: dict[str, runtime.Engine], seed: int, count: int
) -> None:
    batch = pixels(seed, count)
    for engine in engines.values():
        # 2e-6 also proves that OpenVINO did not take bf16, which a CPU with AMX would do by itself.
        assert_close(engine.run(batch), tiny_package.answer(batch, 14))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_the_same_answer_in_every_batch(engines: dict[str, runtime.Engine], name: str) -> None:
    batch = pixels(3, 9)
    together = engines[name].run(batch)
    for index in range(9):
        alone = engines[name].run(batch[index : index + 1])
        assert_close(alone, Outputs(*(values[index : index + 1] for values in together)), 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_threads_may_run_at_once_and_results_are_their_own(engines: dict[str, runtime.Engine], name: str) -> None:
    batches = [pixels(seed, 1 + seed % 5) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(engines[name].run, batches))
    for batch, got in zip(batches, results, strict=True):
        assert_close(got, tiny_package.answer(batch, 14))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("view", [lambda a: a[::2], lambda a: a[..., ::-1], lambda a: np.asfortranarray(a)])
def test_memory_layout_does_not_matter(
    engines: dict[str, runtime.Engine], name: str, view: Callable[[np.ndarray], np.ndarray]
) -> None:
    batch = view(pixels(0, 6))
    assert_close(engines[name].run(batch), tiny_package.answer(np.ascontiguousarray(batch), 14))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 1, 64, 63), np.uint8),
        np.zeros((1, 3, 64, 64), np.uint8),
        np.zeros((0, 1, 64, 64), np.uint8),
        np.zeros((1, 1, 64, 64), np.float32),
        np.zeros((64, 64), np.uint8),
    ],
)
def test_a_wrong_array_is_refused(engines: dict[str, runtime.Engine], name: str, wrong: np.ndarray) -> None:
    with pytest.raises(ModelError, match="the model takes uint8"):
        engines[name].run(wrong)


def outside() -> bytes:
    """Return a graph whose weights claim to lie in a file of this machine."""
    model = onnx.load_from_string(tiny_package.graph(14))
    for tensor in model.graph.initializer:
        if tensor.name == "head":
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", "../../../../etc/hostname"), ("offset", "0"), ("length", "336")):
                tensor.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString())


def unknown() -> bytes:
    """Return a graph with an operator that nobody has."""
    model = onnx.load_from_string(tiny_package.graph(14))
    model.graph.node[4].op_type = "Relieve"
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "model.onnx"),
        (b"\x00" * 1000, "model.onnx"),
        (tiny_package.graph(14)[:-40], "model.onnx"),
        (outside(), "model.onnx"),
        (unknown(), "model.onnx"),
        (tiny_package.graph(14, drop="maps"), "output 'maps' is missing"),
        (tiny_package.graph(14, size="S"), "pixels is"),
        (tiny_package.graph(14, kind=onnx.TensorProto.FLOAT), "pixels is"),
    ],
    ids=["empty", "zeros", "cut", "external data", "unknown operator", "no maps", "any size", "float"],
)
def test_a_graph_that_breaks_the_contract_is_a_model_error(name: str, content: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        runtime.load(content, runtime=name)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_no_number_is_an_error_and_not_an_answer(name: str) -> None:
    engine = runtime.load(tiny_package.graph(2, poison=True), runtime=name)  # type: ignore[arg-type]
    batch = pixels(0, 3)
    assert (batch[:, 0, 0, 0] < 255).all()
    assert_close(engine.run(batch), tiny_package.answer(batch, 2))
    batch[1, 0, 0, 0] = 255
    with pytest.raises(ModelError, match="familiarity that is not a finite number"):
        engine.run(batch)


def test_auto_follows_the_documented_rule() -> None:
    assert runtime.load(tiny_package.graph(2)).runtime == "onnxruntime"
    assert runtime.load(tiny_package.graph(2), precision="int8").runtime == "openvino"


def test_bf16_is_never_run_in_another_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="needs OpenVINO"):
        runtime.load(tiny_package.graph(2), precision="bf16", runtime="onnxruntime")

    class OldCore(runtime._openvino().Core):  # type: ignore[misc]
        def get_property(self, *args: object) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(runtime._openvino(), "Core", OldCore)
    with pytest.raises(ModelError, match="no bf16"):
        runtime.load(tiny_package.graph(2), precision="bf16")


def test_bf16_is_coarser_than_fp32_where_the_cpu_has_it(engines: dict[str, runtime.Engine]) -> None:
    if "BF16" not in runtime._openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    batch = pixels(0, 4)
    found = golden.differences(
        tiny_package.answer(batch, 14), runtime.load(tiny_package.graph(14), precision="bf16").run(batch)
    )
    assert 1e-4 < found["maps"] < golden.DEFAULT_TOLERANCE["bf16"]["maps"]


@pytest.mark.parametrize("name", ["auto", *NAMES])
def test_a_package_opens_on_either_runtime(tmp_path: Path, name: str) -> None:
    opened = tiny_package.write(tmp_path / "p", CHEXPERT)
    batch = pixels(0, 2)
    engine = runtime.open_engine(opened, name, threads=1)  # type: ignore[arg-type]
    assert_close(engine.run(batch), tiny_package.answer(batch, 14))


def test_openvino_is_imported_without_its_telemetry() -> None:
    script = (
        "import sys; from wetread.infer import runtime; runtime._openvino().Core(); "
        "sys.exit('openvino_telemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_onnx_runtime_keeps_and_sends_nothing(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_package.graph(14))
    home = tmp_path / "home"
    home.mkdir()
    script = "import sys; from wetread.infer import runtime; runtime.load(open(sys.argv[1], 'rb').read())"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", script, str(model)], check=True, env=environment | {"HOME": str(home)})
    assert not [file for file in home.rglob("*") if file.is_file()]  # its identifier, and what is to be sent
