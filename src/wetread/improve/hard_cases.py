"""Hard cases as readers found them: where a model was wrong, and where it was unsure of what readers were sure of.

They are batches as `wetread hard` keeps them (`wetread.evaluate.hard`), so that gates may name them: ``wrong-ID`` and
``unsure-ID``, with the first eight digits of the package that judged when the studies came. Only cases of the test
split are in them, and only those on which readers agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from wetread.dataset.dataset import Dataset
from wetread.evaluate import hard
from wetread.evaluate.calibration import logit
from wetread.evaluate.hard import Batch, Case
from wetread.findings import ABSENT, PRESENT

MOST = 500  # cases of a batch


def write(dataset: Dataset, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write the batches of a version from its lineage."""
    there = set(dataset.manifest["image"])
    found: dict[tuple[str, str, str, str], list[Case]] = defaultdict(list)
    for line in lines:
        if line["split"] != "test":
            continue
        for model in line["models"]:
            for finding, said in model["findings"].items():
                label = line["labels"].get(finding)
                if label not in (PRESENT, ABSENT) or finding not in dataset.task.findings or said["image"] not in there:
                    continue
                of = model["model"], model["name"], model["point"]
                case = Case(
                    image=said["image"],
                    finding=finding,
                    label=label,
                    probability=said["probability"],
                    threshold=said["threshold"],
                )
                if (said["probability"] >= said["threshold"]) != bool(label):
                    found["wrong", *of].append(case)
                if said["call"] == "unsure":  # right or wrong: else the model that judged would be right in all of them
                    found["unsure", *of].append(case)
    for (kind, model_id, name, point), cases in found.items():
        worst = sorted(cases, key=lambda case: (-_beyond(case), case.image, case.finding))[:MOST]
        batch = Batch(
            name=f"{kind}-{model_id[:8]}",
            task=dataset.task.name,
            model=name,
            model_id=model_id,
            point=point,
            dataset_hash=dataset.hash,
            split="test",
            cases=tuple(worst),
        )
        hard.write(dataset, batch)


def _beyond(case: Case) -> float:
    return abs(float(logit(case.probability)) - float(logit(case.threshold)))
