"""Shared by the tests of the web application."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import Server, send_patients, serving_tiny, signed_in, watched
from fastapi import FastAPI
from starlette.testclient import TestClient
from ward import SITE, NameReader

from wetread.clinic import access
from wetread.config import Settings
from wetread.web.app import create_app

BASE = "http://127.0.0.1"


class Client:
    """A running application in this process, with a token for each role."""

    def __init__(self, app: FastAPI, http: TestClient) -> None:
        self.app, self.http, self.clinic = app, http, app.state.clinic
        self.tokens = {role: access.create(self.clinic.database, role, role, SITE) for role in access.Role}

    def __call__(self, method: str, path: str, role: str = "administrator", **more: object) -> object:
        headers = {"Authorization": f"Bearer {self.tokens[access.Role(role)]}"} | dict(more.pop("headers", {}))  # type: ignore[call-overload]
        return self.http.request(method, path, headers=headers, **more)  # type: ignore[arg-type]

    def send(self, *files: tuple[str, bytes], wait: float = 10, **data: str) -> dict:
        """Upload files and wait for their analysis; return the receipt."""
        response = self(
            "POST", "/api/v1/studies", files=[("files", f) for f in files], data=data, params={"wait": wait}
        )
        assert response.status_code == 201, response.text  # type: ignore[attr-defined]
        return response.json()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings.model_validate({"max_bytes": 2**20, "max_files": 20, "max_upload_bytes": 4 * 2**20})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> Iterator[Client]:
    app = create_app(tmp_path_factory.mktemp("clinic"), settings, models=[NameReader()])
    with TestClient(app, base_url=BASE) as http:
        yield Client(app, http)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the tiny package in a process of its own."""
    with serving_tiny(tmp_path_factory.mktemp("room")) as server:
        yield server


@pytest.fixture(scope="module")
def session(server: Server, chromium: Any) -> Iterator[Any]:
    """Sign in to that process in a browser's context."""
    with signed_in(chromium, server) as context:
        yield context


@pytest.fixture
def page(server: Server, session: Any) -> Iterator[Any]:
    """Give a watched tab of that context."""
    with watched(session, server.url) as page:
        yield page


@pytest.fixture(scope="module")
def studies(server: Server) -> dict[int, str]:
    """Send the phantoms of six patients to that process; give seed to study."""
    return send_patients(server)
