"""TLS of the server itself, and the refusal to speak without it to other machines."""

from __future__ import annotations

import ipaddress
import logging
import ssl

from wetread.config import Settings
from wetread.errors import ConfigError

log = logging.getLogger(__name__)


def context(settings: Settings) -> ssl.SSLContext | None:
    """Return what TLS 1.2 or newer is spoken with, or None when the settings name no certificate.

    Raises
    ------
    ConfigError
        When certificate, key and authority cannot be used together.
    """
    if not settings.tls_certificate:
        for name in ("tls_key", "tls_client_ca"):
            if getattr(settings, name):
                raise ConfigError(f"{name}: means nothing without tls_certificate; name the certificate, too")
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    names = f"tls_certificate = {settings.tls_certificate!r}, tls_key = {settings.tls_key!r}"
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        made.load_cert_chain(settings.tls_certificate, settings.tls_key or None, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{names}: cannot be used ({_reason(error)}); both must be PEM files that belong together, "
            "the key without a passphrase"
        ) from None
    if settings.tls_client_ca:
        try:
            made.load_verify_locations(settings.tls_client_ca)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"tls_client_ca = {settings.tls_client_ca!r}: cannot be used ({_reason(error)}); name a PEM file"
            ) from None
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def check(address: str, settings: Settings) -> None:
    """Refuse to listen in clear where other machines could hear passwords and patients' names.

    Parameters
    ----------
    address : str
        The IP address that is listened on.
    settings : Settings

    Raises
    ------
    ConfigError
        For an address beyond this machine without TLS, unless the setting `tls_by_proxy` says that a proxy does it.
    """
    if settings.tls_certificate or ipaddress.ip_address(address.split("%")[0]).is_loopback:
        return
    if not settings.tls_by_proxy:
        raise ConfigError(
            f"--host {address}: other machines would reach it without TLS; give --tls-certificate and --tls-key, "
            "or set tls_by_proxy when a proxy in front ends TLS"
        )
    log.warning("listening without TLS on %s (tls_by_proxy): let nobody but the proxy reach this port", address)
    if not settings.trusted_proxies:
        log.warning(
            "trusted_proxies is empty: cookies are not kept to TLS, and the limit on log-ins takes all callers for one"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]
