"""Settings: one table of name, default and help, read from `wetread.toml` and `WETREAD_*`.

The environment wins over the file. An unknown key or a bad value is an error that names it.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from wetread.errors import ConfigError, hide

_T = TypeVar("_T")

# Read by the tests and by the demo, not settings of the application.
_OTHER_VARIABLES = frozenset(
    {"WETREAD_DEBUG", "WETREAD_REQUIRE", "WETREAD_TOKEN", "WETREAD_PASSWORD", "WETREAD_SHARED"}
)


def _zone(name: str) -> str:
    if name:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("no time zone is called so; write it as Europe/Paris") from None
    return name


def _language(code: str) -> str:
    # Named by their folders; what is in them is the matter of wetread.web.language.
    known = ["en", *sorted(folder.name for folder in (Path(__file__).parent / "web/locale").glob("[a-z]*"))]
    if code not in known:
        raise ValueError(f"no such language; one of {', '.join(known)}")
    return code


class Settings(BaseModel):
    """Every setting of the application; the help text is the field's description."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    site: str = Field("default", description="Name of the site that unlabelled studies belong to.", min_length=1)
    database: str = Field("", description="SQLAlchemy URL; empty means SQLite in the data folder.")
    threads: int = Field(2, description="Threads of the inference runtime.", ge=1, le=256)
    runtime: Literal["auto", "openvino", "onnxruntime"] = Field(
        "auto", description="Inference runtime; auto takes OpenVINO where the package's precision profits from it."
    )
    models: list[str] = Field(
        ["pneumonia"],
        description="Model packages to serve (name, path or `v2+https://host/NAME`); each image goes to those that "
        "suit it. What was rolled out goes before them.",
    )
    point: Literal["screen", "balanced"] = Field("screen", description="Operating point that flags a finding.")
    ai: bool = Field(True, description="Off means first come, first served, with a banner that says so.")
    ai_failures: int = Field(
        3, description="A model turns itself off after failing on so many different images in a row.", ge=1, le=1000
    )
    ai_failure_share: float = Field(
        0.5, description="… or on such a share of the last `ai_window` images, of at least 20.", gt=0, le=1
    )
    ai_window: int = Field(50, description="How many images that share is taken of.", ge=20, le=10_000)
    ai_timeout_s: float = Field(120.0, description="An analysis that takes longer counts as failed, in s.", gt=0)
    ai_collapse: int = Field(
        20,
        description="A model turns itself off when so many different pictures in a row get the same probabilities.",
        ge=2,
        le=1000,
    )
    ai_remote_minutes: float = Field(
        60.0, description="… or when its server has been out of reach for so long, in min; 0 means never.", ge=0
    )
    ai_recover: float = Field(
        0.0,
        description="After so many minutes a model that turned itself off is tried on its golden outputs, and goes on "
        "when it keeps them; 0 leaves that to a person.",
        ge=0,
    )
    critical_ack_minutes: float = Field(
        15.0, description="A critical finding must be acknowledged by a reader within so long, in min.", gt=0
    )
    critical_tell_minutes: float = Field(
        60.0,
        description="… signed within so long, and then who was told of it recorded within so long, in min.",
        gt=0,
    )
    critical_steps: list[Annotated[float, Field(ge=0, le=10_080)]] = Field(
        [0.0, 15.0, 30.0, 60.0],
        description="When it is escalated after that time is over, in min; the last step is repeated.",
        min_length=1,
        max_length=20,
    )
    batch_size: int = Field(8, description="Most images in one inference batch.", ge=1, le=256)
    batch_delay_ms: float = Field(5.0, description="Longest wait for a batch to fill, in ms.", ge=0, le=1000)
    queue_limit: int = Field(64, description="Most images waiting for inference before callers are told to wait.", ge=1)
    job_tries: int = Field(3, description="Tries of an analysis before the image is set aside.", ge=1, le=100)
    archive: str = Field("", description="`s3://bucket/prefix` keeps files there; empty means in the data folder.")
    archive_endpoint: str = Field("", description="Address of an S3 service other than Amazon's.")
    archive_cache_bytes: int = Field(
        10 * 2**30, description="Copies of files in S3 that are kept in the data folder, in bytes.", ge=0
    )
    disk_reserve: float = Field(
        0.05,
        description="Room to keep free: a share of the disk below 1, else bytes; beyond it nothing is taken.",
        ge=0,
    )
    retain_days: int = Field(0, description="Days after signing after which a study is removed; 0 means never.", ge=0)
    retain_sites: list[str] = Field([], description="Sites with other days, as `site=days`.")
    max_bytes: int = Field(256 * 2**20, description="Largest accepted file, in bytes.", ge=1)
    max_pixels: int = Field(64 * 2**20, description="Largest accepted image, in pixels.", ge=1)
    read_seconds: float = Field(
        30.0,
        description="Longest time to read one file, in s, in a process of its own; 0 reads it in the same process.",
        ge=0,
    )
    read_memory: int = Field(4 * 2**30, description="Most memory of such a process, in bytes.", ge=512 * 2**20)
    max_files: int = Field(2000, description="Most files in one upload or zip archive.", ge=1)
    max_upload_bytes: int = Field(
        2 * 2**30, description="Largest body of an upload, and most that one zip archive may unpack to, in bytes.", ge=1
    )
    hosts: list[str] = Field(
        [], description="Names by which browsers may call the server, besides localhost and any IP address."
    )
    session_hours: float = Field(12.0, description="Longest life of a login, in h.", gt=0, le=24 * 30)
    session_idle_minutes: float = Field(60.0, description="A login that nobody uses ends after so long, in min.", gt=0)
    zone: Annotated[str, AfterValidator(_zone)] = Field(
        "", description="Time zone in which pages tell times, as `Europe/Paris`; empty means each browser's own."
    )
    language: Annotated[str, AfterValidator(_language)] = Field(
        "en", description="Language of the pages (`en`, `de`) for browsers that ask for none that there is."
    )
    tls_certificate: str = Field("", description="Certificate chain of the server, a PEM file; empty means no TLS.")
    tls_key: str = Field("", description="Its private key, a PEM file; empty means in the same file.")
    tls_client_ca: str = Field(
        "", description="Authority (PEM file) that every client's certificate must come from; empty asks for none."
    )
    tls_by_proxy: bool = Field(
        False, description="A proxy in front ends TLS: listen without it on more than this machine's own address."
    )
    trusted_proxies: list[str] = Field(
        [], description="Addresses or networks of proxies whose `X-Forwarded-For` and `-Proto` are believed."
    )
    oidc_issuer: str = Field("", description="Address of the OpenID Connect provider; empty means none.")
    oidc_client_id: str = Field("", description="Our identifier there.")
    oidc_client_secret: str = Field("", description="Our secret there; empty for a public client.", repr=False)
    oidc_scopes: list[str] = Field(["openid", "profile"], description="What we ask the provider to tell.")
    oidc_ca: str = Field(
        "", description="Authority (PEM file) of the provider's certificate; empty means the public ones."
    )
    oidc_name_claim: str = Field("preferred_username", description="Claim with the person's name.", min_length=1)
    oidc_role_claim: str = Field(
        "roles", description="Claim with roles or groups; dots lead into it (`realm_access.roles`).", min_length=1
    )
    oidc_roles: list[str] = Field(
        [],
        description="Who gets which role, as `value=role`; the first that fits counts, and without one nobody enters.",
    )
    oidc_site_claim: str = Field("", description="Claim with the site; empty puts everybody at the setting `site`.")
    oidc_sites: list[str] = Field([], description="Sites, as `value=site`; a value that is not listed is refused.")
    dicomweb_origins: list[Annotated[str, Field(pattern=r"^https?://[^/*\s]+$")]] = Field(
        [], description="Origins of viewers (`https://ohif.example`) whose pages may call `/dicomweb` with a token."
    )
    ohif: Annotated[str, Field(pattern=r"^(https?://[^/?#\s]+)?(/[^?#\s]*)?$")] = Field(
        "", description="Address of an OHIF viewer (`/ohif/viewer`) that study pages link to; empty means none."
    )
    url_timeout_s: float = Field(20.0, description="Longest time to fetch a URL, in s.", gt=0)
    watch: str = Field("", description="Folder to watch for incoming files; empty means none.")
    watch_corrects: bool = Field(
        False, description="Rejection notes and corrected headers from that folder are heeded."
    )
    complete_after_s: float = Field(
        60.0, description="How long no image must come before a study counts as complete, in s.", ge=0
    )
    hl7_port: int = Field(
        0, description="Port on which ADT messages are received by MLLP; 0 means none.", ge=0, le=65535
    )
    hl7_host: str = Field("0.0.0.0", description="Address on which they are received.")  # noqa: S104
    hl7_peers: list[str] = Field(
        [], description="Who may send them: addresses or networks such as `10.1.0.0/16`. Empty means nobody."
    )
    hl7_authority: str = Field(
        "", description="Assigning authority of our patient identifiers in them; empty takes the first identifier."
    )
    hl7_tls: bool = Field(False, description="Receive them by TLS only.")
    hl7_tls_certificate: str = Field("", description="Our certificate for MLLP, a PEM file.")
    hl7_tls_key: str = Field("", description="Its key, a PEM file.")
    hl7_tls_ca: str = Field(
        "", description="Authority (PEM file) that MLLP peers' certificates must come from; senders then need one."
    )
    dicom_port: int = Field(0, description="Port on which DICOM is received; 0 means not at all.", ge=0, le=65535)
    dicom_host: str = Field("0.0.0.0", description="Address on which DICOM is received.")  # noqa: S104
    dicom_ae_title: str = Field("WETREAD", description="Our application entity title.", min_length=1, max_length=16)
    dicom_check_called: bool = Field(True, description="Refuse associations that call another AE title than ours.")
    dicom_peers: list[str] = Field(
        [],
        description="Who may send by DICOM: `AE@host`, `AE@host:port` where reports go back to, `+correct` for one "
        "whose rejection notes and corrected headers are heeded, `=site` at the end; `*` for any AE title or host. "
        "Empty means nobody.",
    )
    dicom_private: bool = Field(False, description="Also accept private and unknown SOP classes and transfer syntaxes.")
    dicom_associations: int = Field(16, description="Most DICOM associations at a time.", ge=1, le=500)
    dicom_pdu_bytes: int = Field(131072, description="Largest DICOM PDU that we receive, in bytes.", ge=4096, le=2**20)
    dicom_timeout_s: float = Field(30.0, description="Longest wait for a DICOM peer to answer, in s.", gt=0)
    dicom_idle_s: float = Field(60.0, description="A silent DICOM association is ended after so long, in s.", gt=0)
    dicom_tls: bool = Field(False, description="Receive DICOM by TLS only.")
    dicom_tls_certificate: str = Field("", description="Our certificate for DICOM, a PEM file.")
    dicom_tls_key: str = Field("", description="Its key, a PEM file.")
    dicom_tls_ca: str = Field(
        "", description="Authority (PEM file) that DICOM peers' certificates must come from; senders then need one."
    )
    pull_sources: list[str] = Field(
        [],
        description="Archives that may be pulled from by the API: `name=AE@host:port` or "
        "`name=https://host/dicom-web#token-file=/path`, ` =site` at the end binds one to a site.",
    )
    remote_token: str = Field("", description="Token for the servers of `v2+https://` models.", repr=False)
    remote_timeout_s: float = Field(10.0, description="Longest wait for a remote model's answer, in s.", gt=0)
    remote_retries: int = Field(1, description="Further tries of a remote model within that time.", ge=0, le=10)
    remote_failures: int = Field(3, description="Failures in a row after which a remote model is left alone.", ge=1)
    remote_pause_s: float = Field(15.0, description="How long it is left alone before it is tried again, in s.", gt=0)
    infer_max_bytes: int = Field(64 * 2**20, description="Largest body of an inference request, in bytes.", ge=1)
    priority: str = Field(
        "", description="TOML file with the priority rule, or a folder with `SITE.toml`; empty means the built-in rule."
    )
    claim_minutes: float = Field(
        15.0, description="A study is free again when its reader did nothing on it for so long, in min.", gt=0, le=1440
    )
    undo_seconds: float = Field(
        30.0,
        description="How long a reader may take a signature back, in s; outputs of it wait for so long. 0 means never.",
        ge=0,
        le=600,
    )
    blind_sites: list[str] = Field(
        [], description="Sites whose readers make their own call before they see the model's."
    )
    blind_share: float = Field(
        0.0, description="Share of the other sites' studies that are read so, the same for every reader.", ge=0, le=1
    )
    sample_share: float = Field(
        0.0,
        description="Share of the patients, drawn as they arrive, that are read blind for the random-audit sample.",
        ge=0,
        le=1,
    )
    sample_sites: list[str] = Field([], description="Sites with another share, as `site=share`.")
    outputs_sr: list[str] = Field(
        [],
        description="Where structured reports go: `dicomweb+https://host/dicom-web`, `dicom://AE@host:port`; "
        "` =site` at the end for one site's only.",
    )
    outputs_sc: list[str] = Field([], description="Where secondary captures go; addresses as for `outputs_sr`.")
    outputs_fhir: list[str] = Field([], description="Where FHIR R4 transactions go: `fhir+https://host/fhir`.")
    outputs_hl7: list[str] = Field(
        [], description="Where HL7 v2 messages go: `mllp://host:port`, `mllps://host:port` with TLS."
    )
    outputs_webhook: list[str] = Field(
        [], description="Where critical findings are told: `https://host/path#secret-file=/path`."
    )
    outputs_webhook_patient: bool = Field(False, description="Webhooks say who the patient is.")
    outputs_patients: str = Field("", description="System (URI) of the site's patient identifiers in FHIR.")
    outputs_tries: int = Field(72, description="An output is given up after so many tries.", ge=1, le=10_000)
    outputs_retry_s: float = Field(
        10.0, description="Wait after the first failure, in s; doubled each time, up to 1 h.", gt=0, le=3600
    )
    report_paper: Literal["A4", "Letter"] = Field("A4", description="Paper of reports as PDF.")
    report_font: str = Field("", description="TrueType font for letters that DejaVu lacks, such as Chinese ones.")
    log_format: Literal["text", "json"] = Field(
        "text", description="How the log is written: lines of text, or one JSON object a line, with every request."
    )
    metrics_port: int = Field(
        0, description="Port on which `wetread work` tells Prometheus what it did; 0 means none.", ge=0, le=65535
    )
    metrics_host: str = Field("127.0.0.1", description="Address on which it does.")
    otel_endpoint: Annotated[str, Field(pattern=r"^(https?://[^\s]+)?$")] = Field(
        "", description="Where traces go, OTLP over HTTP: `http://collector:4318/v1/traces`; empty means nowhere."
    )
    demo: bool = Field(False, description="Synthetic department: the page says that patients are phantoms.")


def load(file: Path | None = None, environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings.

    Parameters
    ----------
    file : Path, optional
        A TOML file; a missing one counts as empty. By default no file is read.
    environment : mapping, optional
        By default `os.environ`. `WETREAD_BATCH_SIZE=4` sets `batch_size`; lists are comma-separated, or JSON.
    **overrides
        Values from the command line, which win over both; None means not given.

    Raises
    ------
    ConfigError
        For an unknown key or a bad value, naming it, where it stands, and what is allowed.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if file is not None and file.is_file():
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{file}: not a TOML file: {error}") from None
        origin = dict.fromkeys(values, str(file))
    for name, value in (os.environ if environment is None else environment).items():
        if name.startswith("WETREAD_") and name not in _OTHER_VARIABLES:
            key = name.removeprefix("WETREAD_").lower()
            is_list = key in Settings.model_fields and isinstance(Settings.model_fields[key].default, list)
            values[key] = _listed(value) if is_list else value
            origin[key] = name
    for key, value in overrides.items():
        if value is not None:
            values[key], origin[key] = value, "command line"
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        where = origin.get(key, "settings")
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"{where}: unknown setting {key!r}; known: {', '.join(sorted(Settings.model_fields))}"
            ) from None
        field = Settings.model_fields.get(key)
        shown = hide(repr(first["input"])) if field is None or field.repr else "(a secret)"
        raise ConfigError(f"{where}: {key} = {shown}: {first['msg']}") from None


def by_site(setting: str, entries: Sequence[str], read: Callable[[str], _T], wanted: str) -> dict[str, _T]:
    """Return what a list of ``site=value`` says of each site.

    Parameters
    ----------
    setting : str
        Its name.
    read : callable
        Gives the value; raises `ValueError` for what is none.
    wanted : str
        How an entry is written, for people.

    Raises
    ------
    ConfigError
        For an entry that is written otherwise, naming it.
    """
    found = {}
    for entry in entries:
        site, _, value = entry.rpartition("=")
        try:
            if not site.strip():
                raise ValueError("no site")
            found[site.strip()] = read(value)
        except ValueError:
            raise ConfigError(f"{setting}: {entry!r} must be {wanted}") from None
    return found


def _listed(text: str) -> list[str]:
    """Read a list out of the environment; many programs expect JSON there, which must not become odd words here."""
    if text.lstrip().startswith('["'):
        with suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, list):
                return found
    return [word.strip() for word in text.split(",") if word.strip()]
