"""The pages, over a clinic whose model knows its phantoms."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
import ward
from fastapi.testclient import TestClient
from web.oracle import Oracle

from wetread.clinic import access
from wetread.clinic.access import Role
from wetread.config import Settings
from wetread.radiograph import phantom
from wetread.web import pages
from wetread.web.app import create_app
from wetread.web.security import COOKIE, csrf_token

EVIL = "<script>alert(1)</script>"


def dicom(seed, view="PA", number=1, patient=None):
    return phantom.dicom(
        phantom.make(seed, view=view, size=96, findings=FINDINGS[seed]), number=number, patient=patient
    )


FINDINGS = {1: ["Pneumothorax"], 2: ["Pleural Effusion"], 3: [], 4: ["Fracture"]}


@pytest.fixture(scope="module")
def oracle():
    return Oracle()


@pytest.fixture(scope="module")
def app(tmp_path_factory, oracle):
    return create_app(tmp_path_factory.mktemp("clinic"), Settings(threads=1), models=[oracle])


@pytest.fixture(scope="module")
def client(app, oracle):
    """Give a signed-in browser, over studies with seeds 1 to 4, a lateral alone, a letter and a study of two images."""
    with TestClient(app, base_url="http://127.0.0.1") as client:
        code = access.login_code(app.state.clinic.database, "Dr N", Role.RADIOLOGIST, "default")
        assert client.post("/login", data={"code": code}).url.path == "/"
        client.headers["X-CSRF-Token"] = csrf_token(client.cookies[COOKIE])
        for seed in FINDINGS:
            oracle.truth[f"{seed}.dcm"] = phantom.make(seed, size=96, findings=FINDINGS[seed])
            send(client, f"{seed}.dcm", dicom(seed))
        send(client, "1-lateral.dcm", dicom(1, "LATERAL", 2))
        send(client, "lateral.dcm", dicom(3, "LATERAL", patient=EVIL))
        send(client, "letter.txt", b"Dear colleague")
        yield client


def send(client, name, content, **fields):
    answer = client.post("/api/v1/studies?wait=20", files=[("files", (name, content))], data=fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["studies"][0]["study"]


def rows(text):
    """Return the text of each row of the list, its cells parted by tabs."""
    found = re.findall(r'<tr data-study="[^"]+".*?</tr>', text, re.S)
    cells = [re.findall(r"<td.*?</td>", row, re.S) for row in found]
    return ["\t".join(" ".join(html.unescape(re.sub(r"<[^>]+>", " ", c)).split()) for c in row) for row in cells]


def study_of(client, word):
    found = re.findall(r'<tr data-study="([^"]+)".*?</tr>', client.get("/").text, re.S)
    texts = rows(client.get("/").text)
    return next(key for key, text in zip(found, texts, strict=True) if word in text)


def test_the_list_is_in_order_and_says_why(client):
    found = rows(client.get("/").text)
    assert [row.split("\t")[0][:1] for row in found] == ["▲", "◆", "●", "●", "○", "○"]
    assert "Pneumothorax likely" in found[0]
    assert "Pleural Effusion likely" in found[1]
    assert "PA+LAT 2 images" in found[0]
    assert "NOT ANALYSED" in found[4]
    assert "frontal" in found[4]
    assert "letter.txt" in found[5]


def test_what_a_file_says_is_text_and_never_markup(client):
    text = client.get("/").text
    assert EVIL not in text
    assert html.escape(EVIL) in text
    assert EVIL not in client.get(f"/studies/{study_of(client, EVIL)}").text


@pytest.mark.parametrize(
    ("chosen", "marks"),
    [("critical", "▲"), ("urgent", "◆"), ("routine", "●●○○"), ("unanalysed", "○○"), ("read", "")],
)
def test_the_list_shows_one_class(client, chosen, marks):
    assert "".join(row[:1] for row in rows(client.get(f"/?class={chosen}").text)) == marks


def test_htmx_gets_the_rows_and_out_of_band_what_changes_with_them(client):
    text = client.get("/", headers={"HX-Request": "true"}).text
    assert "<html" not in text
    assert rows(text) == rows(client.get("/").text)
    assert set(re.findall(r'id="([a-z]+)" hx-swap-oob="true"', re.sub(r"\s+", " ", text))) >= {"counts", "notices"}


def test_an_unknown_class_or_place_leads_back_to_the_list(client):
    assert client.get("/?class=purple", follow_redirects=False).headers["location"] == "/"
    assert client.get("/?from=nowhere", follow_redirects=False).headers["location"] == "/?class=unread"


def test_a_page_after_another(client, monkeypatch):
    monkeypatch.setattr("wetread.web.worklist.PAGE", 4)
    first = client.get("/").text
    link = html.unescape(re.search(r'href="([^"]*from=[^"]*)"', first)[1])
    second = client.get(link).text
    assert rows(first) + rows(second) == rows(client.get("/?class=unread").text) + rows(second)
    assert len(rows(first)) == 4
    assert len(rows(second)) == 2
    assert "first page" in second


def test_a_study_says_who_it_is_and_what_the_model_called(client):
    text = client.get(f"/studies/{study_of(client, 'Pneumothorax')}").text
    assert re.search(r'data-finding="Pneumothorax"[^>]*data-call="likely"', text)
    assert text.index('data-finding="Pneumothorax"') < text.index('data-finding="Fracture"')
    assert "the model reads frontal views only" in text
    assert "age unknown" in text
    assert 'data-ranked="Pneumothorax"' in text
    assert len(re.findall(r"data-image=", text)) == 2
    level = re.search(r'data-finding="Pneumonia"[^>]*?data-level="(\d)"', text)
    assert level[1] == "2"


def test_a_study_opens_in_ohif_where_there_is_one(client, app, monkeypatch):
    [served] = client.get("/dicomweb/studies", params={"PatientID": "phantom00000001", "limit": "1"}).json()
    uid = served["0020000D"]["Value"][0]
    study = next(
        row["study"]
        for row in client.get("/api/v1/worklist").json()["studies"]
        if row["patient_id"] == "phantom00000001"
    )
    assert uid not in client.get(f"/studies/{study}").text
    for address in ("/ohif/viewer", "https://ohif.example/viewer"):
        settings = app.state.clinic.settings.model_copy(update={"ohif": address})
        monkeypatch.setattr(app.state.clinic, "settings", settings)
        page = client.get(f"/studies/{study}").text
        link = re.search(r"<a [^>]*ohif[^>]*>", page)[0]
        assert f'href="{address}?StudyInstanceUIDs={uid}"' in link
        assert 'target="_blank"' in link
        assert 'rel="noopener noreferrer"' in link
        assert page.count(uid) == 1
    picture = send(client, "1.png", ward.png(1))
    assert "OHIF" not in client.get(f"/studies/{picture}").text


@pytest.mark.parametrize("address", ["javascript:alert(1)", "ohif.example", "https://ohif.example/viewer?x=1", "/a b"])
def test_what_is_no_address_of_an_ohif_is_refused(address):
    with pytest.raises(ValueError, match="ohif"):
        Settings(ohif=address)


def test_looking_at_a_study_is_audited(client, app):
    study = study_of(client, "Fracture")
    client.get(f"/studies/{study}")
    with app.state.clinic.database.read() as connection:
        seen = connection.exec_driver_sql("SELECT actor, action FROM audit WHERE object = ?", (study,)).all()
    assert ("Dr N", "study.viewed") in seen


def test_a_review_is_shown_to_its_reader_and_to_others(client, app):
    study = study_of(client, "Fracture")
    body = {
        "state": "draft",
        "findings": [{"finding": "Fracture", "answer": "agree"}, {"finding": "Tie pin", "answer": "added"}],
        "model_verdict": "right",
        "note": "seen <here>",
    }
    assert client.post(f"/api/v1/studies/{study}/reviews", json=body).status_code == 201
    mine = client.get(f"/studies/{study}").text
    assert re.search(r'data-finding="Fracture"[^>]*?data-answer="agree"', mine)
    assert 'data-added="Tie pin"' in mine
    assert "seen &lt;here&gt;" in mine
    assert 'data-verdict="right"' in mine
    code = access.login_code(app.state.clinic.database, "Dr M", Role.RADIOLOGIST, "default")
    with_cookie = TestClient(app, base_url="http://127.0.0.1")
    with_cookie.post("/login", data={"code": code})
    theirs = with_cookie.get(f"/studies/{study}").text
    assert "Draft by Dr N" in theirs
    assert 'data-verdict=""' in theirs


def test_next_is_the_first_that_nobody_reads(client, app):
    first, second = (study_of(client, word) for word in ("Pneumothorax", "Pleural Effusion"))
    assert client.get("/studies/next", follow_redirects=False).headers["location"] == f"/studies/{first}"
    there = client.get(f"/studies/next?after={first}", follow_redirects=False)
    assert there.headers["location"] == f"/studies/{second}"


def test_an_unknown_study_is_a_page_that_says_so(client):
    answer = client.get("/studies/nowhere")
    assert answer.status_code == 404
    assert "no such study" in answer.text


def test_every_page_forbids_scripts_and_styles_of_its_own(client):
    study = study_of(client, "Fracture")
    for path in ("/", f"/studies/{study}", "/login", "/login?code=x", "/studies/nowhere"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-eval" not in policy
        assert "script-src 'self'" in policy
        text = answer.text
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))
        assert not re.search(r"<style|\son\w+=|javascript:|hx-on|js:", text)
        for address in re.findall(r'\s(?:src|href|action|hx-get)="([^"]*)"', text):
            assert address.startswith(("/", "#")), address


def test_no_page_names_a_file_that_is_not_there(client):
    for path in ("/", f"/studies/{study_of(client, 'Fracture')}"):
        for address in re.findall(r'(?:src|href)="(/static/[^"]*)"', client.get(path).text):
            assert client.get(address).status_code == 200, address


def test_a_browser_keeps_the_front_end_and_asks_whether_it_changed(client):
    first = client.get("/static/dist/study.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/static/dist/study.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    chunks = sorted((Path(pages.__file__).parent / "static/dist/chunks").glob("*.js"))
    assert any(chunk.name.startswith("viewer-") for chunk in chunks)
    for chunk in chunks:  # named by what is in them: asked for once
        kept = client.get(f"/static/dist/chunks/{chunk.name}").headers["cache-control"]
        assert kept == "public, max-age=31536000, immutable"
        # An entry is asked for by its version: imported without, it would be another one, and run its page twice.
        assert not re.search(r'(?:from|import\()\s*"\.\./\w+\.js', chunk.read_text(encoding="utf-8")), chunk.name


class TestLogin:
    def test_a_link_only_asks_and_then_works_once(self, app, client):
        code = access.login_code(app.state.clinic.database, "Dr O", Role.RADIOLOGIST, "default")
        browser = TestClient(app, base_url="http://127.0.0.1")
        for _ in range(2):
            assert COOKIE not in browser.get(f"/login?code={code}").cookies
        answer = browser.post("/login", data={"code": code}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "httponly" in answer.headers["set-cookie"].lower()
        assert "samesite=strict" in answer.headers["set-cookie"].lower()
        assert browser.get("/").status_code == 200
        again = TestClient(app, base_url="http://127.0.0.1").post("/login", data={"code": code})
        assert again.status_code == 403
        assert "used already" in html.unescape(again.text)

    def test_who_did_not_sign_in_is_sent_to_the_login_page(self, app, client):
        browser = TestClient(app, base_url="http://127.0.0.1")
        for path in ("/", "/studies/next", "/studies/x"):
            answer = browser.get(path, follow_redirects=False)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert browser.get("/", headers={"HX-Request": "true"}).status_code == 401

    def test_log_out_ends_the_session(self, app, client):
        code = access.login_code(app.state.clinic.database, "Dr P", Role.RADIOLOGIST, "default")
        browser = TestClient(app, base_url="http://127.0.0.1")
        browser.post("/login", data={"code": code})
        secret = browser.cookies[COOKIE]
        assert browser.post("/logout").status_code == 403  # not from our own page
        assert browser.post("/logout", headers={"X-CSRF-Token": csrf_token(secret)}).status_code == 204
        browser.cookies.set(COOKIE, secret)
        assert browser.get("/", follow_redirects=False).status_code == 303

    def test_an_engineer_sees_but_is_not_asked_for_a_review(self, app, client):
        code = access.login_code(app.state.clinic.database, "Eng", Role.ENGINEER, "default")
        browser = TestClient(app, base_url="http://127.0.0.1")
        browser.post("/login", data={"code": code})
        text = browser.get(f"/studies/{study_of(client, 'Fracture')}").text
        assert 'data-review="false"' in text
        assert 'data-action="sign"' not in text
