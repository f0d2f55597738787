"""A trained network to the graph that is served: everything after the pixels inside it.

The tail is that of `wetread.evaluate.calibration`, and beside the probabilities the graph gives
the maps: the gradient of each reported finding's log-odds with respect to the last features, times
those features, summed over channels. Because the head is linear in the averaged features, that
gradient has a closed form and needs no backward pass. For a plain sigmoid head it is Grad-CAM
(Selvaraju et al. 2017) exactly, without its final ReLU.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from wetread.errors import TrainError
from wetread.evaluate.calibration import Calibration
from wetread.findings import Task
from wetread.train.ensemble import Ensemble

OUTPUTS = ("probability", "abnormal", "maps", "features", "familiarity")


class Familiarity(nn.Module):
    """What training images look like to a network: a Gaussian of their features.

    `directions` are the strongest principal axes; what lies outside of them counts with the mean
    variance there (probabilistic PCA, Tipping and Bishop 1999).

    Parameters
    ----------
    mean : float32 [D]
    directions : float32 [D, K]
        Divided by the standard deviation along each.
    rest : float
        Variance of each direction that is left.
    typical : float
        Median squared distance of training images, the unit of the score.
    """

    mean: Tensor
    directions: Tensor
    variance: Tensor

    def __init__(self, mean: NDArray[np.float32], directions: NDArray[np.float32], rest: float, typical: float) -> None:
        super().__init__()
        self.rest, self.typical = rest, typical
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("directions", torch.from_numpy(directions))
        self.register_buffer("variance", 1 / self.directions.square().sum(0))

    @classmethod
    def fit(cls, features: NDArray[np.float32], axes: int = 64) -> Familiarity:
        """Fit to features [N, D] of training images."""
        mean = features.mean(0, dtype=np.float64)
        centred = features - mean
        count, width = centred.shape
        axes = max(1, min(axes, count // 4, width - 1))
        values, vectors = np.linalg.eigh(centred.T @ centred / count)
        strongest = slice(width - axes, width)
        variance = np.maximum(values[strongest], 1e-8)
        rest = max(float(values[: width - axes].mean()), 1e-8)
        scaled = (vectors[:, strongest] / np.sqrt(variance)).astype(np.float32)
        fitted = cls(mean.astype(np.float32), scaled, rest, 1.0)
        fitted.typical = float(np.median(fitted.distance(torch.from_numpy(features)).numpy()))
        return fitted

    @classmethod
    def blind(cls, width: int) -> Familiarity:
        """Return one to which every image is equally familiar."""
        return cls(np.zeros(width, np.float32), np.eye(width, 1, dtype=np.float32), np.inf, np.inf)

    def distance(self, features: Tensor) -> Tensor:
        """Return squared distances [B] of features [B, D]; each direction counts alike."""
        centred = features - self.mean
        along = centred @ self.directions
        left = centred.square().sum(1) - (along.square() * self.variance).sum(1)
        return along.square().sum(1) + left.clamp(min=0) / self.rest

    def forward(self, features: Tensor) -> Tensor:
        """Return distances [B] in units of that of a typical training image."""
        return self.distance(features) / self.typical


class Served(nn.Module):
    """Pixels to the outputs of the package contract.

    Parameters
    ----------
    ensemble : Ensemble
    calibration : Calibration
    familiarity : sequence of Familiarity
        One for each member; without them every image is equally familiar.
    anything : (float, float) or None
        Slope and intercept of the chance of any finding, for a task without a normal finding. None: the chance of
        the likeliest abnormality, where nothing was calibrated.
    """

    slope: Tensor
    intercept: Tensor

    def __init__(
        self,
        ensemble: Ensemble,
        calibration: Calibration,
        familiarity: Sequence[Familiarity] = (),
        anything: tuple[float, float] | None = (1, 0),
    ) -> None:
        super().__init__()
        self.ensemble = ensemble.eval()
        self.task: Task = calibration.task
        self.anything = anything
        blind = [Familiarity.blind(network.head.in_features) for network in ensemble.members]
        self.familiarity = nn.ModuleList(familiarity or blind)
        self.register_buffer("slope", torch.tensor(calibration.slope, dtype=torch.float32))
        self.register_buffer("intercept", torch.tensor(calibration.intercept, dtype=torch.float32))

    def forward(self, pixels: Tensor, present: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return probability [B, F], abnormal [B], maps [B, F, h, w], features [B, D], familiarity [B].

        The features are those of all members, side by side. Of studies, pixels are [B, 2, H, W] (frontal, lateral),
        `present` bool [B, 2] and the maps [B, 2, F, h, w].
        """
        if present is not None:
            pixels = torch.where(present[:, :, None, None], pixels, torch.zeros((), dtype=pixels.dtype))
        task = self.task
        odds, maps, features = self.ensemble(pixels)
        y = self.slope * odds + self.intercept
        maps = maps * self.slope[None, :, None, None]
        if task.exclusive:
            single = torch.sigmoid(y)
            probability = single / single.sum(1, keepdim=True)
            if len(task.findings) > 2:  # dividing by the sum: log p_k - log of the sum of the others
                own = torch.eye(len(task.findings))
                rest = (single.sum(1, keepdim=True) - single).clamp(min=1e-9)
                spread = (single * (1 - single))[:, None, :] / rest[:, :, None]
                weight = own * (1 - single)[:, :, None] - (1 - own) * spread
                maps = (weight @ maps.flatten(2)).reshape(maps.shape)
        else:
            columns: list[Tensor] = [y[:, f] for f in range(len(task.findings))]
            pictures: list[Tensor] = [maps[:, f] for f in range(len(task.findings))]
            parents = task.parent_index()
            for f in sorted(range(len(parents)), key=lambda f: len(task.path(task.findings[f]))):
                if (p := parents[f]) >= 0:  # the reported log-odds are the parent's where that is lower
                    lower = (columns[f] <= columns[p])[:, None, None]
                    pictures[f] = torch.where(lower, pictures[f], pictures[p])
                    columns[f] = torch.minimum(columns[f], columns[p])
            probability = torch.sigmoid(torch.stack(columns, 1))
            maps = torch.stack(pictures, 1)
        if task.normal is not None:
            abnormal = 1 - probability[:, task.findings.index(task.normal)]
        elif self.anything is None:
            counted = [f for f, finding in enumerate(task.findings) if finding not in task.neutral]
            abnormal = probability[:, counted].amax(1)
        else:  # independent findings: the chance that not all are absent, calibrated as one score
            none = torch.log1p(-probability.clamp(max=1 - 1e-6)).sum(1).clamp(max=-1e-6)
            odds = torch.log(-torch.expm1(none)) - none
            abnormal = torch.sigmoid(self.anything[0] * odds + self.anything[1])
        if self.ensemble.views > 1:
            maps = torch.stack(maps.chunk(self.ensemble.views, 3), 1)
        distance = torch.stack([one(part) for one, part in zip(self.familiarity, features, strict=True)]).mean(0)
        return probability, abnormal, maps, torch.cat(features, 1), 1 / (1 + distance)


def to_onnx(served: Served, size: int) -> bytes:
    """Export a served graph to ONNX with a free batch size.

    Raises
    ------
    TrainError
        When the backbone cannot be exported.
    """
    views = served.ensemble.views
    example: tuple[Tensor, ...] = (torch.zeros(2, views, size, size, dtype=torch.uint8),)
    if views > 1:
        example = (*example, torch.ones(2, views, dtype=torch.bool))
    batch = torch.export.Dim("batch", min=1, max=65536)
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
            program = torch.onnx.export(
                served.eval(),
                example,
                input_names=["pixels", "present"][: len(example)],
                output_names=list(OUTPUTS),
                dynamic_shapes=tuple({0: batch} for _ in example),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter has several unrelated classes
        raise TrainError(f"export to ONNX failed: {str(error).splitlines()[0]}") from None
    finally:
        noisy.setLevel(level)
    assert program is not None
    return bytes(_bare(program.model_proto).SerializeToString())


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without the exporter's notes: a tenth of a small file, with paths of this machine among them."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]
    return model


def halve(graph: bytes) -> bytes:
    """Store large weights as float16, cast back to float32 at load: half the file, arithmetic still float32.

    What has fewer than 1,024 values keeps its digits: biases and batch norms, whose variances would lose theirs. The
    exporter folds a norm into its convolution unless several looks share it; norms are then a twentieth of MobileNetV2.
    """
    model = onnx.load_model_from_string(graph)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= 1024:
            values = numpy_helper.to_array(tensor)
            if np.abs(values).max() < 6e4:
                name = tensor.name
                tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
                casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
