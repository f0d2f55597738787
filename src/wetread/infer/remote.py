"""A model on another machine, over the Open Inference Protocol v2, with the local runtime to fall back on.

The remote server must serve the very package that lies here. Before it is trusted, at the start and whenever the
breaker closes again, its answers to the golden radiographs are compared, and its version: Wetread gives the package's
id as version; of a server that numbers versions (Triton) the newest is taken and held to. Each answer must name that
version and have the right shapes. Anything else is a failure, and the local runtime answers instead.

A circuit breaker keeps a dead server from costing its time-out again and again::

    closed ──(failures in a row)──► open ──(pause)──► half-open ──(golden outputs kept)──► closed
                                      ▲                   │
                                      └────(failure)──────┘

Only pixels leave this machine: no identifier, no age, no sex.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray

from wetread.errors import ConfigError, ModelError
from wetread.infer import tensors
from wetread.infer.runtime import Engine, feed
from wetread.infer.tensors import ProtocolError
from wetread.model import golden
from wetread.model.golden import Outputs
from wetread.model.package import Package

log = logging.getLogger(__name__)

SCHEME = "v2+"
State = Literal["closed", "half-open", "open"]
_CONNECT_S = 2.0
_BACKOFF_S = 0.1
_MOST_BYTES = 256 * 2**20  # of an answer


class RemoteError(ModelError):
    """The remote server did not answer, or not as it must."""


class Breaker:
    """Says whether a call may be tried.

    Parameters
    ----------
    failures : int
        Failures in a row that open it.
    pause_s : float
        How long it stays open before one trial, in s.
    clock : callable
        Seconds that never go back.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._pause, self._clock = failures, pause_s, clock
        self._lock = threading.Lock()
        self._failed, self._opened_at = 0, clock()
        self.state: State = "closed"

    def allows(self) -> bool:
        """Return whether to try; when open long enough it becomes half-open and lets exactly one caller try."""
        with self._lock:
            if self.state == "open" and self._clock() - self._opened_at >= self._pause:
                self.state = "half-open"
                return True
            return self.state == "closed"

    def succeeded(self) -> None:
        """Close it."""
        with self._lock:
            self.state, self._failed = "closed", 0

    def failed(self, *, at_once: bool = False) -> None:
        """Count a failure; a trial that fails, or one `at_once`, opens it."""
        with self._lock:
            self._failed += 1
            if at_once or self.state == "half-open" or self._failed >= self._most:
                self.state, self._opened_at = "open", self._clock()


class Remote:
    """An engine that asks a remote server first and the local engine when that does not answer.

    Parameters
    ----------
    package : Package
        Must be served there too.
    url : str
        ``http(s)://host[:port][/prefix]/NAME``, where the server answers ``/v2/models/NAME`` below the prefix.
    local : Engine
        Of the same package.
    token : str
        Sent as ``Authorization: Bearer`` unless empty.
    timeout_s : float
        Longest wait for the remote's answer over all tries, in s.
    retries : int
        Further tries after a failure, within that time.
    failures, pause_s
        Of the circuit breaker.
    transport : httpx.BaseTransport, optional
        For tests.

    Attributes
    ----------
    breaker : Breaker
    reason : str
        Why it is not closed.
    """

    def __init__(
        self,
        package: Package,
        url: str,
        local: Engine,
        *,
        token: str = "",
        timeout_s: float = 10.0,
        retries: int = 1,
        failures: int = 3,
        pause_s: float = 15.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base, self.name = split(url)
        self._path, self._version = f"/v2/models/{self.name}", package.id
        self.package, self.local, self.host = package, local, httpx.URL(base).host
        self._timeout, self._retries = timeout_s, retries
        self._client = httpx.Client(
            base_url=base,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            follow_redirects=False,
            transport=transport,
        )
        self.breaker, self.reason = Breaker(failures, pause_s), ""
        self._counts, self._counting = Counter[str](), threading.Lock()
        self._prove()

    @property
    def runtime(self) -> str:
        """Which runtime answers now."""
        return f"remote ({self.host})" if self.breaker.state == "closed" else self.local.runtime

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Run a batch there, or here when the remote does not answer in time; see `Engine.run`."""
        if self.breaker.allows() and (self.breaker.state == "closed" or self._prove()):
            try:
                outputs = self._ask(pixels)
            except RemoteError as error:
                self._failed(error)
            else:
                self.breaker.succeeded()
                self._count("remote")
                return outputs
        self._count("local")
        return self.local.run(pixels)

    def since(self) -> Counter[str]:
        """Return what happened since it was last asked: batches ``remote`` and ``local``, ``failed``, ``opened``."""
        with self._counting:
            counts, self._counts = self._counts, Counter[str]()
        return counts

    def _count(self, what: str) -> None:
        with self._counting:
            self._counts[what] += 1

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _prove(self) -> bool:
        """Trust the remote if it serves this package and keeps its golden outputs."""
        try:
            self._version = self._choose(self._metadata().get("versions"))
            golden.check(self.package, self._ask)
        except ModelError as error:
            self._failed(error, at_once=True)
            return False
        if self.reason:
            log.warning("model %s: the remote server answers again", self.package.name)
        self.breaker.succeeded()
        self.reason = ""
        return True

    def _failed(self, error: ModelError, *, at_once: bool = False) -> None:
        was = self.breaker.state
        self.breaker.failed(at_once=at_once)
        self._count("failed")
        self.reason = str(error)
        if self.breaker.state == "open" and was != "open":
            self._count("opened")
            log.warning("model %s: the remote server is left alone for a while: %s", self.package.name, error)

    def _choose(self, versions: Any) -> str:
        if isinstance(versions, list) and self.package.id in versions:
            return self.package.id
        numbers = versions if isinstance(versions, list) else []
        if not numbers or not all(
            isinstance(n, str) and n.isascii() and n.isdecimal() and len(n) < 12 for n in numbers
        ):
            raise RemoteError(f"serves another package than {self.package.name} {self.package.id[:12]}")
        return str(max(numbers, key=int))

    def _metadata(self) -> dict[str, Any]:
        _, body = self._send("GET", self._path, time.monotonic() + self._timeout)
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            raise RemoteError("metadata: not JSON") from None
        if not isinstance(found, dict):
            raise RemoteError("metadata: not an object")
        return found

    def _ask(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Ask until an answer comes, the tries are used up or the time is over."""
        inputs = feed(pixels)
        request = {"parameters": {"binary_data_output": True}}
        content, length = tensors.pack(request, "inputs", inputs, inputs)
        headers = {tensors.HEADER: str(length), "Content-Type": "application/octet-stream"}
        path, until = f"{self._path}/versions/{self._version}/infer", time.monotonic() + self._timeout
        for left in range(self._retries, -1, -1):
            try:
                response, body = self._send("POST", path, until, content=content, headers=headers)
                return self._read(response, body, pixels)
            except RemoteError:
                if not left or time.monotonic() + _BACKOFF_S >= until:
                    raise
                time.sleep(_BACKOFF_S * 2 ** (self._retries - left))
        raise AssertionError("the last try returns or raises")

    def _send(self, method: str, path: str, until: float, **more: Any) -> tuple[httpx.Response, bytes]:
        """Send one request and read the answer, however slowly it drips, until the time is over."""
        left = until - time.monotonic()
        timeout = httpx.Timeout(max(left, 0.01), connect=max(min(_CONNECT_S, left), 0.01))
        body = bytearray()
        try:
            with self._client.stream(method, path, timeout=timeout, **more) as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > _MOST_BYTES:
                        raise RemoteError(f"an answer of more than {_MOST_BYTES} bytes")
                    if time.monotonic() > until:
                        raise RemoteError(f"no answer within {self._timeout:g} s")
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise RemoteError(f"no answer ({type(error).__name__})") from None
        if response.status_code != 200:
            raise RemoteError(f"answers {response.status_code}")
        return response, bytes(body)

    def _read(self, response: httpx.Response, body: bytes, pixels: NDArray[np.uint8]) -> Outputs:
        try:
            message, given = tensors.unpack(body, response.headers.get(tensors.HEADER), "outputs")
        except ProtocolError as error:
            raise RemoteError(f"an answer that cannot be read: {error}") from None
        if message.get("model_version") != self._version:
            raise RemoteError(f"another version answers than {self._version[:12]}")
        wanted = self.package.golden.outputs
        for name, like in wanted._asdict().items():
            values = given.get(name)
            if values is not None and like.ndim == 1 and values.shape == (len(pixels), 1):
                given[name] = values = values[:, 0]  # Triton knows no empty shape
            if values is None or values.dtype != np.float32 or values.shape != (len(pixels), *like.shape[1:]):
                raise RemoteError(f"an answer whose {name} is missing or of another shape")
            if not np.isfinite(values).all():
                raise RemoteError(f"an answer whose {name} is not finite")
        return Outputs(*(np.array(given[name], np.float32) for name in Outputs._fields))


def address(model: str) -> str:
    """Return the address of a remote model, or an empty string for one that lies here."""
    return model.removeprefix(SCHEME) if model.startswith(SCHEME) else ""


def local_name(model: str) -> str:
    """Return under which name the package of a model lies here: the last part of a remote address, else as given."""
    return split(url)[1] if (url := address(model)) else model


def split(url: str) -> tuple[str, str]:
    """Return the server's base address and the model's name of ``http(s)://host[:port][/prefix]/NAME``.

    Raises
    ------
    ConfigError
        When it is none.
    """
    parts = urlsplit(url)
    prefix, _, name = parts.path.rpartition("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or not name or parts.query or "@" in parts.netloc:
        raise ConfigError(f"models: {SCHEME}{parts.scheme}://{parts.hostname}: give {SCHEME}https://host[:port]/NAME")
    return f"{parts.scheme}://{parts.netloc}{prefix}", name
