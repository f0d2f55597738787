"""Findings, and the tasks that group them: the vocabulary that every stage shares.

Label values are the same everywhere: 1 present, 0 absent, -1 uncertain, null not mentioned
(NaN in float arrays).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wetread.errors import ConfigError

PRESENT, ABSENT, UNCERTAIN = 1, 0, -1


@dataclass(frozen=True)
class Task:
    """A question put to a radiograph.

    Attributes
    ----------
    name : str
        Short identifier, e.g. ``"chexpert"``.
    findings : tuple of str
        In the order of the columns of labels and scores.
    exclusive : bool
        True when exactly one finding holds (softmax); False when any may (sigmoid).
    parents : mapping of str to str
        Child finding to its parent. Findings without an entry are roots.
    normal : str or None
        The finding that means "nothing abnormal"; its complement is ``abnormal``.
    neutral : frozenset of str
        Findings that are no abnormality by themselves (Support Devices).
    """

    name: str
    findings: tuple[str, ...]
    exclusive: bool = False
    parents: Mapping[str, str] = field(default_factory=dict)
    normal: str | None = None
    neutral: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if len(set(self.findings)) != len(self.findings) or not self.findings:
            raise ConfigError(f"task {self.name}: findings must be distinct and not empty, got {list(self.findings)}")
        named = {*self.parents, *self.parents.values(), *self.neutral, *([self.normal] if self.normal else [])}
        if unknown := sorted(named - set(self.findings)):
            raise ConfigError(f"task {self.name}: {unknown[0]!r} is not one of its findings; add it to `findings`")
        if self.exclusive and self.parents:
            raise ConfigError(f"task {self.name}: an exclusive task has no tree; remove `parents`")
        for finding in self.findings:
            seen = {finding}
            while (parent := self.parents.get(finding)) is not None:
                if parent in seen:
                    raise ConfigError(f"task {self.name}: `parents` has a cycle through {parent!r}")
                seen.add(parent)
                finding = parent

    def path(self, finding: str) -> tuple[str, ...]:
        """Return the findings from the root down to `finding`, itself included."""
        steps = [finding]
        while (parent := self.parents.get(steps[-1])) is not None:
            steps.append(parent)
        return tuple(reversed(steps))

    def parent_index(self) -> list[int]:
        """Return for each finding the column of its parent, or -1 for a root."""
        column = {finding: index for index, finding in enumerate(self.findings)}
        return [column[self.parents[f]] if f in self.parents else -1 for f in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """Return the task as JSON- and TOML-ready values; `from_dict` is the inverse."""
        return {
            "name": self.name,
            "findings": list(self.findings),
            "exclusive": self.exclusive,
            "parents": dict(self.parents),
            "normal": self.normal,
            "neutral": sorted(self.neutral),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """Build a task from the values that `to_dict` gives.

        Raises
        ------
        ConfigError
            For an unknown or missing key, or a value of the wrong kind.
        """
        known = {"name", "findings", "exclusive", "parents", "normal", "neutral"}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"task: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(known))}")
        try:
            return cls(
                name=str(values["name"]),
                findings=tuple(str(f) for f in values["findings"]),
                exclusive=bool(values.get("exclusive", False)),
                parents=dict(values.get("parents", {})),
                normal=values.get("normal"),
                neutral=frozenset(values.get("neutral", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"task: {error} is missing or of the wrong kind; see docs/datasets.md") from None


CHEXPERT = Task(
    "chexpert",
    (
        "No Finding",
        "Enlarged Cardiomediastinum",
        "Cardiomegaly",
        "Lung Opacity",
        "Lung Lesion",
        "Edema",
        "Consolidation",
        "Pneumonia",
        "Atelectasis",
        "Pneumothorax",
        "Pleural Effusion",
        "Pleural Other",
        "Fracture",
        "Support Devices",
    ),
    parents={
        "Cardiomegaly": "Enlarged Cardiomediastinum",
        "Lung Lesion": "Lung Opacity",
        "Edema": "Lung Opacity",
        "Atelectasis": "Lung Opacity",
        "Consolidation": "Lung Opacity",
        "Pneumonia": "Consolidation",
    },
    normal="No Finding",
    neutral=frozenset({"Support Devices"}),
)

NIH = Task(
    "nih",
    (
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Fibrosis",
        "Pleural_Thickening",
        "Hernia",
    ),
)

PNEUMONIA = Task("pneumonia", ("Normal", "Pneumonia"), exclusive=True, normal="Normal")

COVID = Task("covid", ("Normal", "Pneumonia", "COVID-19", "Tuberculosis"), exclusive=True, normal="Normal")

TASKS = {task.name: task for task in (CHEXPERT, NIH, PNEUMONIA, COVID)}

# Of all built-in tasks together: the findings, those that mean "nothing abnormal", those that are no abnormality by
# themselves, and both of these.
FINDINGS = tuple(dict.fromkeys(finding for task in TASKS.values() for finding in task.findings))
NORMAL = frozenset(task.normal for task in TASKS.values() if task.normal)
NEUTRAL = frozenset(finding for task in TASKS.values() for finding in task.neutral)
HARMLESS = NORMAL | NEUTRAL


def task(name: str) -> Task:
    """Return a built-in task by name, or read one from a TOML file.

    Parameters
    ----------
    name : str
        A name in `TASKS`, or the path of a TOML file with the keys of `Task.to_dict`.

    Raises
    ------
    ConfigError
        When there is no such task, or its file is not one.
    """
    if name in TASKS:
        return TASKS[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"task {name!r}: neither built in ({', '.join(TASKS)}) nor a TOML file")
    try:
        return Task.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
