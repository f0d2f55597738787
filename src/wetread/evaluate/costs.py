"""What errors cost: misses and false alarms per thousand images, weighed against each other.

How many false alarms a miss is worth is for the site to say, so costs are given for a range of ratios, beside
the two policies that need no model: flag everybody, flag nobody. With a ratio of r to 1 the cheapest threshold
of a calibrated probability is 1 / (1 + r) (Elkan 2001), and cost is net benefit turned over (Vickers and Elkin 2006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wetread.evaluate import metrics
from wetread.evaluate.metrics import FloatArray

RATIOS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""A miss costs so many false alarms."""

PER = 1000


@dataclass(frozen=True)
class Cost:
    """One finding.

    Attributes
    ----------
    finding : str
    prevalence : float
        At which everything is counted: of these images, or as given.
    ratios : float64 [R]
        Misses to false alarms.
    missed, alarms : dict of point to float
        Per 1,000 images.
    cost : dict of policy to float64 [R]
        In false alarms per 1,000 images: each operating point, ``flag all``, ``flag none``, and ``by ratio``, the
        calibrated probability cut at 1 / (1 + ratio).
    """

    finding: str
    prevalence: float
    ratios: FloatArray
    missed: dict[str, float]
    alarms: dict[str, float]
    cost: dict[str, FloatArray]

    def cheapest(self, ratio: float) -> tuple[str, float]:
        """Return the cheapest policy at one of the ratios, and its cost; an operating point wins a tie."""
        place = int(np.flatnonzero(self.ratios == ratio)[0])
        found = [(name, float(values[place])) for name, values in self.cost.items() if name != "by ratio"]
        return min(found, key=lambda pair: pair[1])


def evaluate(
    finding: str,
    labels: ArrayLike,
    probability: ArrayLike,
    points: Mapping[str, float],
    *,
    ratios: Sequence[float] = RATIOS,
    prevalence: float | None = None,
) -> Cost | None:
    """Return the costs of errors of one finding, or None without a positive or a negative.

    Parameters
    ----------
    finding : str
    labels, probability : array_like of float [N]
        Labels of -1 and NaN are left out.
    points : mapping of point to threshold
    ratios : sequence of float
        Cost of a miss over cost of a false alarm, positive.
    prevalence : float, optional
        Of the place where the model will work, 0 to 1; by default that of the labels.
    """
    _, positive, p = metrics.validate(labels, probability, probability=True)
    if not positive.any() or positive.all():
        return None
    share = float(positive.mean()) if prevalence is None else prevalence
    r = np.asarray(ratios, dtype=np.float64)

    def errors(threshold: float) -> tuple[float, float]:
        flagged = p >= threshold
        return PER * share * float((~flagged[positive]).mean()), PER * (1 - share) * float(flagged[~positive].mean())

    counts = {name: errors(threshold) for name, threshold in points.items()}
    cost = {name: r * missed + alarms for name, (missed, alarms) in counts.items()}
    ideal = np.array([errors(1 / (1 + ratio)) for ratio in r])
    cost |= {
        "flag all": np.full(r.shape, PER * (1 - share)),
        "flag none": PER * share * r,
        "by ratio": r * ideal[:, 0] + ideal[:, 1],
    }
    missed, alarms = ({name: pair[i] for name, pair in counts.items()} for i in range(2))
    return Cost(finding, share, r, missed, alarms, cost)
