"""`wetread work`: a process that only analyses, beside others that serve, on one PostgreSQL."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from wetread.clinic import logs, tracing
from wetread.clinic.service import Clinic
from wetread.config import Settings


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
    clinic.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    say(f"working: {', '.join(model.name for model in clinic.models.values()) or 'no model'}")
    try:
        told.wait()
    finally:
        clinic.stop()
        tracing.end()
