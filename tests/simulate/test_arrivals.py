"""The sender of arrivals, against servers that answer, refuse, fail and stall."""

import threading
from itertools import count, repeat

import httpx
import pytest

from wetread.errors import ClinicError, DeniedError
from wetread.simulate import arrivals
from wetread.simulate.arrivals import Patience, Summary, connect
from wetread.simulate.department import Patient
from wetread.simulate.ways import Upload

PATIENTS = [Patient(f"p{n}", ((f"p{n}.dcm", b"DICM%d" % n),)) for n in range(6)]


def client(answer):
    return httpx.Client(base_url="http://clinic", transport=httpx.MockTransport(answer))


def send(patients, gaps, http, **more):
    return arrivals.send(patients, gaps, Upload(http), patience=Patience(tries=1), **more)


def taken(request):
    """Accept everything, as the server says it."""
    body = request.read()
    names = [part.split(b'"')[0].decode() for part in body.split(b'filename="')[1:]]
    return httpx.Response(201, json={"images": [{"file": name, "study": f"s-{name}"} for name in names], "refused": []})


def test_every_patient_is_posted_once_as_multipart_files():
    bodies = []

    def answer(request):
        assert (request.method, request.url.path) == ("POST", "/api/v1/studies")
        bodies.append(request.read())
        return taken(request)

    summary = send(PATIENTS, repeat(0.0), client(answer)).to_dict()
    assert (summary["sent"], summary["accepted"], summary["failed"]) == (6, 6, 0)
    for n in range(6):
        assert sum(b"DICM%d" % n in body and b'name="files"; filename="p%d.dcm"' % n in body for body in bodies) == 1


def test_a_study_of_two_images_is_one_request():
    requests = []

    def answer(request):
        requests.append(request.read())
        return taken(request)

    send([Patient("p", (("pa.dcm", b"PA"), ("lat.dcm", b"LAT")))], repeat(0.0), client(answer))
    assert len(requests) == 1
    assert requests[0].count(b'name="files"') == 2


def test_failures_are_counted_by_reason_and_do_not_stop_the_department():
    numbers = count()

    def answer(request):
        number = next(numbers)
        if number == 1:
            raise httpx.ReadTimeout("slow")
        return httpx.Response(503) if number == 2 else taken(request)

    summary = send(PATIENTS, repeat(0.0), client(answer), senders=1).to_dict()
    assert (summary["sent"], summary["accepted"], summary["failed"]) == (6, 4, 2)
    assert summary["reasons"] == {"ReadTimeout": 1, "HTTP 503": 1}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_stops_at_once_and_says_so(status):
    with pytest.raises(DeniedError, match="wetread token"):
        send((PATIENTS[0] for _ in count()), repeat(0.001), client(lambda request: httpx.Response(status)))


def test_no_server_is_an_error_that_says_how_to_start_one():
    def answer(request):
        raise httpx.ConnectError("refused")

    with pytest.raises(ClinicError, match=r"http://clinic.*wetread serve"):
        send(PATIENTS, repeat(0.01), client(answer))


def test_a_server_that_goes_away_later_is_counted_not_fatal():
    numbers = count()

    def answer(request):
        if next(numbers) > 1:
            raise httpx.ConnectError("refused")
        return taken(request)

    summary = send(PATIENTS, repeat(0.0), client(answer), senders=1).to_dict()
    assert (summary["accepted"], summary["reasons"]) == (2, {"ConnectError": 4})


def test_a_slow_answer_does_not_hold_up_the_next_patient():
    released = threading.Event()
    arrived = threading.Semaphore(0)

    def answer(request):
        arrived.release()
        assert released.wait(30)
        return taken(request)

    sender = threading.Thread(target=send, args=(PATIENTS[:3], repeat(0.0), client(answer)))
    sender.start()
    for _ in range(3):  # all three are in flight although none has been answered
        assert arrived.acquire(timeout=30)
    released.set()
    sender.join(30)
    assert not sender.is_alive()


def test_setting_stop_ends_an_endless_department():
    stop = threading.Event()

    def answer(request):
        stop.set()
        return taken(request)

    summary = send((PATIENTS[0] for _ in count()), repeat(0.001), client(answer), stop=stop)
    assert summary.to_dict()["accepted"] >= 1


def test_ctrl_c_ends_it_with_the_summary_of_what_was_sent():
    def interrupted():
        yield PATIENTS[0]
        raise KeyboardInterrupt

    summary = send(interrupted(), repeat(0.0), client(taken))
    assert summary.to_dict()["accepted"] == 1


def test_latency_is_quoted_for_accepted_studies_only_and_in_ms():
    summary = Summary(2.0, [("accepted", 0.1), ("accepted", 0.3), ("HTTP 500", 9.0)]).to_dict()
    assert summary["latency_ms"] == {"p50": 200.0, "p95": 290.0, "max": 300.0}
    assert "latency_ms" not in Summary().to_dict()


def test_the_client_carries_the_token():
    with connect("http://127.0.0.1:1", " abc ") as ours:
        assert ours.headers["Authorization"] == "Bearer abc"


@pytest.mark.parametrize("token", ["", " ", "a\nb", "tökén"])
def test_a_token_that_cannot_be_one_is_refused(token):
    with pytest.raises(DeniedError, match="wetread token"):
        connect("http://127.0.0.1:1", token)


@pytest.mark.parametrize("url", ["http://a:b", "http://a\x00b"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ClinicError, match="not an address"):
        connect(url, "abc")


def test_an_address_without_scheme_is_refused_when_sending():
    with connect("localhost:8080", "abc") as ours, pytest.raises(ClinicError, match="no server there"):
        send(PATIENTS[:1], repeat(0.0), ours)
