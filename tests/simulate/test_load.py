"""The load test: what it sends, what it counts, and where it sees the knee."""

from __future__ import annotations

import math
from io import BytesIO
from itertools import count

import httpx
import pydicom
import pytest

from wetread.errors import ClinicError, ConfigError, DeniedError
from wetread.simulate import load
from wetread.simulate.load import Films, Step, measure, report, run, send, table

FILMS = Films(64, 0, 2)


def client(answer):
    return httpx.Client(base_url="http://clinic", transport=httpx.MockTransport(answer))


def analysed(request):
    return httpx.Response(201, json={"studies": [{"status": "analysed"}]})


def test_every_film_is_a_study_and_a_patient_of_its_own():
    films = [pydicom.dcmread(BytesIO(FILMS.next())) for _ in range(5)]
    for name in ("StudyInstanceUID", "SOPInstanceUID", "PatientID", "AccessionNumber"):
        assert len({film[name].value for film in films}) == 5
    assert all(film.SOPInstanceUID == film.file_meta.MediaStorageSOPInstanceUID for film in films)
    assert films[0].PixelData == films[2].PixelData != films[1].PixelData


def test_a_study_is_sent_as_a_form_and_waited_for():
    content = FILMS.next()

    def answer(request):
        body = request.read()
        assert request.url.params["wait"] == "30.0"
        assert content in body
        assert len(body) == int(request.headers["Content-Length"])
        assert b'name="files"; filename="load.dcm"' in body
        return analysed(request)

    took, error = send(client(answer), content)
    assert (took > 0, error) == (True, "")


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (httpx.Response(503), "HTTP 503"),
        (httpx.Response(201, json={"studies": [{"status": "received"}]}), "not ranked by a result (received)"),
    ],
)
def test_what_is_not_ranked_is_an_error(response, error):
    assert send(client(lambda request: response), b"film")[1] == error


def test_no_answer_is_an_error_and_a_refused_token_ends_it():
    def broken(request):
        raise httpx.ReadTimeout("slow")

    assert send(client(broken), b"film")[1] == "ReadTimeout"
    with pytest.raises(DeniedError, match="wetread token"):
        send(client(lambda request: httpx.Response(401)), b"film")


def test_all_clinics_send_and_every_answer_is_counted():
    seen, numbers = [], count()  # the first one fails already, however few a busy machine sends

    def answer(request):
        seen.append(request.read())
        return httpx.Response(503) if next(numbers) % 5 == 0 else analysed(request)

    step = measure([client(answer) for _ in range(3)], FILMS, 0.2)
    assert step.clinics == 3
    assert len(step.times) + sum(step.errors.values()) == len(seen)
    assert set(step.errors) == {"HTTP 503"}


def step(clinics, p95, rate, **errors):
    return Step(clinics, 100 / rate, (p95,) * 100, errors)


def test_the_knee_is_the_last_number_that_was_held_within_the_limit_without_an_error():
    steps = [step(4, 0.2, 20), step(8, 0.3, 30), step(16, 0.9, 32), step(32, 1.8, 32)]
    found = report(steps, 1.0)
    assert (found["knee"], found["saturated"], found["passed"]) == (16, 16, True)
    assert report([*steps[:2], step(16, 0.9, 60, broken=1)], 1.0)["knee"] == 8
    assert report([step(4, 1.1, 4)], 1.0) | {"steps": 0} == {
        "limit_s": 1.0, "steps": 0, "knee": 0, "saturated": None, "passed": False,
    }  # fmt: skip
    assert [line["p95_ms"] for line in found["steps"]] == [200.0, 300.0, 900.0, 1800.0]
    assert "Knee: 16 clinics" in table(found)
    assert table(report([Step(4, 1.0, (), {"HTTP 503": 2})], 1.0)).count("–") == 3


def test_percentiles_are_of_the_times_and_none_without_any():
    found = Step(1, 10.0, tuple(n / 100 for n in range(101)), {})
    assert [found.percentile(p) for p in (50, 95, 99)] == pytest.approx([0.5, 0.95, 0.99])
    assert found.rate == pytest.approx(10.1)
    assert math.isnan(Step(1, 1.0, (), {}).percentile(50))
    assert not Step(1, 1.0, (), {}).holds(1.0)


def test_clinics_double_until_the_server_is_too_slow(monkeypatch):
    numbers = []
    monkeypatch.setattr(load, "connect", lambda url, token: client(analysed))
    monkeypatch.setattr(
        load,
        "measure",
        lambda clinics, *_, **__: numbers.append(len(clinics)) or step(len(clinics), len(clinics) / 20, 9),
    )
    steps = run("http://clinic", "t", clinics=4, most=64, size=64)
    assert numbers == [4, 8, 16, 32]
    assert report(steps, 1.0)["knee"] == 16


def test_a_server_that_ranks_nothing_is_an_error_before_it_begins(monkeypatch):
    waiting = httpx.Response(201, json={"studies": [{"status": "not_analysed"}]})
    monkeypatch.setattr(load, "connect", lambda url, token: client(lambda request: waiting))
    with pytest.raises(ClinicError, match="not_analysed"):
        run("http://clinic", "t", size=64)


def test_no_server_is_an_error_that_says_how_to_start_one():
    with pytest.raises(ClinicError, match="wetread serve"):
        run("http://127.0.0.1:1", "t", size=64)


@pytest.mark.parametrize("values", [{"clinics": 0}, {"clinics": 8, "most": 4}, {"seconds": 0}, {"limit_s": -1}])
def test_numbers_that_cannot_be_are_refused(values):
    with pytest.raises(ConfigError, match="load"):
        run("http://clinic", "t", **values)
