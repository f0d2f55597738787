"""The HTTP API as a program sees it: what goes in, what comes out, and what is said when it cannot be."""

from __future__ import annotations

import json
from contextlib import contextmanager
from io import BytesIO

import cv2
import numpy as np
import pytest
from fastapi.routing import APIRoute
from ward import archive, dicom, png

from wetread import __version__
from wetread.clinic import fetch, store
from wetread.web import problems


def is_problem(response, status: int, named: str = "") -> bool:
    body = response.json()
    return (
        response.status_code == status == body["status"]
        and response.headers["content-type"] == problems.MEDIA_TYPE
        and {"type", "title", "status"} <= set(body)
        and named in body["detail"]
    )


def test_a_radiograph_in_and_its_place_out(client) -> None:
    receipt = client.send(("pneumothorax.png", png(1)))
    study = receipt["studies"][0]
    assert set(study) >= {"study", "status", "priority", "reason", "code", "new"}
    assert (study["status"], study["priority"], study["new"]) == ("analysed", "critical", True)
    assert study["reason"] == "Pneumothorax likely (names 1)"
    found = client("GET", f"/api/v1/studies/{study['study']}").json()
    assert (found["status"], found["priority"], found["reason"]) == ("analysed", "critical", study["reason"])
    finding = next(f for f in found["findings"] if f["finding"] == "Pneumothorax")
    assert (finding["probability"], finding["threshold"], finding["flagged"], finding["call"]) == (
        0.9,
        0.5,
        True,
        "likely",
    )
    assert found["images"][0]["image"] == receipt["images"][0]["image"] == finding["image"]
    assert found["cautions"] == ["age unknown"]
    assert (found["claim"], found["review"], found["reviews"]) == (None, None, [])


def test_many_kinds_at_once(client) -> None:
    receipt = client.send(
        ("a.png", png(10)), ("b.dcm", dicom(11)), ("c.zip", archive({"d.png": png(12), "x.txt": b"hello"})),
        ("e.txt", b"not a radiograph"), ("lateral.png", png(13)),
    )  # fmt: skip
    status = {i["file"]: s["status"] for i in receipt["images"] for s in receipt["studies"] if s["study"] == i["study"]}
    assert status == {
        "a.png": "analysed",
        "b.dcm": "analysed",
        "c.zip/d.png": "analysed",
        "c.zip/x.txt": "not_analysed",
        "e.txt": "not_analysed",
        "lateral.png": "not_analysed",
    }
    listed = {s["study"]: s for s in client("GET", "/api/v1/worklist", params={"limit": 500}).json()["studies"]}
    codes = {listed[s["study"]]["code"] for s in receipt["studies"]}
    assert codes == {None, "UNREADABLE", "LATERAL_ONLY"}


def test_the_same_again_is_success_and_nothing_new(client) -> None:
    first, again = client.send(("a.png", png(20))), client.send(("other.png", png(20)))
    assert [s["study"] for s in first["studies"]] == [s["study"] for s in again["studies"]]
    assert again["studies"][0]["new"] is False


def test_study_and_priority_of_the_sender(client) -> None:
    receipt = client.send(("a.png", png(30)), ("b.png", png(31)), study="visit 1", priority="urgent")
    assert len(receipt["studies"]) == 1
    assert receipt["studies"][0]["priority"] == "urgent"
    key = receipt["studies"][0]["study"]
    more = client.send(("c.png", png(32)), study=key)
    assert more["studies"][0]["study"] == key
    assert len(client("GET", f"/api/v1/studies/{key}").json()["images"]) == 3


def test_quarantine_is_seen(client) -> None:
    first = client.send(("a.dcm", dicom(40)))
    second = client.send(("b.dcm", dicom(41, SOPInstanceUID="1.2.41.3")))
    assert second["images"][0]["quarantined"]
    study = client("GET", f"/api/v1/studies/{first['studies'][0]['study']}").json()
    assert [i["state"] for i in study["images"]] == ["stored", "quarantined"]
    for path in ("", "/frame", "/preview.png"):
        hidden = client("GET", f"/api/v1/images/{second['images'][0]['image']}{path}")
        assert is_problem(hidden, 404)


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ({"data": {"priority": "urgent"}}, 422, "nothing was sent"),
        ({"files": {"other": ("a.txt", b"x")}, "data": {"priority": "whenever"}}, 422, "whenever"),
        ({"files": {"files": ("a.png", png(50))}, "data": {"study": "x" * 65}}, 422, "1 to 64"),
        ({"files": {"files": ("a.png", png(50))}, "data": {"study": store.new_id()}}, 404, "no such study"),
        ({"files": {"files": ("big.dcm", bytes(2**20 + 1))}}, 413, "max_bytes"),
        ({"files": {"files": ("a.dcm", bytes(5 * 2**20))}}, 413, "a body of more than"),
        ({"files": [("files", (f"{i}.txt", b"x")) for i in range(21)]}, 400, "Too many files"),
        ({"json": {"url": "http://127.0.0.1/x"}}, 422, "public address"),
        ({"json": {"url": "http://10.0.0.1/x", "more": 1}}, 422, "more"),
        ({"json": {}}, 422, "url"),
        ({"json": [1]}, 422, "body"),
        ({"data": {"url": "file:///etc/passwd"}}, 422, "only http"),
        ({"data": {"url": ["https://example.org/x"] * 5}}, 422, "at most 4 at a time"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 422, "body"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        (
            {"content": b"--x\r\nbad", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            422,
            "nothing was sent",
        ),
        ({"content": b"x"}, 422, "nothing was sent"),
    ],
)
def test_what_cannot_be_taken_is_a_problem(client, request_: dict, status: int, named: str) -> None:
    assert is_problem(client("POST", "/api/v1/studies", **request_), status, named)


def test_a_url_is_fetched(client, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def get(url: str, **more: object):
        assert url == "https://example.org/edema.png"
        yield "edema.png", BytesIO(png(60))

    monkeypatch.setattr(fetch, "get", get)
    by_json = client("POST", "/api/v1/studies", json={"url": "https://example.org/edema.png"}, params={"wait": 10})
    by_form = client("POST", "/api/v1/studies", data={"url": "https://example.org/edema.png"})
    assert by_json.status_code == by_form.status_code == 201
    assert by_json.json()["studies"][0]["priority"] == "urgent"
    assert by_form.json()["studies"][0]["new"] is False


def test_pages_of_the_worklist(client) -> None:
    client.send(*((f"{i}.png", png(70 + i)) for i in range(5)))
    everything = client("GET", "/api/v1/worklist", params={"limit": 500}).json()
    found, after = [], None
    while True:
        page = client("GET", "/api/v1/worklist", params={"limit": 3} | ({"after": after} if after else {})).json()
        found += page["studies"]
        after = page["next"]
        if after is None:
            break
    assert [s["study"] for s in found] == [s["study"] for s in everything["studies"]]
    assert everything["counts"]["unread"] == len(found)
    assert everything["ai"]["on"] is True
    for query in ({"status": "lost"}, {"priority": "now"}, {"after": "x"}, {"limit": 0}, {"limit": 501}):
        assert is_problem(client("GET", "/api/v1/worklist", params=query), 422)


def test_reading_a_study(client) -> None:
    key = client.send(("edema.png", png(80)))["studies"][0]["study"]
    path = f"/api/v1/studies/{key}"
    assert client("POST", f"{path}/claim", "radiologist").json()["claimed_by"] == "radiologist"
    assert is_problem(client("POST", f"{path}/claim"), 409, "claimed by radiologist")
    assert client("DELETE", f"{path}/claim", "radiologist").json()["status"] == "analysed"
    answer = {"finding": "Edema", "answer": "agree"}
    draft = client("POST", f"{path}/reviews", "radiologist", json={"state": "draft", "findings": [answer]})
    assert (draft.status_code, draft.json()["state"]) == (201, "draft")
    body = {
        "findings": [answer, {"finding": "Fracture", "answer": "added"}],
        "model_verdict": "right",
        "note": "agreed ✓",
    }
    signed = client("POST", f"{path}/reviews", "radiologist", json=body)
    assert signed.status_code == 201
    assert signed.json()["review"] == draft.json()["review"]
    study = client("GET", path).json()
    assert study["status"] == "reviewed"
    assert study["review"]["findings"] == body["findings"]
    assert (study["review"]["reader"], study["review"]["note"]) == ("radiologist", "agreed ✓")
    assert is_problem(client("POST", f"{path}/reviews", json=body), 409, "signed already")
    read = client("GET", "/api/v1/worklist", params={"status": "reviewed"}).json()["studies"]
    assert key in [s["study"] for s in read]


def test_what_arrived_unseen_is_not_signed_over(client) -> None:
    first = client.send(("edema.png", png(82)), study="seen and unseen")
    path = f"/api/v1/studies/{first['studies'][0]['study']}/reviews"
    second = client.send(("late.png", png(83)), study="seen and unseen")
    body = {"note": "typed", "seen": [first["images"][0]["image"]]}
    answer = client("POST", path, json=body)
    assert is_problem(answer, 409, "you have not seen")
    assert answer.json()["images"] == [second["images"][0]["image"]]
    assert client("POST", path, json={**body, "state": "draft"}).status_code == 201
    body["seen"] += answer.json()["images"]
    assert client("POST", path, json=body).json()["state"] == "signed"
    assert is_problem(client("POST", path, json={"seen": [1]}), 422, "seen")


@pytest.mark.parametrize(
    "body",
    [
        {"findings": [{"finding": "Edema", "answer": "maybe"}]},
        {"findings": [{"finding": "Gout", "answer": "agree"}]},
        {"findings": [{"finding": "", "answer": "agree"}]},
        {"model_verdict": "fine"},
        {"state": "later"},
        {"unknown": 1},
        {"note": "x" * 10_001},
        [],
        None,
    ],
)
def test_reviews_that_cannot_be(client, body: object) -> None:
    key = client.send(("edema.png", png(81)))["studies"][0]["study"]
    assert is_problem(client("POST", f"/api/v1/studies/{key}/reviews", json=body), 422)
    assert client("GET", f"/api/v1/studies/{key}").json()["reading"] == "unread"


@pytest.mark.parametrize("key", ["x", "0" * 36, "%00", "..%2f..%2fetc", "a" * 3000])
@pytest.mark.parametrize("path", ["studies/{}", "images/{}", "images/{}/frame", "images/{}/heatmap?finding=x"])
def test_what_is_not_there(client, key: str, path: str) -> None:
    assert is_problem(client("GET", f"/api/v1/{path.format(key)}"), 404)


def test_frames_are_the_pixels(client) -> None:
    deep = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 32
    content = cv2.imencode(".png", deep)[1].tobytes()
    receipt = client.send(("small.png", png(90)), ("deep.png", content))
    small, big = (i["image"] for i in receipt["images"])
    frame = client("GET", f"/api/v1/images/{small}/frame")
    assert frame.headers["wetread-bits"] == "8"
    wanted = cv2.imdecode(np.frombuffer(png(90), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(np.frombuffer(frame.content, np.uint8).reshape(32, 32), wanted)
    frame = client("GET", f"/api/v1/images/{big}/frame")
    assert [frame.headers[f"wetread-{n}"] for n in ("rows", "columns", "bits")] == ["40", "50", "16"]
    pixels = np.frombuffer(frame.content, "<u2").reshape(40, 50)
    assert np.all(np.diff(pixels.ravel().astype(int)) > 0)
    assert client("GET", f"/api/v1/images/{big}").json() == {
        "image": big, "rows": 40, "columns": 50, "bits": 16, "view": None, "spacing_mm": None,
    }  # fmt: skip
    again = client("GET", f"/api/v1/images/{big}/frame", headers={"If-None-Match": frame.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    preview = client("GET", f"/api/v1/images/{big}/preview.png", params={"side": 25})
    assert cv2.imdecode(np.frombuffer(preview.content, np.uint8), cv2.IMREAD_UNCHANGED).shape == (20, 25)


def test_an_image_that_cannot_be_read_says_so(client) -> None:
    image = client.send(("note.txt", b"no radiograph at all"))["images"][0]["image"]
    for path in ("", "/frame", "/preview.png"):
        response = client("GET", f"/api/v1/images/{image}{path}")
        assert is_problem(response, 422, "is not a DICOM")
        assert response.json()["code"] == "UNREADABLE"


def test_heatmaps(client) -> None:
    image = client.send(("edema.png", png(91, side=40)))["images"][0]["image"]
    found = client("GET", f"/api/v1/images/{image}/heatmap", params={"finding": "Edema", "model": "names"}).json()
    wanted = np.zeros((4, 4))
    wanted[1, 2] = 2
    np.testing.assert_allclose(np.reshape(found["values"], (found["rows"], found["columns"])), wanted, rtol=1e-3)
    assert found["box"] == [0.1, 0.2, 0.5, 0.6]
    drawn = client("GET", f"/api/v1/images/{image}/heatmap.png", params={"finding": "Edema"})
    picture = cv2.imdecode(np.frombuffer(drawn.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (40, 40, 3)
    colour = picture.max(axis=2).astype(int) - picture.min(axis=2)
    row, column = np.unravel_index(colour.argmax(), colour.shape)
    # The cell in row 1 and column 2 of 4, inside the box.
    assert abs(row / 40 - (0.2 + 0.6 * 1.5 / 4)) < 0.1
    assert abs(column / 40 - (0.1 + 0.5 * 2.5 / 4)) < 0.1
    for query in ({"finding": "Gout"}, {"finding": "Edema", "model": "none"}):
        assert is_problem(client("GET", f"/api/v1/images/{image}/heatmap", params=query), 404)


def test_the_ai_switch_orders_the_list_anew(client) -> None:
    a, b = (client.send((name, png(seed)))["studies"][0]["study"] for name, seed in (("no.png", 95), ("edema.png", 96)))

    def order() -> list[str]:
        listed = client("GET", "/api/v1/worklist", params={"limit": 500}).json()["studies"]
        return [s["study"] for s in listed if s["study"] in (a, b)]

    assert order() == [b, a]
    off = client("PUT", "/api/v1/ai", json={"on": False}).json()
    assert off["on"] is False
    assert "first come, first served" in off["banner"]
    assert order() == [a, b]
    on = client("PUT", "/api/v1/ai", json={"on": True}).json()
    assert (on["on"], on["banner"], on["models"][0]["state"]) == (True, None, "serving")
    assert order() == [b, a]


def test_events_tell_what_happened(client) -> None:
    from wetread.web import events

    before = events.latest(client.clinic)
    key = client.send(("edema.png", png(97)))["studies"][0]["study"]
    client("POST", f"/api/v1/studies/{key}/reviews", json={"findings": []})
    rows = events._since(client.clinic, "default", before)
    assert [row.kind for row in rows if row.study == key] == [
        "instance.stored", "study.analysed", "study.claimed", "review.signed",
    ]  # fmt: skip
    assert [row.seq for row in rows] == sorted(row.seq for row in rows)
    assert events._since(client.clinic, "elsewhere", 0) == []


def test_health_and_numbers_hold_no_names(client) -> None:
    client.send(("a.dcm", dicom(98, PatientName="Hush^Nobody", PatientID="SECRET7")))
    assert client.http.get("/healthz").json() == {"status": "alive"}
    assert client.http.get("/readyz").json()["models"] == ["names"]
    text = client.http.get("/metrics").text
    for name in ("wetread_unread", "wetread_analyses_total", "wetread_http_seconds", "wetread_longest_wait_seconds"):
        assert f"\n{name}" in text
    assert "Hush" not in text
    assert "SECRET7" not in text
    assert 'route="/api/v1/studies"' in text


def test_logs_hold_no_names(client, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level("DEBUG", logger="wetread"):
        client.send(("poison-Hush.dcm", dicom(99, PatientName="Hush^Nobody", PatientID="SECRET7")), wait=15)
        odd = dicom(100, PatientName="Hush^Nobody", StudyInstanceUID="1.2.3.44444").replace(
            b"1.2.3.44444", b"1.a.SECRET7"
        )
        client.send(("b.dcm", odd.replace(b"034Y", b"Hush")))
    captured = caplog.text + "".join(capfd.readouterr())
    assert "failed" in captured
    assert "Hush" not in captured
    assert "SECRET7" not in captured


def test_openapi_is_complete(client) -> None:
    said = client.http.get("/api/v1/openapi.json").json()
    assert said["info"]["version"] == __version__
    assert json.loads(json.dumps(said)) == said
    tags = {tag["name"] for tag in said["tags"]}
    paths = {(path, method) for path, methods in said["paths"].items() for method in methods}
    assert ("/api/v1/studies", "post") in paths
    for path, methods in said["paths"].items():
        for method, operation in methods.items():
            assert set(operation["tags"]) <= tags, (method, path)
            assert operation["tags"], (method, path)
            assert operation.get("description") or operation["summary"], (method, path)
    documented = {path for path, _ in paths}
    for route in client.app.routes:
        if isinstance(route, APIRoute) and route.path.startswith("/api/"):
            assert route.path in documented


def test_every_role_may_do_only_its_own(client) -> None:
    key = client.send(("edema.png", png(101)))["studies"][0]["study"]
    for role in ("service", "engineer"):
        assert is_problem(client("POST", f"/api/v1/studies/{key}/reviews", role, json={}), 403, role)
        assert is_problem(client("POST", f"/api/v1/studies/{key}/claim", role), 403, role)
    for role in ("service", "engineer", "radiologist"):
        assert is_problem(client("PUT", "/api/v1/ai", role, json={"on": False}), 403, role)
        assert client("GET", "/api/v1/worklist", role).status_code == 200
