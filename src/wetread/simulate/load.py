"""How many clinics a server holds: each sends one study after the other and waits until it is ranked by its result.

Times are from the last byte of a study to the answer that says that it is analysed and has its place in the list. The
number of clinics doubles until the server is no longer fast enough, fails, or gives no more studies a second.
"""

from __future__ import annotations

import io
import itertools
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pydicom
from pydicom.uid import generate_uid

from wetread.errors import ClinicError, ConfigError, DeniedError, hide
from wetread.radiograph import phantom
from wetread.simulate.arrivals import connect

WAIT_S = 30.0  # the longest that the server holds an answer back
GAIN = 1.1  # a doubling that brings less than so much more is past the knee
_CHUNK = 65_536


@dataclass(frozen=True)
class Step:
    """What one number of clinics gave.

    Attributes
    ----------
    clinics : int
    seconds : float
    times : tuple of float
        Of each study, from its last byte to its ranked row, in s.
    errors : dict of str to int
        Reason → count.
    """

    clinics: int
    seconds: float
    times: tuple[float, ...]
    errors: Mapping[str, int]

    @property
    def rate(self) -> float:
        """Studies a second."""
        return len(self.times) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """Return a percentile of the times in s; NaN without any."""
        return float(np.percentile(self.times, share)) if self.times else float("nan")

    def holds(self, limit_s: float) -> bool:
        """Return whether nothing failed, and 95 % of the studies were ranked within the limit."""
        return bool(self.times) and not self.errors and self.percentile(95) <= limit_s

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, times in ms."""
        times = {f"p{share}_ms": round(1000 * self.percentile(share), 1) for share in (50, 95, 99) if self.times}
        most = {"max_ms": round(1000 * max(self.times), 1)} if self.times else {}
        counts = {"clinics": self.clinics, "studies": len(self.times), "per_s": round(self.rate, 2)}
        return {**counts, **times, **most, "errors": dict(self.errors)}


class Films:
    """New studies of one image each: a few phantoms, every time with UIDs and a patient of their own."""

    def __init__(self, size: int, seed: int, count: int = 8) -> None:
        bodies = (
            phantom.make(phantom.patient_seed(seed, n), view=("PA", "AP")[n % 2], size=size) for n in range(count)
        )
        self._films = [phantom.dicom(body) for body in bodies]
        self._run, self._number, self._lock = secrets.token_hex(3), 0, threading.Lock()

    def next(self) -> bytes:
        """Return another study."""
        with self._lock:
            self._number += 1
            number = self._number
        film = pydicom.dcmread(io.BytesIO(self._films[number % len(self._films)]))
        film.StudyInstanceUID, film.SeriesInstanceUID, film.SOPInstanceUID = (generate_uid() for _ in range(3))
        film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
        film.PatientID = f"L{self._run}-{number}"
        film.PatientName, film.AccessionNumber = f"Load^{film.PatientID}", f"{self._run}{number:08d}"
        stream = io.BytesIO()
        film.save_as(stream, enforce_file_format=True)
        return stream.getvalue()


def send(client: httpx.Client, content: bytes) -> tuple[float, str]:
    """Send one study and wait until it is ranked.

    Returns
    -------
    seconds : float
        From the last byte to the answer.
    error : str
        Empty when it is ranked by its result.

    Raises
    ------
    DeniedError
        When the token is not accepted.
    """
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="load.dcm"\r\n'
        "Content-Type: application/dicom\r\n\r\n"
    ).encode()
    body = head + content + f"\r\n--{boundary}--\r\n".encode()
    sent = 0.0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for begin in range(0, len(body), _CHUNK):
            yield body[begin : begin + _CHUNK]
        sent = time.perf_counter()

    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(len(body))}
    try:
        response = client.post("/api/v1/studies", content=pieces(), headers=headers, params={"wait": WAIT_S})
    except httpx.HTTPError as error:
        return 0.0, type(error).__name__
    took = time.perf_counter() - sent
    if response.status_code in (401, 403):
        raise DeniedError(f"{hide(str(client.base_url))}: token not accepted; make one with `wetread token`")
    if response.status_code != 201:
        return took, f"HTTP {response.status_code}"
    status = response.json()["studies"][0]["status"]
    return took, "" if status == "analysed" else f"not ranked by a result ({status})"


def measure(clinics: Sequence[httpx.Client], films: Films, seconds: float, *, pause_s: float = 0.0) -> Step:
    """Let clinics send for so long, each a study at a time, with a pause between two."""
    stop = time.perf_counter() + seconds

    def clinic(client: httpx.Client) -> list[tuple[float, str]]:
        found = []
        while time.perf_counter() < stop:
            found.append(send(client, films.next()))
            if pause_s:
                time.sleep(pause_s)
        return found

    begun = time.perf_counter()
    with ThreadPoolExecutor(len(clinics), "clinic") as pool:
        answers = [answer for found in pool.map(clinic, clinics) for answer in found]
    took = time.perf_counter() - begun
    times = tuple(seconds for seconds, error in answers if not error)
    return Step(len(clinics), took, times, Counter(error for _, error in answers if error))


def run(
    url: str,
    token: str,
    *,
    clinics: int = 4,
    most: int = 64,
    seconds: float = 15.0,
    limit_s: float = 1.0,
    pause_s: float = 0.0,
    size: int = 1024,
    seed: int = 0,
    say: Callable[[Step], object] = lambda step: None,
) -> list[Step]:
    """Double the number of clinics until the knee is passed; return the steps.

    Parameters
    ----------
    url, token : str
        A token that may upload; what is sent stays in the worklist.
    clinics, most : int
        How many at first, and at most.
    seconds : float
        How long each number sends.
    limit_s : float
        Within which 95 % must be ranked.
    pause_s : float
        Between two studies of a clinic.
    size : int
        Side of the radiographs in pixels.
    seed : int
    say : callable
        Takes each step once it is done.

    Raises
    ------
    ConfigError
        For numbers that cannot be.
    ClinicError, DeniedError
        When there is no server, no model analyses what is sent, or the token is not accepted.
    """
    if not (1 <= clinics <= most <= 1024 and 0 < seconds <= 1e6 and limit_s > 0 and 0 <= pause_s <= 1e6):
        raise ConfigError(
            f"load: clinics = {clinics}, most = {most}, seconds = {seconds}, limit = {limit_s}, pause = {pause_s}: "
            "must be 1 <= clinics <= most <= 1024, times above 0 and at most a million s"
        )
    films, steps, number = Films(size, seed), list[Step](), clinics
    with connect(url, token) as first:
        for _ in range(3):  # the first ones warm up
            _, error = send(first, films.next())
        if error == "ConnectError":
            raise ClinicError(f"{hide(url)}: no server there; start `wetread serve`")
        if error:
            raise ClinicError(f"{hide(url)}: a study is not answered with a result: {error}; serve the model phantom")
    while number <= most:
        open_clients = [connect(url, token) for _ in range(number)]
        try:
            steps.append(measure(open_clients, films, seconds, pause_s=pause_s))
        finally:
            for client in open_clients:
                client.close()
        say(steps[-1])
        if not steps[-1].holds(limit_s):
            break
        number *= 2
    return steps


def report(steps: Sequence[Step], limit_s: float) -> dict[str, Any]:
    """Return the steps ready for JSON, with the knee and the verdict on the first number of clinics.

    `knee` is the largest number of clinics that was held within the limit without an error, 0 for none; `saturated`
    the first doubling that brought less than a tenth more studies a second, null for none.
    """
    held = [step.clinics for step in steps if step.holds(limit_s)]
    pairs = itertools.pairwise(steps)
    flat = next((later.clinics for one, later in pairs if later.rate < GAIN * one.rate), None)
    return {
        "limit_s": limit_s,
        "steps": [step.to_dict() for step in steps],
        "knee": max(held, default=0),
        "saturated": flat,
        "passed": bool(steps) and steps[0].holds(limit_s),
    }


def table(found: Mapping[str, Any]) -> str:
    """Return a report as Markdown."""
    lines = ["| clinics | studies/s | p50 ms | p95 ms | p99 ms | errors |", "|---|---|---|---|---|---|"]
    for step in found["steps"]:
        times = " | ".join(f"{step[name]:.0f}" if name in step else "–" for name in ("p50_ms", "p95_ms", "p99_ms"))
        errors = ", ".join(f"{count} {reason}" for reason, count in step["errors"].items()) or "0"
        lines.append(f"| {step['clinics']} | {step['per_s']:.1f} | {times} | {errors} |")
    more = "" if found["saturated"] is None else f"; no more studies a second from {found['saturated']} on"
    lines.append(f"\nKnee: {found['knee']} clinics with 95 % within {found['limit_s']:g} s{more}")
    return "\n".join(lines)
