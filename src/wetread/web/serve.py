"""`wetread serve`: one process that listens, analyses and shows, until it is told to stop."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from wetread.clinic import access, audit, logs, tracing
from wetread.clinic.service import Clinic
from wetread.config import Settings
from wetread.errors import ConfigError
from wetread.web import tls
from wetread.web.app import create_app
from wetread.web.patience import Protocol

log = logging.getLogger(__name__)

FAREWELL_S = 5  # how long answers under way may take once the server is told to stop


class _Server(uvicorn.Server):
    """A server that tells its event streams to end when it is told to."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI):
            app.state.clinic.stopping.set()
        super().handle_exit(sig, frame)


def run(data: Path, host: str, port: int, settings: Settings, *, say: Callable[[str], None]) -> None:
    """Serve a data folder until SIGINT or SIGTERM.

    Parameters
    ----------
    data : Path
        Database and archive; made when missing.
    host, port
        Where to listen; port 0 takes a free one.
    settings : Settings
    say : callable
        Takes the line with the address, once the server listens: a one-time login link as long as nobody can log in
        as administrator, else the login page. It goes to who started us, not into the log.

    Raises
    ------
    ConfigError, ClinicError
        When the address is taken, would be reached without TLS, or the folder cannot be used.
    """
    logs.begin(settings)
    tracing.begin(settings)
    secure = tls.context(settings)
    listener = _listen(host, port, settings)
    app = create_app(data, settings)
    # Uploads wait on the data folder's disk, not in memory, which /tmp may be.
    waiting = data / "tmp"
    waiting.mkdir(exist_ok=True)
    tempfile.tempdir = str(waiting)
    clinic: Clinic = app.state.clinic
    clinic.start()
    port = listener.getsockname()[1]
    code = access.first_code(clinic.database, "operator", settings.site, actor="serve")
    config = uvicorn.Config(
        app,
        http=Protocol,
        access_log=False,  # addresses may hold a login code; see `operations.Timing`
        log_config=None,  # it logs as all do
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=FAREWELL_S,
        proxy_headers=False,  # the application does it, for the proxies that it trusts
    )
    config.load()
    config.ssl = secure
    server = _Server(config)
    log.info("audit: the head of the chain is %s", audit.head(clinic.database))
    say(f"{'https' if secure else 'http'}://{_shown(host)}:{port}/login{f'?code={code}' if code else ''}")
    # uvicorn raises the signal again after an orderly end, which would end the process as if it had been killed.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    tracing.end()


def _listen(host: str, port: int, settings: Settings) -> socket.socket:
    """Take the address before anything else happens.

    Raises
    ------
    ConfigError
        When it is taken or cannot be, or may not be listened on without TLS.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        tls.check(str(address[0]), settings)
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(512)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--host {host} --port {port}: cannot listen there ({reason}); choose another") from None
    return listener


def _shown(host: str) -> str:
    """Return the host as a browser on this machine would name it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if address.version == 4 else f"[{host}]"
