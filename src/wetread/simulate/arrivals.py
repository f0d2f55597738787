"""Patients sent to a running server at the times at which they come, and what became of each."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from wetread.errors import ClinicError, DeniedError, hide
from wetread.simulate.department import Patient
from wetread.simulate.ways import Answer, UnreachableError, Way, absent, nobody

Recorder = Callable[[Patient, Answer], None]


@dataclass
class Summary:
    """What became of the arrivals.

    Attributes
    ----------
    seconds : float
        From the first wait to the last answer.
    outcomes : list of (str, float)
        For each study sent, "accepted" or the reason of the failure, and the time in s from the
        moment it was due to the server's answer: a late start counts against the server, but not that a patient was
        made too late.
    retries : int
        How often something was sent again.
    behind_s : float
        How far the making of patients fell behind their times at most, in s; above 0 this machine was too slow.
    """

    seconds: float = 0.0
    outcomes: list[tuple[str, float]] = field(default_factory=list)
    retries: int = 0
    behind_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return counts, reasons of failures, and latencies in ms, ready for JSON."""
        reasons = Counter(outcome for outcome, _ in self.outcomes)
        accepted = reasons.pop("accepted", 0)
        summary: dict[str, Any] = {
            "sent": len(self.outcomes),
            "accepted": accepted,
            "failed": len(self.outcomes) - accepted,
            "retries": self.retries,
            "reasons": dict(reasons.most_common()),
            "seconds": round(self.seconds, 3),
            "behind_s": round(self.behind_s, 3),
        }
        if accepted:
            latencies = [1000 * latency for outcome, latency in self.outcomes if outcome == "accepted"]
            p50, p95, most = np.percentile(latencies, [50, 95, 100])
            summary["latency_ms"] = {"p50": round(p50, 1), "p95": round(p95, 1), "max": round(most, 1)}
        return summary


@dataclass(frozen=True)
class Patience:
    """How often something is sent, and how long the first wait between is; it doubles each time, up to `longest_s`."""

    tries: int = 8
    first_s: float = 0.5
    longest_s: float = 30.0

    def wait(self, failed: int, after_s: float | None) -> float:
        """Return how long to wait after so many failures; what the server asks for wins."""
        own = self.first_s * 2.0 ** (failed - 1)
        return float(min(max(own, after_s or 0.0), self.longest_s))


def connect(url: str, token: str, *, timeout_s: float = 60.0) -> httpx.Client:
    """Return a client of the server at `url` that carries the API token.

    Raises
    ------
    ClinicError
        When the address is not one.
    DeniedError
        When the token cannot be one.
    """
    if not (token.isascii() and token.isprintable() and token.strip()):
        raise DeniedError("the token is empty or has characters that no token has; make one with `wetread token`")
    try:
        headers = {"Authorization": f"Bearer {token.strip()}"}
        return httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)
    except httpx.InvalidURL as error:
        raise ClinicError(f"{hide(url)}: not an address ({error}); give one like http://127.0.0.1:8080") from None


def send(
    patients: Iterable[Patient],
    gaps: Iterable[float],
    way: Way,
    *,
    stop: threading.Event | None = None,
    senders: int = 8,
    batch: int = 1,
    patience: Patience | None = None,
    record: Recorder | None = None,
) -> Summary:
    """Send each patient when it is due, whether or not the server has answered the one before.

    What the server puts off (503, 507, 429, A700), and what gets no answer, is sent again; what never succeeds is
    counted and recorded with its reason.

    Parameters
    ----------
    patients, gaps : iterables
        The arrivals, and the wait before each in s; the shorter one ends the simulation.
    way : Way
        To the server.
    stop : threading.Event, optional
        Set it to end the simulation early, as Ctrl-C does; what was sent is still answered and counted.
    senders : int
        Most requests in flight.
    batch : int
        So many patients are sent together, when the last of them is due.
    patience : Patience, optional
    record : callable, optional
        Takes each patient with the last answer, in any thread.

    Raises
    ------
    DeniedError
        When the server does not accept the token.
    ClinicError
        When there is no server at the address.
    """
    stop, patience = stop or threading.Event(), patience or Patience()
    crew = _Crew(way, stop, patience, record)
    start = due = time.monotonic()
    together: list[tuple[Patient, float]] = []
    with ThreadPoolExecutor(senders, "arrivals") as pool:
        try:
            for patient, gap in zip(patients, gaps, strict=False):
                due += gap
                late = time.monotonic() - due
                crew.summary.behind_s = max(crew.summary.behind_s, late)
                if stop.wait(max(0.0, due - time.monotonic())):
                    break
                together.append((patient, due + max(0.0, late)))
                if len(together) == batch:
                    pool.submit(crew.post, together)
                    together = []
            if together and not stop.is_set():
                pool.submit(crew.post, together)
        except KeyboardInterrupt:
            stop.set()  # what was put off is given up, and recorded so
    if crew.fatal:
        raise crew.fatal[0]
    crew.summary.seconds = time.monotonic() - start
    return crew.summary


class _Crew:
    """Who sends: counts what became of each study, in any thread."""

    def __init__(self, way: Way, stop: threading.Event, patience: Patience, record: Recorder | None) -> None:
        self.way, self.stop, self.patience, self.record = way, stop, patience, record
        self.summary, self.fatal, self._lock = Summary(), list[ClinicError](), threading.Lock()
        self._answered = False  # by anything at all: from then on a server that is away may come back

    def post(self, together: Sequence[tuple[Patient, float]]) -> None:
        """Send patients until each is accepted, refused for good, or given up."""
        waiting, failed = list(together), 0
        try:
            while waiting:
                answers = self._try([patient for patient, _ in waiting])
                failed += 1
                later = []
                for (patient, due), answer in zip(waiting, answers, strict=True):
                    if answer.again and failed < self.patience.tries and not self.stop.is_set():
                        later.append((patient, due, answer.after_s))
                    else:
                        self._done(patient, due, answer)
                waiting = [(patient, due) for patient, due, _ in later]
                if waiting:
                    with self._lock:
                        self.summary.retries += 1
                    asked = max((after for *_, after in later if after is not None), default=None)
                    self.stop.wait(self.patience.wait(failed, asked))
        except ClinicError as error:
            self._give_up(error)
        except Exception as error:  # a thread of a pool would lose it without a word
            self._give_up(ClinicError(f"arrivals: {type(error).__name__}: {error}"))

    def _try(self, patients: list[Patient]) -> list[Answer]:
        try:
            answers = self.way(patients)
        except UnreachableError as error:
            if nobody(error) and not self._answered:
                raise absent(self.way.where, error) from None
            return [Answer(str(error), again=True)] * len(patients)
        self._answered = True
        return answers

    def _done(self, patient: Patient, due: float, answer: Answer) -> None:
        with self._lock:
            self.summary.outcomes.append((answer.outcome, time.monotonic() - due))
        if self.record is not None:
            self.record(patient, answer)

    def _give_up(self, error: ClinicError) -> None:
        self.fatal.append(error)
        self.stop.set()
