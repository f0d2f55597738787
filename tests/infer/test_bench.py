"""`wetread bench`: what is measured is there and hangs together, and what is wrong is one line."""

import json
import shutil
import subprocess
import sys

import onnxruntime as ort
import pytest
import study_package
import tiny_package
import typer

from wetread.config import Settings
from wetread.errors import ConfigError, ModelError, WetreadError
from wetread.infer import bench, bench_command, machine
from wetread.infer.bench import Conditions, Report, measure, run
from wetread.infer.runtime import open_engine
from wetread.model.package import Package

PLAN = Conditions(threads=1, seconds=0.01, batch=4, callers=(2,))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    tiny_package.write(folder)
    return folder


@pytest.fixture
def small(monkeypatch):
    """A small film and few calls, where it is not the time that matters."""
    monkeypatch.setattr(bench, "SIDE", 256)
    monkeypatch.setattr(bench, "LEAST", 5)


def test_figures_hang_together(tiny, small):
    found = measure(str(tiny), None, Settings.model_validate({"threads": 1}), PLAN)
    assert [each.callers for each in found.concurrency] == [1, 2]
    assert found.single.p50_ms == found.concurrency[0].p50_ms
    for latency in (found.graph, found.single, *found.concurrency):
        assert latency.p50_ms <= latency.p95_ms
        assert latency.calls >= bench.LEAST
    assert found.graph.p50_ms < found.single.p50_ms  # which decodes a file besides
    assert found.throughput.batch == 4
    assert found.load_s > 0
    assert found.peak_rss_bytes > found.base_rss_bytes > 0
    assert found.peak_rss_bytes >= machine.memory()[0] / 2


def test_a_model_of_studies_is_measured_too(tmp_path, small):
    study_package.write(tmp_path / "pair")
    found = measure(str(tmp_path / "pair"), None, Settings.model_validate({"threads": 1}), PLAN)
    assert found.throughput.images_s > 0


def test_memory_grows_by_what_is_taken():
    before, _ = machine.memory()
    taken = bytearray(b"x") * (64 << 20)
    now, most = machine.memory()
    assert most >= now >= before + len(taken) // 2


def test_the_machine_says_what_it_is():
    found = machine.look("here")
    assert found.name == "here"
    assert 0 < found.usable <= found.cores
    assert found.memory_bytes > 2**28
    assert "CPUExecutionProvider" in found.providers
    assert machine.look().name


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    file = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "_CPU_MAX", file)
    alone = machine.usable()
    for text, expected in (("50000 100000", 0.5), ("max 100000", alone), ("nonsense", alone), ("1 0", alone)):
        file.write_text(text)
        assert machine.usable() == expected


def test_every_package_runs_where_its_precision_does(tiny, tmp_path):
    assert [where for _, _, where in bench._cases([str(tiny)], None, None)] == ["onnxruntime", "openvino"]
    assert [where for _, _, where in bench._cases([str(tiny)], "openvino", None)] == ["openvino"]
    tiny_package.write(tmp_path / "models" / "other", name="other", precision="int8")
    there = ["v2+http://127.0.0.1:9/other"]
    assert [where for _, _, where in bench._cases(there, None, tmp_path)] == ["remote"]
    with pytest.raises(ConfigError, match="--runtime tpu: not to be had here; there is onnxruntime, openvino"):
        run([str(tiny)], PLAN, runtime="tpu")
    with pytest.raises(ModelError, match="no model named 'nothing'"):
        run(["nothing"], PLAN)


def test_a_gpu_is_measured_where_it_is_listed_and_never_the_processor_instead(tiny, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--runtime cuda: not to be had here; there is onnxruntime, openvino$"):
        run([str(tiny)], PLAN, runtime="cuda")
    with pytest.raises(ModelError, match="tiny: tensorrt: this ONNX Runtime has no TensorrtExecutionProvider"):
        open_engine(Package.open(tiny), "tensorrt")
    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: listed)
    tiny_package.write(tmp_path / "int8", precision="int8")
    cases = [where for _, _, where in bench._cases([str(tiny), str(tmp_path / "int8")], None, None)]
    assert cases == ["onnxruntime", "openvino", "cuda", "tensorrt", "onnxruntime", "openvino"]
    assert [where for _, _, where in bench._cases([str(tiny)], "cuda", None)] == ["cuda"]
    asked = []

    def fallen_back(onnx, options, providers):
        asked.append(providers)
        return ort.capi.onnxruntime_inference_collection.InferenceSession(onnx, options, ["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", fallen_back)
    with pytest.raises(ModelError, match="tiny: cuda: ONNX Runtime cannot start CUDAExecutionProvider"):
        open_engine(Package.open(tiny), "cuda")
    assert asked == [[("CUDAExecutionProvider", {"use_tf32": "0"})]]
    assert open_engine(Package.open(tiny), "onnxruntime").runtime == "onnxruntime"


def test_a_server_that_does_not_answer_has_no_figures(tmp_path, small):
    """The package that lies here answers in its place, and its speed is not the server's."""
    tiny_package.write(tmp_path / "models" / "tiny")
    with pytest.raises(ModelError, match="the server did not answer for it throughout"):
        measure("v2+http://127.0.0.1:9/tiny", tmp_path, Settings.model_validate({"threads": 1}), PLAN)


@pytest.mark.parametrize(
    "options",
    [
        ["--callers", "none"],
        ["--callers", "0"],
        ["--callers", "1000"],
        ["--threads", "0"],
        ["--seconds", "nan"],
        ["--batch", "0"],
        ["--model", "nothing"],
        ["--runtime", "tpu"],
        ["no-such"],
    ],
    ids=" ".join,
)
def test_a_bad_value_is_told(options):
    with pytest.raises((WetreadError, typer.TyperException)) as refused:
        typer.main.get_command(bench_command.bench).main(options, standalone_mode=False)
    assert "\n" not in str(refused.value)


@pytest.mark.system
def test_the_command_measures_in_processes_of_their_own(tiny, tmp_path):
    options = ["--seconds", "0.05", "--callers", "1,2", "--threads", "1", "--name", "here", "--runtime", "openvino"]
    broken = tmp_path / "broken"
    tiny_package.write(broken, name="broken")
    tiny_package.write(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / "golden.npz", broken)  # of another graph
    command = [sys.executable, "-m", "wetread", "bench", "--model", str(tiny), "--model", str(broken), *options]
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=True)
    report = Report.model_validate_json(done.stdout)
    assert json.loads(done.stdout)["machine"]["name"] == "here"
    assert report.plan == Conditions(threads=1, seconds=0.05, callers=(1, 2))
    found = {(result.model, result.runtime): result for result in report.results}
    assert list(found) == [("tiny", "openvino"), ("broken", "openvino")]
    good, refused = found.values()
    assert good.package_bytes == sum(file.stat().st_size for file in tiny.iterdir())
    assert good.graph_bytes == (tiny / "model.onnx").stat().st_size
    assert good.figures is not None
    assert good.figures.single.calls >= bench.LEAST
    assert not good.error
    assert refused.figures is None
    assert "golden" in refused.error
