"""`wetread work`: a process that only analyses, beside others that serve, on one PostgreSQL."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from wetread.clinic import logs, tracing
from wetread.clinic.service import Clinic
from wetread.clinic.tally import Done
from wetread.config import Settings
from wetread.errors import ConfigError


def run(data: Path, settings: Settings, *, say: Callable[[str], None]) -> None:
    """Analyse what comes in elsewhere until SIGINT or SIGTERM.

    Parameters
    ----------
    data : Path
        Folder of the archive, or of its copies when it is in S3; made when missing.
    settings : Settings
        The same as those of the processes that serve.
    say : callable
        Takes a line once it works.

    Raises
    ------
    ConfigError, ClinicError
        When the folder or the database cannot be used.
    """
    logs.begin(settings)
    tracing.begin(settings)
    told = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        told.set()

    clinic = Clinic(data, settings, kind="work")
    told_of = CollectorRegistry()
    ProcessCollector(registry=told_of)
    done = Done(told_of)
    listening = _listen(settings, told_of)
    clinic.start()
    if clinic.worker is not None:
        clinic.worker.observe = done.analysed
    clinic.outbox.observe = done.delivered
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    say(f"working: {', '.join(model.name for model in clinic.models.values()) or 'no model'}")
    try:
        told.wait()
    finally:
        clinic.stop()
        if listening is not None:
            listening.shutdown()
        tracing.end()


def _listen(settings: Settings, registry: CollectorRegistry) -> WSGIServer | None:
    """Tell Prometheus from a thread of its own, when the settings name a port."""
    if not settings.metrics_port:
        return None
    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"metrics_port {settings.metrics_port}: cannot listen there ({reason}); choose another"
        ) from None
    return server
