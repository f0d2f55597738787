"""A package as Triton's model repository: what Triton reads, and what a real Triton answers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import study_package
import tiny_package
from typer.testing import CliRunner

from wetread.cli import app
from wetread.errors import ConfigError, ModelError
from wetread.infer import runtime, triton


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return tiny_package.write(tmp_path_factory.mktemp("triton") / "tiny")


@pytest.fixture(scope="module")
def schema():
    """Triton's own description of config.pbtxt. Loaded by its path: its package would import gRPC."""
    text_format = pytest.importorskip("google.protobuf.text_format", reason="needs protobuf")
    client = importlib.util.find_spec("tritonclient")
    if client is None or client.origin is None:
        pytest.skip("needs tritonclient")
    file = Path(client.origin).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda folder: text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), module.ModelConfig())


def test_triton_reads_what_it_is_told_about_an_image_model(package, schema, tmp_path) -> None:
    made = triton.export(package, tmp_path, gpus=(0, 2), instances=3, batch=32, delay_ms=2.5)
    config = schema(made.folder)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 32)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("pixels", 2, [1, 64, 64])]  # TYPE_UINT8
    assert {t.name: list(t.dims) for t in config.output} == {
        "probability": [2], "abnormal": [1], "maps": [2, 8, 8], "features": [6], "familiarity": [1]
    }  # fmt: skip
    assert {t.data_type for t in config.output} == {11}  # TYPE_FP32
    assert {t.name for t in config.output if t.HasField("reshape")} == {"abnormal", "familiarity"}
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (3, group.Kind.Value("KIND_GPU"), [0, 2])
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    assert config.parameters["package"].string_value == package.id
    assert (made.folder / "1" / "model.onnx").read_bytes() == package.onnx


def test_triton_reads_what_it_is_told_about_a_model_of_studies(schema, tmp_path) -> None:
    package = study_package.write(tmp_path / "package")
    config = schema(triton.export(package, tmp_path / "repository", backend="python", threads=5).folder)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
        ("pixels", 2, [2, 64, 64]),
        ("present", 1, [2]),  # TYPE_BOOL
    ]
    assert next(list(t.dims) for t in config.output if t.name == "maps") == [2, 2, 8, 8]
    assert config.instance_group[0].kind == config.instance_group[0].Kind.Value("KIND_CPU")
    assert config.parameters["intra_op_thread_count"].string_value == "5"


def test_another_package_of_the_name_is_the_next_version_and_the_same_one_is_not(package, tmp_path) -> None:
    assert triton.export(package, tmp_path)[1:] == (1, True)
    assert triton.export(package, tmp_path, gpus=(0,))[1:] == (1, False)
    assert "KIND_GPU" in (tmp_path / "tiny" / "config.pbtxt").read_text()
    other = tiny_package.write(tmp_path / "other", seed=1)
    assert triton.export(other, tmp_path)[1:] == (2, True)
    assert triton.export(package, tmp_path, backend="python")[1:] == (3, True)
    assert (tmp_path / "tiny/1/model.onnx").read_bytes() == (tmp_path / "tiny/3/model.onnx").read_bytes()
    assert sorted(p.name for p in (tmp_path / "tiny").iterdir()) == ["1", "2", "3", "config.pbtxt"]


def test_what_triton_cannot_run_is_refused(package, tmp_path) -> None:
    with pytest.raises(ConfigError, match="gpus: 0, 0"):
        triton.export(package, tmp_path, gpus=(0, 0))
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ModelError, match="is no model of Triton"):
        triton.export(package, tmp_path)
    object.__setattr__(package.meta, "precision", "bf16")
    try:
        with pytest.raises(ModelError, match="export the fp32 package"):
            triton.export(package, tmp_path)
    finally:
        object.__setattr__(package.meta, "precision", "fp32")


def test_the_command_says_what_it_made(package, tmp_path) -> None:
    arguments = ["export-triton", str(package.path), str(tmp_path / "models"), "--gpus", "0,1", "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(done.stdout) == {"folder": str(tmp_path / "models/tiny"), "version": 1, "new": True}
    with pytest.raises(ConfigError, match="--gpus x"):
        CliRunner().invoke(app, [*arguments[:4], "x"], catch_exceptions=False)


def test_a_graph_gives_what_the_configuration_says(package, schema, tmp_path) -> None:
    made = triton.export(package, tmp_path)
    outputs = runtime.load((made.folder / "1/model.onnx").read_bytes()).run(np.zeros((3, 1, 64, 64), np.uint8))
    for tensor in schema(made.folder).output:
        inner = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
        assert list(getattr(outputs, tensor.name).shape) == [3, *inner], tensor.name
