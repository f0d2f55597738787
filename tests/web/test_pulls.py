"""Pulling by the API: from a real archive (another clinic's DICOMweb), in the background, shown to who runs it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from peers import wait
from ward import NameReader, dicom

from wetread.clinic import access
from wetread.config import Settings
from wetread.web.app import create_app


@contextmanager
def archive(data: Path) -> Iterator[tuple[str, Any]]:
    """Serve another clinic, which stands for the archive; give its DICOMweb address and the clinic."""
    app = create_app(data, Settings(), models=[NameReader()])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait(lambda: server.started, "the archive serves")
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/dicomweb", app.state.clinic
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("archive")
    with archive(folder / "data") as (address, clinic):
        for seed in (1, 2):
            clinic.intake.take(BytesIO(dicom(seed, AccessionNumber=f"A{seed}")), "x", "default")
        (folder / "token").write_text(access.create(clinic.database, "puller", "service", "default"))
        yield Settings(
            pull_sources=[f"pacs={address}#token-file={folder / 'token'}", "other=PACS@192.0.2.1:104 =north"]
        )


@pytest.mark.system
def test_an_engineer_has_studies_fetched_and_sees_how_far_it_is(client: Any) -> None:
    body = {"source": "pacs", "studies": ["1.2.2.1"], "accessions": ["A2", "A9"]}
    answer = client("POST", "/api/v1/pull", "engineer", json=body)
    assert (answer.status_code, answer.json()["asked"]) == (202, 3)
    path = f"/api/v1/pull/{answer.json()['pull']}"
    wait(lambda: client("GET", path, "engineer").json()["state"] == "done", "the pull")
    found = client("GET", path, "engineer").json()
    assert [(one["line"], one["study_uid"], one["state"]) for one in found["outcomes"]] == [
        (1, "1.2.2.1", "complete"), (2, "1.2.3.1", "complete"), (3, "", "not found"),
    ]  # fmt: skip
    assert (found["came"], found["failed"], found["error"], found["actor"]) == (2, 1, None, "engineer")
    rows = client("GET", "/api/v1/worklist").json()["studies"]
    assert {row["patient_id"] for row in rows} == {"P1", "P2"}
    assert [row["pull"] for row in client("GET", "/api/v1/pull").json()] == [found["pull"]]
    assert "<td>pacs</td>" in client("GET", "/operations", "engineer").text
    metrics = client("GET", "/metrics").text
    assert 'wetread_pulled_studies_total{state="complete"} 2.0' in metrics
    again = client("POST", "/api/v1/pull", "engineer", json=body).json()["pull"]
    wait(lambda: client("GET", f"/api/v1/pull/{again}").json()["state"] == "done", "the second pull")
    assert client("GET", f"/api/v1/pull/{again}").json()["came"] == 0


@pytest.mark.system
@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"source": "http://169.254.169.254/latest", "studies": ["1.2"]}, 404, "pull_sources"),
        ({"source": "other", "studies": ["1.2"]}, 404, "known: pacs"),
        ({"source": "pacs"}, 422, "0 studies"),
        ({"source": "pacs", "studies": ["1.2/../3"]}, 422, "no Study Instance UID"),
        ({"source": "pacs", "accessions": ["*"]}, 422, "without"),
        ({"source": "pacs", "studies": ["1.2"], "address": "http://x"}, 422, "address"),
    ],
)
def test_what_cannot_be_pulled_is_a_problem(client: Any, body: dict[str, Any], status: int, named: str) -> None:
    answer = client("POST", "/api/v1/pull", "engineer", json=body)
    assert answer.status_code == status
    assert named in answer.json()["detail"]


@pytest.mark.system
def test_a_token_pulls_only_with_the_scope(client: Any) -> None:
    body = {"source": "pacs", "studies": ["1.2.2.1"]}
    assert client("POST", "/api/v1/pull", "service", json=body).status_code == 403
    secret = access.create(client.clinic.database, "nightly", "service", "default", scopes=["pull"])
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.http.post("/api/v1/pull", json=body, headers=headers).status_code == 202
    assert client("GET", "/api/v1/pull/none", "engineer").status_code == 404
