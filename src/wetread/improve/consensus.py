"""What the readers of a study say of each finding, taken together: agreed, or uncertain where they are not of one mind.

A reader's word is their last signed one: an addendum of their own corrects them, and what was taken back is not there
at all. An addendum that only repeats what it is added to is no second opinion. Labels are 1 present, 0 absent, -1
uncertain; a finding of which nobody said anything has none. Uncertain is

- what a reader called unsure;
- what two readers answered differently;
- what a reader who read blind said otherwise before they were shown the model's word than after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from wetread.clinic import own_call
from wetread.clinic.export import labels_of
from wetread.findings import ABSENT, HARMLESS, PRESENT, UNCERTAIN, Task


@dataclass(frozen=True)
class Reading:
    """A signed review.

    Attributes
    ----------
    id : str
    reader : str
    parent : str or None
        The review to which it is an addendum.
    anchored : bool
        Whether the reader had the model's word before they made up their own mind.
    signed_at : datetime
    normal : bool
    answers : mapping of finding to (answer, call)
        With what the model had called.
    own_call : mapping or None
        ``normal`` and ``findings``, said before the model's word was shown.
    models : mapping of finding to (str, float)
        Whose call it was that was answered, SHA-256 of the package, and the probability that came with it.
    """

    id: str
    reader: str
    parent: str | None
    anchored: bool
    signed_at: datetime
    normal: bool
    answers: Mapping[str, tuple[str, str | None]]
    own_call: Mapping[str, Any] | None = None
    models: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def said(self) -> dict[str, int]:
        """The labels that the answers stand for, as an export has them."""
        return labels_of({"normal": self.normal, "answers": self.answers})


def labels(readings: Sequence[Reading], task: Task) -> tuple[dict[str, int], frozenset[str]]:
    """Return the labels of a study, and the findings on which there is no agreement.

    Parameters
    ----------
    readings : sequence of Reading
        All that are signed and in force, in order of signature.
    task : Task
        Whose tree tells which finding is a kind of which.
    """
    words = [_with_own_call(last.said, own, task) for last, own in _readers(readings)]
    disputed = {f for said, changed in words for f in changed}
    found: dict[str, int] = {}
    for finding in {f for said, _ in words for f in said}:
        values = {said[finding] for said, _ in words if finding in said}
        found[finding] = values.pop() if len(values) == 1 else UNCERTAIN
        if values:
            disputed.add(finding)
    found |= dict.fromkeys(disputed, UNCERTAIN)
    for finding, value in list(found.items()):  # what may be there is a kind of something that may be there
        if value == UNCERTAIN and finding in task.findings:
            above = [f for f in task.path(finding)[:-1] if found.get(f) == ABSENT]
            found |= dict.fromkeys(above, UNCERTAIN)
    return found, frozenset(disputed)


def first(readings: Sequence[Reading]) -> Reading:
    """Return the last word of whoever signed first: as they signed it, or as their own addendum corrects it."""
    return _readers(readings)[0][0]


def blind_labels(readings: Sequence[Reading], task: Task) -> dict[str, int] | None:
    """Return what was said before any model's word was known (`own_call.labels`); None when nobody said anything so."""
    said = [own_call.labels(own, task) for _, own in _readers(readings) if own is not None]
    if not said:
        return None
    return {f: said[0][f] if len({one.get(f) for one in said}) == 1 else UNCERTAIN for f in said[0]}


def is_blind(readings: Iterable[Reading]) -> bool:
    """Return whether anybody made up their own mind before the model's word was shown."""
    return any(reading.own_call is not None and not reading.anchored for reading in readings)


def _readers(readings: Sequence[Reading]) -> list[tuple[Reading, Mapping[str, Any] | None]]:
    """Return each reader's last word, and the call that they made by themselves, if so."""
    before = {reading.id: reading for reading in readings}
    last: dict[str, Reading] = {}
    own: dict[str, Mapping[str, Any]] = {}
    for reading in readings:
        parent = before.get(reading.parent or "")
        repeats = parent is not None and parent.said == reading.said
        if not repeats or parent is None or parent.reader == reading.reader:
            last[reading.reader] = reading
        if reading.own_call is not None and not reading.anchored:
            own.setdefault(reading.reader, reading.own_call)
    return [(reading, own.get(reader)) for reader, reading in last.items()]


def _with_own_call(
    said: Mapping[str, int], own: Mapping[str, Any] | None, task: Task
) -> tuple[dict[str, int], set[str]]:
    """Return a reader's labels, and those findings of which they said something else before the model's word."""
    if own is None:
        return dict(said), set()
    named = own_call.named(own, task)
    changed = {f for f in said if f in named and said[f] != named[f] and UNCERTAIN not in (said[f], named[f])}
    for finding, value in said.items():  # seen only when the model had said so; devices nobody names by themselves
        if value == PRESENT and finding not in named and finding not in HARMLESS:
            known = task.path(finding)[:-1] if finding in task.findings else ()
            if not any(named.get(f) == PRESENT for f in known):
                changed.add(finding)
    return {**named, **said} | dict.fromkeys(changed, UNCERTAIN), changed
