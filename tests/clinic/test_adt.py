"""ADT messages: what they change, what is answered, and what a hostile sender can do."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import certificates
import hl7
import pytest
import sqlalchemy as sa
from hl7.client import MLLPClient
from hypothesis import given
from hypothesis import strategies as st
from ward import SITE, Ward, dicom

from wetread.clinic import adt, store, worklist
from wetread.clinic.corrections import Corrections
from wetread.config import Settings
from wetread.errors import ConfigError

A08 = (
    "MSH|^~\\&|HIS|HOSP|WETREAD|RAD|20260101120000||ADT^A08^ADT_A01|42|P|2.5\r"
    "EVN|A08|20260101120000\r"
    "PID|1||P0^^^HOSP~999^^^NATIONAL||Roe^Jane^Q||19600229|F\r"
)
A40 = (
    "MSH|^~\\&|HIS|HOSP|WETREAD|RAD|20260101120000||ADT^A40^ADT_A39|43|P|2.5\r"
    "EVN|A40|20260101120000\r"
    "PID|1||NEW^^^HOSP||Roe^Jane\r"
    "MRG|P0^^^HOSP\r"
)


@pytest.fixture
def hand(ward: Ward) -> Corrections:
    return Corrections(ward.database, lambda connection, site: ward.ranking)


def acknowledged(answer: adt.Answer) -> tuple[str, str]:
    parsed = hl7.parse(answer.message)
    return str(parsed.segment("MSA")[1]), str(parsed.segment("MSA")[2])


class TestMessages:
    def test_a08_corrects_every_study_of_the_patient(self, ward: Ward, hand: Corrections) -> None:
        keys = [ward.take(dicom(n, PatientID="P0", PatientName="Ro^J")).study for n in range(2)]
        other = ward.take(dicom(5, PatientName="Ro^J")).study
        answer = adt.answer(hand, A08, SITE)
        assert acknowledged(answer) == ("AA", "42")
        assert answer.text == "2 studies changed"
        for key in keys:
            found = worklist.study(ward.database, SITE, key)
            assert (found.row.patient_name, found.birth_date, found.row.sex) == ("Roe, Jane", "1960-02-29", "F")
        assert worklist.row(ward.database, SITE, other).patient_name == "Ro, J"
        assert adt.answer(hand, A08, SITE).text == "0 studies changed"

    @pytest.mark.parametrize("born", ["1960", "196002", "19600230", "1960022", "19600x29", "never", "０１９６０２２９"])
    def test_a_birth_date_without_a_day_is_left_out(self, ward: Ward, hand: Corrections, born: str) -> None:
        key = ward.take(dicom(0, PatientBirthDate="19590101")).study
        for message in (A08.replace("19600229", born), A40.replace("Roe^Jane", f"Roe^Jane||{born}")):
            assert acknowledged(adt.answer(hand, message, SITE))[0] == "AA"
        found = worklist.study(ward.database, SITE, key)
        assert (found.row.patient_id, found.row.patient_name) == ("NEW", "Roe, Jane")
        assert found.birth_date == "1959-01-01"

    def test_a_birth_date_may_have_a_time(self, ward: Ward, hand: Corrections) -> None:
        key = ward.take(dicom(0)).study
        adt.answer(hand, A08.replace("19600229", "196002291230"), SITE)
        assert worklist.study(ward.database, SITE, key).birth_date == "1960-02-29"

    def test_a40_merges_what_is_here_and_what_still_comes(self, ward: Ward, hand: Corrections) -> None:
        key = ward.take(dicom(0)).study
        assert acknowledged(adt.answer(hand, A40, SITE)) == ("AA", "43")
        row = worklist.row(ward.database, SITE, key)
        assert (row.patient_id, row.patient_name) == ("NEW", "Roe, Jane")
        late = ward.take(dicom(7, PatientID="P0")).study
        assert worklist.row(ward.database, SITE, late).patient_id == "NEW"
        assert adt.answer(hand, A40, SITE).text == "0 studies changed"
        with ward.database.read() as connection:
            actors = set(connection.execute(sa.select(store.audit.c.actor)).scalars())
        assert "hl7 hl7" in actors

    def test_a40_joins_two_halves_of_one_study(self, ward: Ward, hand: Corrections) -> None:
        a = ward.take(dicom(0, PatientID="P0")).study
        b = ward.take(dicom(1, StudyInstanceUID="1.2.1.1", PatientID="NEW")).study
        adt.answer(hand, A40, SITE)
        assert [row.study for row in worklist.page(ward.database, SITE).rows] == [b]
        assert worklist.study(ward.database, SITE, a).merged_into == b

    def test_the_authority_chooses_the_identifier(self, ward: Ward, hand: Corrections) -> None:
        ward.take(dicom(0))
        national = ward.take(dicom(1, PatientID="999")).study
        assert adt.answer(hand, A08, SITE, authority="NATIONAL").text == "1 studies changed"
        assert worklist.row(ward.database, SITE, national).patient_name == "Roe, Jane"
        assert adt.answer(hand, A08, SITE, authority="NOBODY").code == "AE"

    def test_empty_says_nothing_and_quotes_say_none(self, ward: Ward, hand: Corrections) -> None:
        key = ward.take(dicom(0, PatientName="Roe^Jane", PatientBirthDate="19600229")).study
        adt.answer(hand, A08.replace("Roe^Jane^Q||19600229|F", '|||""'), SITE)
        found = worklist.study(ward.database, SITE, key)
        assert (found.row.patient_name, found.birth_date, found.row.sex) == ("Roe, Jane", "1960-02-29", None)

    def test_sites_do_not_meet(self, ward: Ward, hand: Corrections) -> None:
        received = ward.intake.take(BytesIO(dicom(0, PatientName="Ro^J")), "x", "elsewhere")
        adt.answer(hand, A08, SITE)
        assert worklist.row(ward.database, "elsewhere", received.study).patient_name == "Ro, J"

    @pytest.mark.parametrize(
        ("message", "code"),
        [
            ("", "AR"),
            ("hello", "AR"),
            ("MSH", "AR"),
            ("MSH|^~\\&", "AR"),
            ("MSH|^~\\&|||||||ADT^A08|1|P|2.5\r", "AE"),
            (A08.replace("ADT^A08^ADT_A01", "ORU^R01"), "AR"),
            (A08.replace("^A08^ADT_A01", "^A03"), "AR"),
            (A08.replace("P0^^^HOSP~999^^^NATIONAL", ""), "AE"),
            (A40.replace("MRG|P0^^^HOSP\r", ""), "AE"),
            (A40.replace("P0^^^HOSP", ""), "AE"),
        ],
    )
    def test_what_cannot_be_done_is_said(self, ward: Ward, hand: Corrections, message: str, code: str) -> None:
        ward.take(dicom(0))
        answer = adt.answer(hand, message, SITE)
        assert acknowledged(answer)[0] == answer.code == code
        assert "Roe" not in answer.message

    @given(
        st.lists(st.text("ABMSHPIDRG|^~\\&0123456789\r\n\"'é\0", max_size=20), max_size=30).map("|".join),
        st.booleans(),
    )
    def test_nothing_makes_it_fail(self, tmp_path_factory: pytest.TempPathFactory, junk: str, header: bool) -> None:
        class Nobody:
            def update(self, *args: object) -> list[str]:
                return []

            merge_patients = update

        message = "MSH|^~\\&|" + junk if header else junk
        assert adt.answer(Nobody(), message, SITE).code in ("AA", "AE", "AR")  # type: ignore[arg-type]


@pytest.fixture
def listener(ward: Ward, hand: Corrections) -> Iterator[adt.Listener]:
    settings = Settings.model_validate({"hl7_host": "127.0.0.1", "hl7_peers": ["127.0.0.0/8"]})
    opened = adt.Listener(hand, settings)
    opened.start()
    yield opened
    opened.stop()


class TestListener:
    def test_many_messages_on_one_connection(self, ward: Ward, listener: adt.Listener) -> None:
        key = ward.take(dicom(0)).study
        with MLLPClient("127.0.0.1", listener.port, encoding="utf-8") as client:
            for message, number in ((A08, "42"), (A40, "43"), (A08, "42")):
                reply = hl7.parse(client.send_message(message).rstrip(b"\x1c\r").lstrip(b"\x0b"))
                assert (str(reply.segment("MSA")[1]), str(reply.segment("MSA")[2])) == ("AA", number)
        assert worklist.row(ward.database, SITE, key).patient_id == "NEW"

    @pytest.mark.parametrize(("said", "encoding"), [("", "utf-8"), ("UNICODE UTF-8", "utf-8"), ("8859/1", "latin-1")])
    def test_letters_arrive(self, ward: Ward, listener: adt.Listener, said: str, encoding: str) -> None:
        key = ward.take(dicom(0)).study
        message = A08.replace("P|2.5\r", f"P|2.5||||||{said}\r").replace("Roe^Jane", "Müller^Zoë")
        with MLLPClient("127.0.0.1", listener.port, encoding=encoding) as client:
            assert b"MSA|AA" in client.send_message(message)
        assert worklist.row(ward.database, SITE, key).patient_name == "Müller, Zoë"

    def test_letters_that_are_none(self, listener: adt.Listener) -> None:
        assert b"MSA|AR" in send(listener, b"\x0bMSH|^~\\&|\xff\xfe\x1c\r")

    def test_too_much_is_refused(self, listener: adt.Listener) -> None:
        with socket.create_connection(("127.0.0.1", listener.port), timeout=60) as connection:
            got = b""
            with suppress(OSError):  # closed with our bytes unread
                connection.sendall(b"\x0b" + A08.encode() + b"x" * (2 * adt.MAX_BYTES) + b"\x1c\r")
                while more := connection.recv(4096):
                    got += more
        assert not got or b"MSA|AR" in got
        assert b"MSA|AA" in send(listener, b"\x0b" + A08.encode() + b"\x1c\r")

    @pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\n\r\n", b"\x0bMSH|half a mess", b"\x0b", b"", b"\r\n\r\n"])
    def test_what_is_no_message_ends_and_the_next_is_served(self, listener: adt.Listener, content: bytes) -> None:
        assert send(listener, content) == b""
        assert b"MSA|AA" in send(listener, b"\x0b" + A08.encode() + b"\x1c\r")

    def test_no_more_connections_than_are_allowed(self, listener: adt.Listener) -> None:
        held = [socket.create_connection(("127.0.0.1", listener.port), timeout=60) for _ in range(adt.CONNECTIONS)]
        for connection in held:  # an answer shows that each is being served
            connection.sendall(b"\x0b" + A08.encode() + b"\x1c\r")
            assert b"MSA|AA" in connection.recv(4096)
        assert send(listener, b"\x0b" + A08.encode() + b"\x1c\r") == b""
        for connection in held:
            connection.close()

    def test_only_who_is_named_may_send(self, ward: Ward, hand: Corrections) -> None:
        settings = Settings.model_validate({"hl7_host": "127.0.0.1", "hl7_peers": ["10.0.0.1"]})
        opened = adt.Listener(hand, settings)
        opened.start()
        try:
            assert send(opened, b"\x0b" + A08.encode() + b"\x1c\r") == b""
        finally:
            opened.stop()

    def test_a_database_that_is_gone_is_said(
        self, ward: Ward, listener: adt.Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def gone(*args: object, **more: object) -> None:
            raise sa.exc.OperationalError("select Roe", {}, Exception("gone"))

        monkeypatch.setattr(listener.corrections, "update", gone)
        assert b"MSA|AE" in send(listener, b"\x0b" + A08.encode() + b"\x1c\r")
        assert "Roe" not in caplog.text

    def test_a_bad_peer_or_a_taken_port_is_named(self, hand: Corrections, listener: adt.Listener) -> None:
        with pytest.raises(ConfigError, match="hl7_peers"):
            adt.Listener(hand, Settings.model_validate({"hl7_peers": ["everybody"]}))
        taken = Settings.model_validate({"hl7_host": "127.0.0.1", "hl7_port": listener.port})
        with pytest.raises(ConfigError, match="hl7_port"):
            adt.Listener(hand, taken).start()


@contextmanager
def listening(hand: Corrections, **settings: object) -> Iterator[adt.Listener]:
    common = {"hl7_host": "127.0.0.1", "hl7_peers": ["127.0.0.0/8"]}
    opened = adt.Listener(hand, Settings.model_validate({**common, **settings}))
    opened.start()
    try:
        yield opened
    finally:
        opened.stop()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return an authority's file, a server's and a client's certificate with key, and those of a stranger."""
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = certificates.Authority(folder), certificates.Authority(folder, "Stranger")
    found = {"ca": authority.certificate}
    for name, by in (("server", authority), ("client", authority), ("mallory", other)):
        found[name], found[f"{name}_key"] = by.issue(name)
    return found


class TestTls:
    @staticmethod
    def server(ours: dict[str, Path], **more: object) -> dict[str, object]:
        return {
            "hl7_tls": True,
            "hl7_tls_certificate": str(ours["server"]),
            "hl7_tls_key": str(ours["server_key"]),
            **more,
        }

    @staticmethod
    def client(ours: dict[str, Path], name: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=ours["ca"])
        if name is not None:
            context.load_cert_chain(ours[name], ours[f"{name}_key"])
        return context

    def exchange(self, opened: adt.Listener, tls: ssl.SSLContext, content: bytes, times: int = 1) -> bytes:
        """Send a message several times over one connection; return what came back, up to the end or a reset."""
        got = b""
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", opened.port), timeout=60) as link,
            tls.wrap_socket(link, server_hostname="localhost") as safe,
        ):
            for number in range(times):
                safe.sendall(content)
                while got.count(b"\x1c\r") <= number:
                    if not (more := safe.recv(4096)):
                        return got
                    got += more
        return got

    def test_messages_come_by_tls(self, ward: Ward, hand: Corrections, ours: dict[str, Path]) -> None:
        key = ward.take(dicom(0)).study
        with listening(hand, **self.server(ours)) as opened:
            got = self.exchange(opened, self.client(ours), b"\x0b" + A08.encode() + b"\x1c\r", times=3)
        assert got.count(b"MSA|AA") == 3
        assert worklist.row(ward.database, SITE, key).patient_name == "Roe, Jane"

    def test_in_the_clear_nothing_gets_in(self, ward: Ward, hand: Corrections, ours: dict[str, Path]) -> None:
        key = ward.take(dicom(0, PatientName="Ro^J")).study
        block = b"\x0b" + A08.encode() + b"\x1c\r"
        with listening(hand, **self.server(ours)) as opened:
            assert b"MSA" not in send(opened, block)
            assert worklist.row(ward.database, SITE, key).patient_name == "Ro, J"
            assert b"MSA|AA" in self.exchange(opened, self.client(ours), block)  # and the next is served

    def test_a_certificate_of_the_authority_is_asked_for(
        self, ward: Ward, hand: Corrections, ours: dict[str, Path]
    ) -> None:
        key = ward.take(dicom(0, PatientName="Ro^J")).study
        block = b"\x0b" + A08.encode() + b"\x1c\r"
        with listening(hand, **self.server(ours, hl7_tls_ca=str(ours["ca"]))) as opened:
            for name in (None, "mallory"):
                assert self.exchange(opened, self.client(ours, name), block) == b""
            assert worklist.row(ward.database, SITE, key).patient_name == "Ro, J"
            assert b"MSA|AA" in self.exchange(opened, self.client(ours, "client"), block)
        assert worklist.row(ward.database, SITE, key).patient_name == "Roe, Jane"

    def test_old_protocols_are_refused(self, hand: Corrections, ours: dict[str, Path]) -> None:
        context = self.client(ours)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with listening(hand, **self.server(ours)) as opened:
            assert self.exchange(opened, context, b"\x0b" + A08.encode() + b"\x1c\r") == b""

    def test_strangers_and_too_many_do_not_get_as_far_as_the_handshake(
        self, hand: Corrections, ours: dict[str, Path]
    ) -> None:
        block = b"\x0b" + A08.encode() + b"\x1c\r"
        with listening(hand, **self.server(ours, hl7_peers=["10.0.0.1"])) as opened:
            assert self.exchange(opened, self.client(ours), block) == b""
        with listening(hand, **self.server(ours)) as opened:
            silent = [socket.create_connection(("127.0.0.1", opened.port), timeout=60) for _ in range(adt.CONNECTIONS)]
            # Connections are taken in the order in which they came: these hold every place.
            assert self.exchange(opened, self.client(ours), block) == b""
            for link in silent:
                link.close()

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"hl7_tls": True}, "hl7_tls_certificate names none"),
            ({"hl7_tls": True, "hl7_tls_certificate": "/no/such.pem"}, "hl7_tls_certificate = '/no/such.pem'"),
            ({"hl7_tls_key": "/no/such.key"}, "hl7_tls_key = '/no/such.key'"),
            ({"hl7_tls_key": "{client_key}"}, "hl7_tls_certificate"),
            ({"hl7_tls_ca": "/no/such.pem"}, "hl7_tls_ca = '/no/such.pem'"),
            ({"hl7_tls_ca": "{server_key}"}, "hl7_tls_ca = "),
        ],
    )
    def test_what_cannot_be_used_is_named(
        self, hand: Corrections, ours: dict[str, Path], settings: dict[str, object], says: str
    ) -> None:
        given = {name: value.format(**ours) if isinstance(value, str) else value for name, value in settings.items()}
        whole = given if "hl7_tls" in settings else self.server(ours, **given)
        with pytest.raises(ConfigError) as caught:
            adt.Listener(hand, Settings.model_validate(whole))
        assert says in str(caught.value)


def send(listener: adt.Listener, content: bytes) -> bytes:
    """Send bytes, say that there are no more, and return what comes back until the other side ends or resets it."""
    got = b""
    with socket.create_connection(("127.0.0.1", listener.port), timeout=60) as connection, suppress(OSError):
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        while more := connection.recv(4096):
            got += more
    return got
