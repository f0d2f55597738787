"""Traces by OpenTelemetry, for who names a collector in `otel_endpoint`; for others nothing is imported or done.

A span says what was done, for how long, and for which study of ours by its identifier; never whose. Of an error stands
its type.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wetread import __version__
from wetread.config import Settings
from wetread.errors import ConfigError

_provider: Any = None
_tracer: Any = None


class Span:
    """A span under way, or nothing when there are no traces."""

    def __init__(self, real: Any = None) -> None:
        self._real = real

    def say(self, **attributes: str | float | None) -> None:
        """Add attributes, each under ``wetread.``."""
        if self._real is not None:
            self._real.set_attributes(
                {f"wetread.{key}": value for key, value in attributes.items() if value is not None}
            )


_NOTHING = Span()


def begin(settings: Settings) -> None:
    """Send the traces of this process to the collector of the settings, if they name one.

    Raises
    ------
    ConfigError
        When OpenTelemetry is not installed.
    """
    global _provider, _tracer
    if not settings.otel_endpoint or _provider is not None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise ConfigError("otel_endpoint: needs OpenTelemetry; pip install 'wetread[otel]'") from None
    about: dict[str, Any] = {"service.name": "wetread", "service.version": __version__, "process.pid": os.getpid()}
    _provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otel_endpoint, timeout=10)))
    _tracer = _provider.get_tracer("wetread", __version__)


def end() -> None:
    """Send what is left, and no more."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


@contextmanager
def span(name: str, **attributes: str | float | None) -> Iterator[Span]:
    """Do something within a span of that name."""
    if _tracer is None:
        yield _NOTHING
        return
    from opentelemetry.trace import Status, StatusCode

    with _tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as real:
        found = Span(real)
        found.say(**attributes)
        try:
            yield found
        except BaseException as error:
            real.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
