"""The log of a process that serves or works: to standard error, as text or one JSON object a line.

Whoever logs says what and where, never whom: no name, no patient's identifier, no address of a request. Of an
exception stands its type and where it happened, not its message, which may quote a patient's data.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

from wetread.config import Settings

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_OF_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Plain(logging.Formatter):
    """Write each record as text, without the message of an exception."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatException(self, ei: Any) -> str:  # noqa: N802 (as the library calls it)
        """Return where it happened, and its type."""
        stack = "".join(traceback.format_tb(ei[2]))
        return f"Traceback (most recent call last):\n{stack}{ei[0].__name__}" if ei[0] else ""


class Lines(logging.Formatter):
    """Write each record as one JSON object on a line: its fields, and those given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "thread": record.threadName,
            "process": record.process,
        }
        said |= {name: value for name, value in vars(record).items() if name not in _OF_RECORD}
        if record.exc_info and record.exc_info[0] is not None:
            said["exception"] = record.exc_info[0].__name__
            said["stack"] = "".join(traceback.format_tb(record.exc_info[2]))
        return json.dumps(said, ensure_ascii=False, default=lambda value: type(value).__name__)


def begin(settings: Settings) -> None:
    """Log what this process does from here on, unless somebody set up another way before."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines() if settings.log_format == "json" else Plain())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    quieten()


def quieten() -> None:
    """Keep libraries from logging what they do: addresses and headers hold secrets, and headers of files names."""
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2", "authlib", "alembic", "opentelemetry"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
