"""What a simulated reader sees in a study whose truth is known, and what they answer to the model.

Each finding is one draw: a finding that is there is seen with the sensitivity, one that is not with 1 - specificity.
A reader who is anchored then gives up their own opinion where a sure word of the model is wrong. What is seen is
closed up the tree, so that an answer never contradicts itself. All draws of one reader and one study come from a
generator of their own: the order in which studies are read changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

from wetread.errors import ConfigError
from wetread.findings import CHEXPERT, HARMLESS
from wetread.simulate.truth import ABNORMAL, Case

Seen = dict[str, bool]
NORMAL = ("No Finding", "Normal")


@dataclass(frozen=True)
class Skill:
    """How well somebody reads.

    Attributes
    ----------
    sensitivity, specificity : float
        Of each finding; of a study as a whole when `overall`, and where the truth is only abnormal or not.
    findings : dict of str to (float, float)
        Those of single findings.
    overall : bool
        One draw a study: who calls an abnormal one abnormal names all its findings, who misses it none; who calls a
        normal one abnormal names one finding, any of them.
    anchoring : float
        Chance of following a wrong call of the model, for each finding on which it is sure.
    unsure : float
        Chance of answering *unsure*, for each finding.

    Raises
    ------
    ConfigError
        For a chance that is none.
    """

    sensitivity: float = 0.9
    specificity: float = 0.95
    findings: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    overall: bool = False
    anchoring: float = 0.0
    unsure: float = 0.0

    def __post_init__(self) -> None:
        chances = [(name, getattr(self, name)) for name in ("sensitivity", "specificity", "anchoring", "unsure")]
        chances += [(f"findings: {name}", chance) for name, pair in self.findings.items() for chance in pair]
        for name, chance in chances:
            if not 0 <= chance <= 1:
                raise ConfigError(f"reader: {name} = {chance}: must be 0 to 1")
        if self.overall and self.findings:
            raise ConfigError("reader: findings: have no accuracy of their own when it is overall; leave one out")

    def sees(self, case: Case, rng: np.random.Generator) -> Seen:
        """Return what the reader sees by themselves: finding → whether it is there; `abnormal` where that is all."""
        known = {name: bool(value) for name, value in sorted(case.findings.items()) if name not in NORMAL}
        if not known:
            return {ABNORMAL: self._draw(bool(case.abnormal), (self.sensitivity, self.specificity), rng)}
        if not self.overall:
            own = (self.sensitivity, self.specificity)
            return closed({name: self._draw(there, self.findings.get(name, own), rng) for name, there in known.items()})
        ill = self._draw(bool(case.abnormal), (self.sensitivity, self.specificity), rng)
        harmful = [name for name in known if name not in HARMLESS]
        seen = {name: there and (ill or name in HARMLESS) for name, there in known.items()}
        if ill and not case.abnormal and harmful:
            seen[harmful[int(rng.integers(len(harmful)))]] = True
        return closed(seen)

    def follows(self, seen: Seen, case: Case, said: Mapping[str, Mapping[str, Any]], rng: np.random.Generator) -> Seen:
        """Return what is left of it once the model's word was read; `said` is finding → what the model says of it."""
        after = dict(seen)
        for name in sorted(seen):
            told = said.get(name, {}).get("call")
            wrong = told in ("likely", "unlikely") and (told == "likely") != bool(case.findings.get(name, 0))
            gives_in = rng.random() < self.anchoring
            if wrong and gives_in and name != ABNORMAL:
                after[name] = told == "likely"
        return closed(after)

    def answers(
        self, seen: Seen, said: Mapping[str, Mapping[str, Any]], rng: np.random.Generator
    ) -> list[dict[str, str]]:
        """Return the answers to the model's findings, and what it did not name, as the API takes them."""
        found = []
        for name, told in said.items():
            there = present(name, seen)
            doubts = rng.random() < self.unsure
            if there is None:
                continue
            agrees = there == (told["call"] != "unlikely")
            found.append({"finding": name, "answer": "unsure" if doubts else "agree" if agrees else "disagree"})
        named = [name for name, there in seen.items() if there and name not in said]
        return found + [{"finding": name, "answer": "added"} for name in named]

    @staticmethod
    def _draw(there: bool, accuracy: tuple[float, float], rng: np.random.Generator) -> bool:
        sensitivity, specificity = accuracy
        return bool(rng.random() < (sensitivity if there else 1 - specificity))


def closed(seen: Seen) -> Seen:
    """Return it with the parents of what is there; of findings that the truth knows."""
    there = [name for name, is_there in seen.items() if is_there and name in CHEXPERT.findings]
    above = {step for name in there for step in CHEXPERT.path(name)}
    return {name: is_there or name in above for name, is_there in seen.items()}


def is_normal(seen: Seen) -> bool:
    """Return whether nothing abnormal is seen."""
    return not any(there for name, there in seen.items() if name not in HARMLESS)


def present(name: str, seen: Seen) -> bool | None:
    """Return whether a finding of the model is there for a reader who sees so much; None where they have no opinion.

    A reader who only knows normal or not denies every abnormality of a normal study, and of an abnormal one says
    nothing of its findings.
    """
    if name in NORMAL:
        return is_normal(seen)
    if name in seen:
        return seen[name]
    return False if ABNORMAL in seen and not seen[ABNORMAL] and name not in HARMLESS else None


def highest(findings: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return what the models say of each finding; of several, that with the highest probability."""
    said: dict[str, Mapping[str, Any]] = {}
    for each in findings:
        if each["finding"] not in said or each["probability"] > said[each["finding"]]["probability"]:
            said[each["finding"]] = each
    return said


def generator(seed: int, reader: str, patient: str) -> np.random.Generator:
    """Return the generator of all draws of one reader for one study."""
    return np.random.default_rng([seed, crc32(reader.encode()), crc32(patient.encode())])
