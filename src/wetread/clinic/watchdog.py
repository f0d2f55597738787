"""Watching the models at work: when one fails, says so once.

A model fails when it breaks on several different images in a row or on a large share of the last ones, when it takes
too long, when its server is out of reach for long, or when all pictures get the same answer. One bad file, however
often it is tried, is one image; a file that cannot be read, or a queue that is full, is no failure of the model.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wetread.clinic.jobs import Job
from wetread.config import Settings
from wetread.infer.predict import Analysis

_LEAST = 20  # images of which a share is taken
_DIGITS = 6


@dataclass
class _Record:
    """What is known of one model."""

    failing: set[str] = field(default_factory=set)  # images since the last success
    lately: OrderedDict[str, bool] = field(default_factory=OrderedDict)  # image → failed
    answers: OrderedDict[bytes, tuple[float, ...]] = field(default_factory=OrderedDict)  # picture → probabilities
    away_since: float | None = None  # its server


class Watchdog:
    """Counts what goes wrong.

    Parameters
    ----------
    settings : Settings
    fail : callable
        Called with the model's id, the cause and the words, when a model fails; may be called again for a model that
        is off by then.
    clock : callable
        Seconds that never go back.
    """

    def __init__(
        self, settings: Settings, fail: Callable[[str, str, str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._fail, self._clock = settings, fail, clock
        self._records: dict[str, _Record] = {}
        self._under_way: dict[int, tuple[Job, float]] = {}
        self._lock = threading.Lock()

    def reset(self, model: str) -> None:
        """Forget what a model did, when it begins again."""
        with self._lock:
            self._records.pop(model, None)

    def began(self, job: Job) -> None:
        """Note that a model works on an image."""
        with self._lock:
            self._under_way[job.id] = (job, self._clock())

    def left(self, job: Job) -> None:
        """Note that it does not any more, without a word on the model."""
        with self._lock:
            self._under_way.pop(job.id, None)

    def busy(self) -> set[str]:
        """Return the models that work on an image at this moment."""
        with self._lock:
            return {job.model for job, _ in self._under_way.values()}

    def failed(self, job: Job, error: Exception) -> None:
        """Note that the model broke on an image."""
        self._note(job, failed=type(error).__name__)

    def done(self, job: Job, analysis: Analysis | None) -> None:
        """Note what the model said."""
        limit = self._settings.ai_timeout_s
        with self._lock:
            _, since = self._under_way.get(job.id, (job, self._clock()))
            slow = self._clock() - since > limit
        self._note(job, failed=f"no answer within {limit:g} s" if slow else "")
        if analysis is not None and analysis.suitable and analysis.seen is not None:
            self._answered(job.model, analysis)

    def look(self, remotes: Mapping[str, Any]) -> None:
        """Look at what does not end by itself: analyses under way, and servers out of reach (model id → `Remote`)."""
        now, limit = self._clock(), self._settings.ai_timeout_s
        with self._lock:
            hanging = [job for job, since in self._under_way.values() if now - since > limit]
        for job in hanging:
            self._note(job, failed=f"no answer within {limit:g} s", ended=False)
        longest = self._settings.ai_remote_minutes
        for model, remote in remotes.items():
            with self._lock:
                record = self._records.setdefault(model, _Record())
                if remote.breaker.state == "closed":
                    record.away_since = None
                    continue
                record.away_since = now if record.away_since is None else record.away_since
                away = now - record.away_since
            if longest and away > longest * 60:
                self._fail(model, "remote", f"its server has been out of reach for {longest:g} min")

    def _note(self, job: Job, failed: str, *, ended: bool = True) -> None:
        settings, cause, words = self._settings, "", ""
        with self._lock:
            if ended:
                self._under_way.pop(job.id, None)
            record = self._records.setdefault(job.model, _Record())
            record.lately[job.image] = bool(failed)
            record.lately.move_to_end(job.image)
            while len(record.lately) > settings.ai_window:
                record.lately.popitem(last=False)
            if not failed:
                record.failing.clear()
                return
            record.failing.add(job.image)
            broken = sum(record.lately.values())
            if len(record.failing) >= settings.ai_failures:
                cause = "timeout" if failed.startswith("no answer") else "failures"
                words = f"it failed on {len(record.failing)} images in a row ({failed})"
            elif len(record.lately) >= _LEAST and broken >= settings.ai_failure_share * len(record.lately):
                cause, words = "share", f"it failed on {broken} of the last {len(record.lately)} images ({failed})"
        if cause:
            self._fail(job.model, cause, words)

    def _answered(self, model: str, analysis: Analysis) -> None:
        assert analysis.seen is not None
        picture = hashlib.sha256(analysis.seen.array.tobytes()).digest()
        said = tuple(round(finding.probability, _DIGITS) for finding in analysis.findings)
        with self._lock:
            answers = self._records.setdefault(model, _Record()).answers
            answers[picture] = said
            answers.move_to_end(picture)
            while len(answers) > self._settings.ai_collapse:
                answers.popitem(last=False)
            enough = len(answers) == self._settings.ai_collapse
            same = len(set(answers.values())) == 1
            flat = len(said) > 1 and all(len(set(each)) == 1 for each in answers.values())
        if enough and (same or flat):
            words = "the same probabilities" if same else "one probability for every finding"
            self._fail(model, "collapse", f"it gave {self._settings.ai_collapse} different pictures in a row {words}")
