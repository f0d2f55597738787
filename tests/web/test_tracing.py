"""Traces, as a collector receives them: real bytes of OTLP over HTTP, of a study from request to delivery."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from peers import wait
from starlette.testclient import TestClient
from ward import SITE, NameReader, dicom

from wetread.clinic import access, reviews, tracing
from wetread.config import Settings
from wetread.errors import ConfigError
from wetread.web.app import create_app

BASE = "http://127.0.0.1"


class Collector(ThreadingHTTPServer):
    """Keeps what is sent to it, and takes webhooks, too."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[bytes] = []
        self.hooks = 0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        found = (ExportTraceServiceRequest.FromString(body) for body in list(self.bodies))
        return [s for one in found for r in one.resource_spans for scope in r.scope_spans for s in scope.spans]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            self.server.bodies.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        else:
            self.server.hooks += 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs OpenTelemetry, of the extra otel")
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            tracing.end()
            server.shutdown()
            thread.join()


def said(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@pytest.mark.system
def test_a_study_is_followed_by_its_identifier(collector: Collector, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s" * 32)
    values = {
        "otel_endpoint": f"{collector.url}/v1/traces",
        "outputs_webhook": [f"{collector.url}/hook#secret-file={secret}"],
        "undo_seconds": 0,
    }
    settings = Settings.model_validate(values)
    tracing.begin(settings)
    app = create_app(tmp_path / "clinic", settings, models=[NameReader()])
    with TestClient(app, base_url=BASE) as http:
        clinic = app.state.clinic
        http.headers["Authorization"] = f"Bearer {access.create(clinic.database, 'test', 'administrator', SITE)}"
        file = ("pneumothorax-Hush.dcm", dicom(1, PatientName="Hush^Nobody", PatientID="SECRET7"))
        answer = http.post("/api/v1/studies", files=[("files", file)], params={"wait": 10})
        assert answer.status_code == 201
        study = answer.json()["studies"][0]["study"]
        reviews.save(clinic.database, SITE, study, "Dr A", answers={"Pneumothorax": "agree"}, normal=False, sign=True)
        assert http.get("/api/v1/studies/none").status_code == 404
        wait(lambda: collector.hooks, "the webhook")
    tracing.end()
    spans = collector.spans()
    by_name = {name: [s for s in spans if s.name == name] for name in ("request", "intake", "analysis", "delivery")}
    assert all(by_name.values()), {name: len(found) for name, found in by_name.items()}
    intake, post = by_name["intake"][0], next(s for s in by_name["request"] if said(s)["wetread.method"] == "POST")
    assert (intake.trace_id, intake.parent_span_id) == (post.trace_id, post.span_id)
    assert said(post) == {"wetread.method": "POST", "wetread.route": "/api/v1/studies", "wetread.status": 201}
    for name in ("intake", "analysis", "delivery"):
        assert said(by_name[name][0])["wetread.study"] == study
    assert 404 in {said(s)["wetread.status"] for s in by_name["request"]}
    assert all(s.end_time_unix_nano >= s.start_time_unix_nano for s in spans)
    told = b"".join(collector.bodies)
    assert not any(word in told for word in (b"Hush", b"SECRET7", b"Dr A", b"none"))


@pytest.mark.system
def test_of_an_error_stands_its_type(collector: Collector) -> None:
    tracing.begin(Settings.model_validate({"otel_endpoint": f"{collector.url}/v1/traces"}))
    with pytest.raises(ValueError, match="Hush"), tracing.span("intake"):
        raise ValueError("Hush^Nobody")
    tracing.end()
    (span,) = collector.spans()
    assert (span.status.code, span.status.message, list(span.events)) == (2, "ValueError", [])


def test_without_a_collector_nothing_is_imported() -> None:
    code = (
        "import sys; from wetread.clinic import tracing; from wetread.config import Settings\n"
        "tracing.begin(Settings())\n"
        "with tracing.span('intake', study='x') as span: span.say(image='y')\n"
        "tracing.end(); assert not [name for name in sys.modules if 'opentelemetry' in name]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_packages_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"otel_endpoint: .*wetread\[otel\]"):
        tracing.begin(Settings.model_validate({"otel_endpoint": "http://127.0.0.1:1/v1/traces"}))
