"""TLS of the doors that are no web pages: DICOM and MLLP, each by four settings of its own.

``dicom_tls`` and ``hl7_tls`` switch it on; ``…_tls_certificate`` and ``…_tls_key`` are ours; ``…_tls_ca`` is the
authority whose certificates the peers need.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal

from wetread.config import Settings
from wetread.errors import ConfigError

Door = Literal["dicom", "hl7"]


def server(settings: Settings, door: Door) -> ssl.SSLContext | None:
    """Make the TLS context with which we listen; None when the setting, e.g. `dicom_tls`, is off.

    Raises
    ------
    ConfigError
        When there is no certificate, or a file cannot be used.
    """
    if not getattr(settings, f"{door}_tls"):
        return None
    if not getattr(settings, f"{door}_tls_certificate"):
        raise ConfigError(f"{door}_tls is on, but {door}_tls_certificate names none; name our certificate and key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, settings, door)
    name = f"{door}_tls_ca"
    if authority := getattr(settings, name):
        try:
            context.load_verify_locations(file(name, authority))
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"{name} = {authority!r}: not usable ({error}); name a PEM file") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def load_certificate(context: ssl.SSLContext, settings: Settings, door: Door) -> None:
    """Give a TLS context our own certificate, if there is one; raises ConfigError when it cannot be used."""
    name = f"{door}_tls_certificate"
    certificate = file(name, getattr(settings, name))
    if certificate is None:
        return
    try:
        context.load_cert_chain(certificate, file(f"{door}_tls_key", getattr(settings, f"{door}_tls_key")))
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{name} {certificate}: not usable with {door}_tls_key ({error}); give PEM files") from None


def file(setting: str, path: str) -> str | None:
    """Return the path of a setting's file, None for none; raises ConfigError when there is no such file."""
    if path and not Path(path).is_file():
        raise ConfigError(f"{setting} = {path!r}: no such file; name a PEM file")
    return path or None
