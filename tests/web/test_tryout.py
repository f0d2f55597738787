"""Trying an image: it is analysed and shown, and nothing of it stays."""

from __future__ import annotations

import base64
import ipaddress
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import sqlalchemy as sa
import tiny_package
import ward
from fastapi.testclient import TestClient
from page import Page
from web.conftest import BASE, Client

from wetread.clinic import fetch, store
from wetread.clinic.ai import Served
from wetread.config import Settings
from wetread.findings import CHEXPERT
from wetread.infer.heatmap import to_image
from wetread.infer.predict import Predictor
from wetread.radiograph import phantom
from wetread.web import tryout
from wetread.web.app import create_app

MOST = 2**20
NAME = "Žižkov^Unforgettable"


@pytest.fixture(scope="module")
def film():
    return phantom.dicom(phantom.make(1, size=96, findings=["Pneumothorax"]), patient=NAME)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    package = tiny_package.write(tmp_path_factory.mktemp("tiny") / "tiny", CHEXPERT, population="phantom")
    with Predictor.open(package.path, Settings(threads=1)) as opened:
        yield opened


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("clinic")


@pytest.fixture(scope="module")
def client(data, predictor):
    settings = Settings(max_bytes=MOST, threads=1)
    app = create_app(data, settings, models=[Served(predictor), ward.NameReader()])
    with TestClient(app, base_url=BASE) as http:
        yield Client(app, http)


def attempt(client, content=None, role="radiologist", **fields):
    files = None if content is None else {"file": ("image", content)}
    return client("POST", "/api/v1/try", role, files=files, data=fields)


def counts(client):
    with client.clinic.database.read() as connection:
        return {
            name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for name, table in store.metadata.tables.items()
        }


def test_the_picture_and_what_the_model_says_come_back(client, film, predictor):
    answer = attempt(client, film)
    assert answer.status_code == 200, answer.text
    tried = answer.json()
    [said] = tried["models"]  # a model that only the tests know is not offered
    expected = predictor.analyse(predictor.read(film))
    assert said["suitable"] is True
    assert {f["finding"]: f["probability"] for f in said["findings"]} == {
        f.finding: pytest.approx(f.probability) for f in expected.findings
    }
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(tried["picture"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (tried["rows"], tried["columns"]) == (96, 96)
    first = said["findings"][0]
    values = np.asarray(first["values"], np.float32).reshape(first["rows"], first["columns"])
    names = [f.finding for f in expected.findings]
    np.testing.assert_allclose(values, expected.maps[names.index(first["finding"])], rtol=1e-3, atol=1e-6)
    assert to_image(values, said["box"], picture.shape).shape == picture.shape


def test_nothing_of_it_is_kept_but_that_somebody_tried(client, data, film):
    attempt(client, film)  # so that whatever is made once is there
    before = counts(client)
    assert attempt(client, film).status_code == 200
    assert attempt(client, b"not a radiograph").status_code == 422
    after = counts(client)
    assert after.pop("audit") == before.pop("audit") + 2
    assert after == before
    client.clinic.database.engine.dispose()
    pixels = film[-256:]
    for file in data.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert film[:1024] not in content, file
            assert pixels not in content, file
            assert NAME.split("^")[1].encode() not in content, file
    assert not list(client.clinic.archive.root.rglob("*.dcm"))
    with client.clinic.database.read() as connection:
        rows = connection.execute(sa.select(store.audit).order_by(store.audit.c.seq.desc()).limit(2)).all()
    assert [row.action for row in rows] == ["image.tried", "image.tried"]
    assert [row.detail["code"] for row in rows] == ["UNREADABLE", ""]
    for row in rows:
        assert set(row.detail) == {"by", "models", "code"}
        assert row.object == ward.SITE


def test_no_file_gets_a_name_while_it_is_tried(client, film, monkeypatch, tmp_path):
    """Everything that spools goes through `tempfile`; a folder of our own shows what has a name in it."""
    import tempfile

    seen = []
    look = tryout._look

    def looking(*arguments):
        seen.append(sorted(tmp_path.rglob("*")))
        return look(*arguments)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tryout, "_look", looking)
    answer = client("POST", "/api/v1/try", files={"file": ("image", film + bytes(MOST - len(film) - 1))})
    assert answer.status_code == 200, answer.text
    assert seen == [[]]


def test_refusals_come_with_code_and_sentence(client):
    for content, code in (
        (b"Dear colleague", "UNREADABLE"),
        (ward.archive({"a.png": ward.png(1)}), "UNREADABLE"),
        (bytes(MOST + 1), None),
    ):
        answer = attempt(client, content)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.status_code == (413 if code is None else 422)
        assert answer.json()["detail"].startswith("file: ")
        if code:
            assert answer.json()["code"] == code
    over = client("POST", "/api/v1/try", files={"file": ("image", bytes(MOST + 2 * 2**20))})
    assert over.status_code == 413


def test_an_image_that_does_not_suit_the_model_is_shown_with_the_reason(client):
    answer = attempt(client, ward.png(7, side=96))
    assert answer.status_code == 200, answer.text
    [said] = answer.json()["models"]
    assert said["suitable"] is False
    assert said["code"]
    assert said["reason"]
    assert said["findings"] == []


def test_the_model_is_chosen_among_those_that_serve(client, film, predictor):
    for name in (predictor.package.name, predictor.package.id):
        assert [said["model"] for said in attempt(client, film, model=name).json()["models"]] == [
            predictor.package.name
        ]
    missing = attempt(client, film, model="none")
    assert missing.status_code == 404
    assert "in service" in missing.json()["detail"]


def test_a_model_that_is_off_is_not_asked(client, film, predictor):
    client.clinic.switch_ai(ward.SITE, False, "Dr N", model=predictor.package.name)
    try:
        answer = attempt(client, film).json()
        assert answer["models"] == []
        assert answer["picture"]
        assert "No model is in service" in client("GET", "/try", "radiologist").text
    finally:
        client.clinic.switch_ai(ward.SITE, True, "Dr N", model=predictor.package.name)


@pytest.mark.parametrize("fields", [{}, {"file": True, "url": "https://example.org/a.png"}])
def test_one_image_and_one_only(client, film, fields):
    content = film if fields.pop("file", None) else None
    answer = attempt(client, content, model="", **fields)
    assert answer.status_code == 422
    assert "one image" in answer.json()["detail"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.dcm",
        "http://[::1]/a.dcm",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/a.dcm",
        "file:///etc/passwd",
        "ftp://example.org/a.dcm",
        "http://user@example.org/a.dcm",
    ],
)
def test_an_address_is_guarded_as_for_an_upload(client, url):
    before = counts(client)
    answer = attempt(client, url=url)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("url: ")
    assert counts(client)["study"] == before["study"]


def test_a_public_address_is_fetched_within_the_limits(client, film, monkeypatch):
    asked = {}

    @contextmanager
    def got(url, **limits):
        from io import BytesIO

        asked.update(limits, url=url)
        yield "chest.dcm", BytesIO(film)

    monkeypatch.setattr(fetch, "get", got)
    answer = attempt(client, url="https://example.org/chest.dcm")
    assert answer.status_code == 200, answer.text
    settings = client.clinic.settings
    assert asked == {
        "url": "https://example.org/chest.dcm",
        "max_bytes": settings.max_bytes,
        "timeout_s": settings.url_timeout_s,
    }
    assert fetch.public(ipaddress.ip_address("10.0.0.1")) is False


def test_no_more_than_a_few_at_a_time(client, film):
    for _ in range(tryout.AT_ONCE):
        assert tryout._slots.acquire(blocking=False)
    try:
        answer = attempt(client, film)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
    finally:
        tryout._slots.release(tryout.AT_ONCE)
    assert attempt(client, film).status_code == 200


def test_the_page_offers_the_models_and_asks_nobody_else(client, predictor):
    page = Page(client("GET", "/try", "radiologist").text)
    said = " ".join(" ".join(page.text).split())
    assert predictor.package.name in said
    assert "Research use only" in said
    assert all(request.startswith("/") for request in page.requests)
