"""Int8: the backbone is quantised, the head is not, and both runtimes give the same answers."""

from __future__ import annotations

import numpy as np
import pytest

from wetread.errors import TrainError
from wetread.evaluate.calibration import Calibration
from wetread.findings import CHEXPERT
from wetread.infer import runtime
from wetread.model import golden

torch = pytest.importorskip("torch", reason="needs the train extra")
onnx = pytest.importorskip("onnx", reason="needs the train extra")

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of NNCF's own imports
]

SIZE = 64


@pytest.fixture(scope="module")
def graph() -> bytes:
    from wetread.train.ensemble import Ensemble
    from wetread.train.export import Familiarity, Served, to_onnx
    from wetread.train.network import Network
    from wetread.train.recipe import NetworkRecipe

    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Network(NetworkRecipe(backbone="small_cnn"), 14)
        torch.nn.init.normal_(network.head.weight, std=0.3)
        network.train()
        with torch.no_grad():
            for _ in range(4):
                network(torch.randint(0, 256, (16, 1, SIZE, SIZE), dtype=torch.uint8))
    familiarity = Familiarity.fit(np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32))
    tail = Calibration(CHEXPERT, np.ones(14), np.zeros(14))
    return to_onnx(Served(Ensemble([network], CHEXPERT), tail, [familiarity]), SIZE)


@pytest.mark.parametrize("half", [False, True])
def test_the_backbone_is_int8_and_the_head_is_not(graph: bytes, half: bool) -> None:
    from wetread.train.export import halve
    from wetread.train.quantise import quantise

    rng = np.random.default_rng(1)
    calibrating = rng.integers(0, 256, (40, SIZE, SIZE), dtype=np.uint8)
    batch = rng.integers(0, 256, (64, 1, SIZE, SIZE), dtype=np.uint8)
    content = quantise(halve(graph) if half else graph, calibrating)
    model = onnx.load_model_from_string(content)
    makes = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    quantised = [n for n in convolutions if n.input[1] in makes and makes[n.input[1]].op_type == "DequantizeLinear"]
    assert len(quantised) == 5, "small_cnn has five convolutions; the one that makes the maps belongs to the head"
    assert len(content) < len(graph) / 2

    exact = runtime.load(graph).run(batch)
    answers = [runtime.load(content, precision="int8", runtime=name).run(batch) for name in ("openvino", "onnxruntime")]
    for answer in answers:
        # Quantisation has moved the scores, but a little, and has not merged them into steps.
        assert 1e-5 < np.abs(answer.probability - exact.probability).max() < 0.1
        assert len(np.unique(answer.probability[:, 3])) == len(batch)
    allowed = golden.DEFAULT_TOLERANCE["int8"]
    assert all(value < allowed[name] for name, value in golden.differences(*answers).items())


def test_what_is_no_graph_cannot_be_quantised() -> None:
    from wetread.train.quantise import quantise

    with pytest.raises(TrainError, match="quantising failed"):
        quantise(b"nothing", np.zeros((1, SIZE, SIZE), np.uint8))
