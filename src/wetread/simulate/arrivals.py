"""Patients sent to a running server over its own HTTP intake, at the times of a Poisson process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from wetread.errors import ClinicError, DeniedError, hide
from wetread.simulate.department import Patient


@dataclass
class Summary:
    """What became of the arrivals.

    Attributes
    ----------
    seconds : float
        From the first wait to the last answer.
    outcomes : list of (str, float)
        For each study sent, "accepted" or the reason of the failure, and the time in s from the
        moment it was due to the server's answer: a late start counts against the server.
    """

    seconds: float = 0.0
    outcomes: list[tuple[str, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return counts, reasons of failures, and latencies in ms, ready for JSON."""
        reasons = Counter(outcome for outcome, _ in self.outcomes)
        accepted = reasons.pop("accepted", 0)
        summary: dict[str, Any] = {
            "sent": len(self.outcomes),
            "accepted": accepted,
            "failed": len(self.outcomes) - accepted,
            "reasons": dict(reasons.most_common()),
            "seconds": round(self.seconds, 3),
        }
        if accepted:
            latencies = [1000 * latency for outcome, latency in self.outcomes if outcome == "accepted"]
            p50, p95, most = np.percentile(latencies, [50, 95, 100])
            summary["latency_ms"] = {"p50": round(p50, 1), "p95": round(p95, 1), "max": round(most, 1)}
        return summary


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
    client: httpx.Client,
    *,
    stop: threading.Event | None = None,
    senders: int = 8,
) -> Summary:
    """Send each patient when it is due, whether or not the server has answered the one before.

    Parameters
    ----------
    patients, gaps : iterables
        The arrivals, and the wait before each in s; the shorter one ends the simulation.
    client : httpx.Client
        From `connect`.
    stop : threading.Event, optional
        Set it to end the simulation early, as Ctrl-C does; what was sent is still answered and counted.
    senders : int
        Most requests in flight.

    Raises
    ------
    DeniedError
        When the server does not accept the token.
    ClinicError
        When there is no server at the address.
    """
    stop = stop or threading.Event()
    summary = Summary()
    fatal: list[ClinicError] = []

    def post(patient: Patient, due: float) -> None:
        try:
            response = client.post("/api/v1/studies", files=[("files", file) for file in patient.files])
        except httpx.HTTPError as error:
            outcome = type(error).__name__
            if not summary.outcomes and isinstance(error, (httpx.ConnectError, httpx.UnsupportedProtocol)):
                fatal.append(
                    ClinicError(f"{hide(str(client.base_url))}: no server there ({error}); start `wetread serve`")
                )
                stop.set()
        else:
            outcome = "accepted" if response.status_code == 201 else f"HTTP {response.status_code}"
            if response.status_code in (401, 403):
                fatal.append(
                    DeniedError(f"{hide(str(client.base_url))}: token not accepted; make one with `wetread token`")
                )
                stop.set()
        summary.outcomes.append((outcome, time.monotonic() - due))

    start = due = time.monotonic()
    with ThreadPoolExecutor(senders, "arrivals") as pool, suppress(KeyboardInterrupt):
        for patient, gap in zip(patients, gaps, strict=False):
            due += gap
            if stop.wait(max(0.0, due - time.monotonic())):
                break
            pool.submit(post, patient, due)
    if fatal:
        raise fatal[0]
    summary.seconds = time.monotonic() - start
    return summary
