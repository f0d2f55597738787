"""A trained network to the graph that is served: everything after the pixels inside it.

The tail is that of `wetread.evaluate.calibration`, and beside the probabilities the graph gives
the maps: the gradient of each reported finding's log-odds with respect to the last features, times
those features, summed over channels. Because the head is linear in the averaged features, that
gradient has a closed form and needs no backward pass. For a plain sigmoid head it is Grad-CAM
(Selvaraju et al. 2017) exactly, without its final ReLU.
"""

from __future__ import annotations

import io
import logging
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from wetread.errors import TrainError
from wetread.evaluate.calibration import Calibration
from wetread.findings import Task
from wetread.train.network import Network

_LARGEST = 30.0  # log-odds beyond this are certainty in float32
OUTPUTS = ("probability", "abnormal", "maps", "features", "familiarity")


@dataclass(frozen=True, eq=False)
class Familiarity:
    """What training images look like to the network: a Gaussian of their features.

    `directions` are the strongest principal axes; what lies outside of them counts with the mean
    variance there (probabilistic PCA, Tipping and Bishop 1999).

    Attributes
    ----------
    mean : float32 [D]
    directions : float32 [D, K]
        Divided by the standard deviation along each.
    rest : float
        Variance of each direction that is left.
    typical : float
        Median squared distance of training images, the unit of the score.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    rest: float
    typical: float

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
        scaled = vectors[:, strongest] / np.sqrt(variance)
        fitted = cls(mean.astype(np.float32), scaled.astype(np.float32), rest, 1.0)
        distance = fitted.distance(torch.from_numpy(features)).numpy()
        return cls(fitted.mean, fitted.directions, rest, float(np.median(distance)))

    def distance(self, features: Tensor) -> Tensor:
        """Return squared distances [B] of features [B, D]; each direction counts alike."""
        centred = features - torch.from_numpy(self.mean)
        directions = torch.from_numpy(self.directions)
        along = centred @ directions
        length = directions.square().sum(0).sqrt()  # 1 / deviation of each axis
        left = centred.square().sum(1) - (along / length).square().sum(1)
        return along.square().sum(1) + left.clamp(min=0) / self.rest


class Served(nn.Module):
    """Pixels to the outputs of the package contract.

    Parameters
    ----------
    network : Network
    calibration : Calibration
    anything : (float, float)
        Slope and intercept of the chance of any finding, for a task without a normal finding.
    familiarity : Familiarity, optional
        Without it every image is equally familiar.
    mirror : bool
        Look at the mirror image too and take the mean probability.
    """

    slope: Tensor
    intercept: Tensor
    mean: Tensor
    directions: Tensor
    shrink: Tensor

    def __init__(
        self,
        network: Network,
        calibration: Calibration,
        familiarity: Familiarity | None = None,
        anything: tuple[float, float] = (1, 0),
        mirror: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.eval()
        self.task: Task = calibration.task
        self.anything, self.mirror = anything, mirror
        if familiarity is None:
            width = network.head.in_features
            familiarity = Familiarity(np.zeros(width, np.float32), np.eye(width, 1, dtype=np.float32), np.inf, np.inf)
        self.rest, self.typical = familiarity.rest, familiarity.typical
        self.register_buffer("slope", torch.tensor(calibration.slope, dtype=torch.float32))
        self.register_buffer("intercept", torch.tensor(calibration.intercept, dtype=torch.float32))
        self.register_buffer("mean", torch.from_numpy(familiarity.mean))
        self.register_buffer("directions", torch.from_numpy(familiarity.directions))
        self.register_buffer("shrink", 1 / self.directions.square().sum(0))

    def member(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-odds [B, F], their maps [B, F, h, w] and pooled features [B, D] of one look at the pixels."""
        last = self.network.features(pixels).float()
        features = last.mean((2, 3))
        logits = self.network.head(features)
        maps = torch.conv2d(last, self.network.head.weight[:, :, None, None]) / (last.shape[2] * last.shape[3])
        count = logits.shape[1]
        if not self.task.exclusive:
            odds = logits
        elif count == 2:
            odds, maps = logits - logits.flip(1), maps - maps.flip(1)
        else:  # the log-odds of a softmax: own logit against the others', weighed by their share of the rest
            rest = logits[:, None, :].masked_fill(torch.eye(count).bool(), -torch.inf)
            odds = logits - torch.logsumexp(rest, 2)
            maps = maps - (torch.softmax(rest, 2) @ maps.flatten(2)).reshape(maps.shape)
        return odds.clamp(-_LARGEST, _LARGEST), maps, features

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `member` does, of the mean probability of the image and its mirror image where asked for."""
        odds, maps, features = self.member(pixels)
        if not self.mirror:
            return odds, maps, features
        other_odds, other_maps, other_features = self.member(pixels.flip(3))
        present = (torch.sigmoid(odds) + torch.sigmoid(other_odds)) / 2
        absent = (torch.sigmoid(-odds) + torch.sigmoid(-other_odds)) / 2
        # d log-odds of the mean / d log-odds of a member, without the cancellation of 1 - p
        share = torch.sigmoid(odds) * torch.sigmoid(-odds) / (2 * present * absent)
        other = torch.sigmoid(other_odds) * torch.sigmoid(-other_odds) / (2 * present * absent)
        maps = share[:, :, None, None] * maps + other[:, :, None, None] * other_maps.flip(3)
        return torch.log(present) - torch.log(absent), maps, (features + other_features) / 2

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return probability [B, F], abnormal [B], maps [B, F, h, w], features [B, D], familiarity [B]."""
        task = self.task
        odds, maps, features = self.look(pixels)
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
        else:  # independent findings: the chance that not all are absent, calibrated as one score
            none = torch.log1p(-probability.clamp(max=1 - 1e-6)).sum(1).clamp(max=-1e-6)
            odds = torch.log(-torch.expm1(none)) - none
            abnormal = torch.sigmoid(self.anything[0] * odds + self.anything[1])
        centred = features - self.mean
        along = centred @ self.directions
        left = centred.square().sum(1) - (along.square() * self.shrink).sum(1)
        distance = along.square().sum(1) + left.clamp(min=0) / self.rest
        return probability, abnormal, maps, features, 1 / (1 + distance / self.typical)


def to_onnx(served: Served, size: int) -> bytes:
    """Export a served graph to ONNX with a free batch size.

    Raises
    ------
    TrainError
        When the backbone cannot be exported.
    """
    example = torch.zeros(2, 1, size, size, dtype=torch.uint8)
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
            program = torch.onnx.export(
                served.eval(),
                (example,),
                input_names=["pixels"],
                output_names=list(OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter has several unrelated classes
        raise TrainError(f"export to ONNX failed: {str(error).splitlines()[0]}") from None
    finally:
        noisy.setLevel(level)
    assert program is not None
    buffer = io.BytesIO()
    onnx.save_model(program.model_proto, buffer)
    return buffer.getvalue()


def halve(graph: bytes) -> bytes:
    """Store large weights as float16, cast back to float32 at load: half the file, arithmetic still float32."""
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
