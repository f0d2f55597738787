"""The sender of arrivals, against servers that answer, refuse, fail and stall."""

import io
import socket
import threading
import zipfile
from datetime import datetime
from itertools import count, repeat

import httpx
import pydicom
import pytest

from wetread.clinic.peers import Peer
from wetread.errors import ClinicError, DeniedError
from wetread.simulate import arrivals
from wetread.simulate.arrivals import Patience, Summary, connect
from wetread.simulate.department import Patient, phantom_patient
from wetread.simulate.ways import Store, Stow, Upload

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


class Later:
    """A server that puts off what it gets, so many times."""

    def __init__(self, times, **headers):
        self.left, self.headers, self.seen = times, headers, []

    def __call__(self, request):
        self.seen.append(request.read())
        self.left -= 1
        return httpx.Response(self.status, headers=self.headers) if self.left >= 0 else taken(request)

    status = 503


@pytest.mark.parametrize("status", [429, 503, 507])
def test_what_is_put_off_is_sent_again_and_recorded_once(status):
    server, cases = Later(2), []
    server.status = status
    quick = Patience(tries=5, first_s=0.001)
    summary = arrivals.send(
        PATIENTS[:1], repeat(0.0), Upload(client(server)), patience=quick, record=lambda *case: cases.append(case)
    )
    assert (summary.to_dict()["accepted"], summary.retries, len(server.seen)) == (1, 2, 3)
    assert [(patient.name, answer.outcome, answer.study) for patient, answer in cases] == [
        ("p0", "accepted", "s-p0.dcm")
    ]


def test_what_never_succeeds_is_recorded_with_its_reason():
    cases, quick = [], Patience(tries=3, first_s=0.001)
    summary = arrivals.send(
        PATIENTS[:2], repeat(0.0), Upload(client(Later(99))), patience=quick, record=lambda *case: cases.append(case)
    )
    assert summary.to_dict()["reasons"] == {"HTTP 503": 2}
    assert sorted(patient.name for patient, _ in cases) == ["p0", "p1"]
    assert not any(answer.ok for _, answer in cases)


def test_waits_double_and_heed_what_the_server_asks_for():
    patience = Patience(first_s=0.5, longest_s=8)
    assert [patience.wait(n, None) for n in (1, 2, 3, 9)] == [0.5, 1.0, 2.0, 8.0]
    assert patience.wait(1, 5.0) == 5.0
    assert patience.wait(1, 500.0) == 8.0


def test_a_batch_is_one_archive_and_each_study_has_an_answer_of_its_own():
    archives = []

    def answer(request):
        body = request.read()
        if b"batch.zip" not in body:
            return taken(request)
        content = body[body.index(b"PK\x03\x04") : body.rindex(b"\r\n--")]
        archives.append(names := zipfile.ZipFile(io.BytesIO(content)).namelist())
        images = [{"file": f"batch.zip/{name}", "study": f"s{name}"} for name in names if "p1" not in name]
        refused = [{"file": f"batch.zip/{name}", "detail": "too large"} for name in names if "p1" in name]
        return httpx.Response(201, json={"images": images, "refused": refused})

    summary = send(PATIENTS[:5], repeat(0.0), client(answer), batch=2, senders=1).to_dict()
    assert [len(names) for names in archives] == [2, 2]  # the last one is alone, and no archive
    assert summary["reasons"] == {"refused: too large": 1}
    assert summary["accepted"] == 4


def test_two_patients_with_files_of_one_name_are_both_in_the_archive():
    same = [Patient(f"p{n}", (("a.dcm", b"%d" % n), ("a.dcm", b"other%d" % n))) for n in range(2)]
    seen = []

    def answer(request):
        body = request.read()
        with zipfile.ZipFile(io.BytesIO(body[body.index(b"PK\x03\x04") : body.rindex(b"\r\n--")])) as archive:
            seen.extend(archive.read(name) for name in archive.namelist())
            images = [{"file": f"batch.zip/{name}", "study": "s"} for name in archive.namelist()]
        return httpx.Response(201, json={"images": images, "refused": []})

    assert send(same, repeat(0.0), client(answer), batch=2).to_dict()["accepted"] == 2
    assert sorted(seen) == [b"0", b"1", b"other0", b"other1"]


def stow(failed):
    """Answer as STOW-RS does: SOP Instance UID → reason for those that failed."""
    items = [{"00081155": {"Value": [uid]}, "00081197": {"Value": [reason]}} for uid, reason in failed.items()]
    return {"00081198": {"vr": "SQ", "Value": items}} if failed else {}


def test_by_stow_an_instance_without_room_is_sent_again_and_another_failure_is_final():
    films = [phantom_patient(1, n, datetime(2026, 3, 4), size=64, laterals=0.0) for n in (1, 2, 3)]
    uids = [str(pydicom.dcmread(io.BytesIO(p.files[0][1])).SOPInstanceUID) for p in films]
    calls = []

    def answer(request):
        assert request.url.path == "/dicomweb/studies"
        body = request.read()
        calls.append([uid for uid in uids if uid.encode() in body])
        failed = {uids[0]: 0xA700} if len(calls) == 1 else {}
        failed |= {uids[1]: 0xC000} if uids[1].encode() in body else {}
        return httpx.Response(202 if failed else 200, json=stow(failed))

    summary = arrivals.send(
        films, repeat(0.0), Stow(client(answer)), batch=3, patience=Patience(tries=3, first_s=0.001)
    ).to_dict()
    assert calls == [uids, [uids[0]]]
    assert (summary["accepted"], summary["reasons"]) == (2, {"0xC000": 1})


def test_a_peer_that_is_not_there_is_an_error_that_says_so():
    with socket.socket() as taken_port:
        taken_port.bind(("127.0.0.1", 0))
        peer = Store(Peer("NOBODY", "127.0.0.1", taken_port.getsockname()[1]))
        film = phantom_patient(1, 1, datetime(2026, 3, 4), size=64, laterals=0.0)
        with pytest.raises(ClinicError, match="no server there"):
            arrivals.send([film], repeat(0.0), peer)


def test_an_error_in_a_thread_is_told_and_not_swallowed():
    class Broken:
        where = "here"

        def __call__(self, patients):
            raise ZeroDivisionError("oh")

    with pytest.raises(ClinicError, match="ZeroDivisionError"):
        arrivals.send(PATIENTS, repeat(0.0), Broken())


def test_ctrl_c_gives_up_what_the_server_puts_off_and_records_it():
    cases, sent = [], threading.Event()

    def answer(request):
        sent.set()
        return httpx.Response(503)

    def interrupted():
        yield PATIENTS[0]
        assert sent.wait(30)
        raise KeyboardInterrupt

    patient_for_ever = Patience(tries=10**6, first_s=3600, longest_s=3600)
    summary = arrivals.send(
        interrupted(), repeat(0.0), Upload(client(answer)), patience=patient_for_ever, record=lambda *c: cases.append(c)
    )
    assert summary.to_dict()["reasons"] == {"HTTP 503": 1}
    assert len(cases) == 1
