"""Every kind of bad file, over HTTP: taken in, in the list, with its code and a sentence; too large is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from bad_files import FILES, Suits, numbered
from peers import wait
from starlette.testclient import TestClient
from ward import SITE

from wetread.clinic import access, store
from wetread.config import Settings
from wetread.web.app import create_app


@pytest.mark.system
def test_each_is_answered_and_in_the_list_with_its_reason(tmp_path: Path) -> None:
    settings = Settings.model_validate({"max_bytes": 2**20, "max_files": 100})
    app = create_app(tmp_path, settings, models=[Suits()])
    with TestClient(app, base_url="http://127.0.0.1") as http:
        token = access.create(app.state.clinic.database, "all", access.Role.ADMINISTRATOR, SITE)
        headers = {"Authorization": f"Bearer {token}"}
        parts = [("files", (name, numbered(make(), n))) for n, (name, (make, _)) in enumerate(FILES.items())]
        response = http.post("/api/v1/studies", files=parts, params={"wait": 30}, headers=headers)
        assert response.status_code == 201, response.text
        receipt = response.json()
        places = {one["file"]: (one["study"], one["image"]) for one in receipt["images"]}
        assert places.keys() == FILES.keys()
        jobs = sa.select(sa.func.count()).where(store.job.c.state != "done")

        def idle() -> bool:
            with app.state.clinic.database.read() as connection:
                return connection.execute(jobs).scalar_one() == 0

        wait(idle, "the analysis of all")
        for name, (_, code) in FILES.items():
            study, image = places[name]
            found = http.get(f"/api/v1/studies/{study}", headers=headers).json()
            [shown] = [one for one in found["images"] if one["image"] == image]
            [result] = shown["results"]
            assert result["code"] == (code and str(code)), name
            assert bool(result["reason"]) == (code is not None), name
            frame = http.get(f"/api/v1/images/{image}/frame", headers=headers)
            assert frame.status_code in (200, 415, 422), (name, frame.status_code)
        large = http.post("/api/v1/studies", files=[("files", ("big", bytes(2**20 + 1)))], headers=headers)
        assert large.status_code == 413
