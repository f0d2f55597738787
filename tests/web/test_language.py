"""Pages in German, and that the catalogue has every word of them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader
from ward import NameReader, dicom
from web import catalogue
from web.authorisation import TABLE

from wetread.clinic import access
from wetread.clinic.access import Role
from wetread.config import Settings, load
from wetread.errors import ConfigError
from wetread.web import language, vocabulary
from wetread.web.app import create_app
from wetread.web.security import COOKIE, csrf_token

CODES = [code for code in language.languages() if code != language.ENGLISH]
GERMAN = {"Accept-Language": "de-DE,de;q=0.9,en;q=0.8"}
BASE = "http://127.0.0.1"
PLACES = re.compile(r"%\((\w+)\)s")


# ---------------------------------------------------------------- the catalogue


@cache
def wanted() -> dict[tuple[str | None, str], Any]:
    return {(m.context, _id(m)): m for m in catalogue.extracted() if m.id}


def _id(message: Any) -> str:
    return message.id if isinstance(message.id, str) else message.id[0]


@pytest.mark.parametrize("code", CODES)
def test_every_word_is_in_the_catalogue_and_translated(code: str) -> None:
    """When this fails: `python tests/web/catalogue.py`, and fill in what it names."""
    there = {(m.context, _id(m)): m for m in language.catalogue(code) if m.id}
    assert sorted(map(str, wanted().keys() - there.keys())) == []
    assert sorted(map(str, there.keys() - wanted().keys())) == []
    for key, message in there.items():
        assert not message.fuzzy, key
        forms = catalogue.forms(message)
        assert all(form.strip() for form in forms), key
        assert len(forms) == (1 if isinstance(message.id, str) else language.catalogue(code).num_plurals), key
        assert bool(message.id != _id(message)) == (len(forms) > 1), key


@pytest.mark.parametrize("code", CODES)
def test_a_translation_has_the_same_places_and_tags(code: str) -> None:
    for message in language.catalogue(code):
        if not message.id:
            continue
        ids = (message.id,) if isinstance(message.id, str) else message.id
        needed = set(PLACES.findall(ids[-1]))
        for form in catalogue.forms(message):
            # A form for one may say the number in words; a whole sentence may leave out an identifier.
            missing = needed - set(PLACES.findall(form)) - {"num"}
            assert message.context == "told" or not missing, message.id
            assert set(PLACES.findall(form)) <= needed, message.id
            assert sorted(re.findall(r"</?\w+>", form)) == sorted(re.findall(r"</?\w+>", ids[0])), message.id
            rest = PLACES.sub("", form)
            assert (rest % ()).count("%") == rest.count("%%"), message.id


def test_nothing_that_is_wrapped_escapes_the_extraction() -> None:
    """A call inside an f-string or a nested template string is not found by extractors: none is written so."""
    texts = {_id(message) for message in wanted().values()}
    call = re.compile(r'(?<![\w.])(?:_|N_|ngettext|pgettext)\(\s*"((?:[^"\\\n]|\\.)*)"')
    for pattern, _, _ in catalogue.SOURCES:
        for path in catalogue.ROOT.glob(pattern):
            for found in call.findall(path.read_text("utf-8")):
                said = found.replace('\\"', '"').replace("\\u00a0", "\u00a0")
                assert any(text.startswith(said) for text in texts) or said in CONTEXTS, f"{path.name}: {said!r}"


CONTEXTS = {"study"}  # of pgettext, which says it first


def test_templates_give_the_catalogue_only_their_own_words() -> None:
    """What `_` returns is markup: of a variable it would let a stranger's tags in; those go through `word`, `told`."""
    for path in catalogue.WEB.glob("templates/*.html"):
        for found in re.findall(
            r"(?<![\w.])(?:_|gettext|ngettext|pgettext|npgettext)\(\s*([^\s])", path.read_text("utf-8")
        ):
            assert found in "\"'", path.name


def test_each_sentence_from_below_is_still_said_there() -> None:
    files = [path for path in sorted(catalogue.WEB.parent.rglob("*.py")) if path.name != "vocabulary.py"]
    source = "".join(path.read_text("utf-8") for path in files)
    # Strings that a line's end parts; and names of events, which are told without their points.
    joined = re.sub(r'"\s*\n\s*f?"', "", source).replace(".", " ")
    for sentence in vocabulary.SENTENCES:
        longest = max(PLACES.split(sentence)[::2], key=lambda part: len(part.strip()))
        words = longest.replace(".", " ").strip(" :;,()'")
        assert words[:12].strip() in joined or words[-12:].strip() in joined, sentence


# ---------------------------------------------------------------- one word at a time


def test_words_and_sentences_that_are_stored_in_english_are_told_in_german() -> None:
    with language.using("de"):
        assert language.word("Pleural Effusion", "finding") == "Pleuraerguss"
        assert language.told("Pneumothorax likely (phantom)") == "Pneumothorax wahrscheinlich (phantom)"
        assert language.told("promoted: waiting cap 4 h; requested as urgent; Edema unsure (a)") == (
            "vorgezogen: Wartegrenze 4 h; angefordert als dringlich; Lungenödem unsicher (a)"
        )
        assert language.told("signed: Edema agree, Fracture disagree, the model was right, with a note") == (
            "hat signiert: Lungenödem stimmt, Fraktur stimmt nicht, das Modell lag richtig, mit Notiz"
        )
        assert language.told(
            "Model a is switched off since 2026-01-31 14:05 UTC by Dr May (too many alarms). "
            "It ranks nothing; what it had said is not shown."
        ) == (
            "Modell a ist seit 31.01.2026 14:05 UTC durch Dr May ausgeschaltet (too many alarms). "
            "Es ordnet nichts ein; was es gesagt hatte, wird nicht gezeigt."
        )
        assert (language.told("said by nobody. Ever"), language.told(""), language.told(None)) == (
            "said by nobody. Ever",
            "",
            "",
        )
    assert language.told("Pneumothorax likely (phantom)") == "Pneumothorax likely (phantom)"


def test_what_somebody_typed_stays_as_it_is() -> None:
    with language.using("de"):
        assert language.word("right", "finding") == "right"  # a word of ours, but of another kind
        assert language.told("rejected film.dcm: wrong patient") == "hat film.dcm verworfen: wrong patient"
        assert language.told("restored film.dcm: normal") == "hat film.dcm wiederhergestellt: normal"


def test_numbers_and_counts_are_written_as_the_language_does() -> None:
    with language.using("de"):
        assert language.number("12,345.67 %") == "12.345,67 %"
        assert [language.ngettext("%(num)s image", "%(num)s images", n) for n in (0, 1, 1200)] == [
            "0 Bilder",
            "1 Bild",
            "1.200 Bilder",
        ]
    assert language.number("12,345.67 %") == "12,345.67 %"


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("de", "de"), ("de-AT", "de"), ("DE-de", "de"), ("en-GB,de;q=0.9", "en"), ("fr,de;q=0.5,en;q=0.4", "de"),
        ("de;q=0.1,en;q=0.2", "en"), ("de;q=0", "??"), ("fr", "??"), ("", "??"), ("*", "??"), ("de;q=x", "??"),
        ("../../etc/passwd", "??"), (";;;,,,", "??"), ("\x00", "??"),
    ],
)  # fmt: skip
def test_the_browser_is_asked_for_its_language(header: str, found: str) -> None:
    assert language.wanted(header, "??") == found


@given(st.text())
def test_no_header_and_no_sentence_breaks_it(text: str) -> None:
    assert language.wanted(text, "en") in language.languages()
    with language.using("de"):
        assert isinstance(language.told(text), str)


# ---------------------------------------------------------------- pages


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    settings = Settings(threads=1, zone="Europe/Berlin")
    app = create_app(tmp_path_factory.mktemp("clinic"), settings, models=[NameReader()])
    with TestClient(app, base_url=BASE):
        yield app


def browser(app: FastAPI, name: str, headers: dict[str, str] | None = None) -> TestClient:
    http = TestClient(app, base_url=BASE, headers=headers)
    code = access.login_code(app.state.clinic.database, name, Role.ADMINISTRATOR, "default")
    assert http.post("/login", data={"code": code}).is_success
    return http


@pytest.fixture(scope="module")
def german(app: FastAPI) -> TestClient:
    return browser(app, "Dr Deutsch", GERMAN)


@pytest.fixture(scope="module")
def study(app: FastAPI, german: TestClient) -> str:
    """Read one study of a few, so that pages have something to say."""
    token = access.create(app.state.clinic.database, "feeder", Role.ADMINISTRATOR, "default")
    headers = {"Authorization": f"Bearer {token}"}

    def send(name: str, data: bytes, **more: str) -> str:
        files = {"files": (name, data)}
        answer = german.post("/api/v1/studies", files=files, data=more, headers=headers, params={"wait": 30})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["studies"][0]["study"])

    send("letter.txt", b"Dear colleague")
    send("Pneumothorax.dcm", dicom(2), priority="urgent")
    made = send("Edema.dcm", dicom(1))
    body = {
        "state": "signed",
        "findings": [{"finding": "Fracture", "answer": "added"}],
        "model_verdict": "right",
        "normal": False,
        "note": "die Notiz",
    }
    assert german.post(f"/api/v1/studies/{made}/claim", headers=headers).is_success
    answer = german.post(f"/api/v1/studies/{made}/reviews", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return made


class Words(HTMLParser):
    """Collect what a reader sees or hears of a page, a piece between two tags each, but for what is not ours."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})
    SHOWN = ("aria-label", "title", "placeholder", "alt")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.skipping: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        own = dict(attributes)
        if tag not in self.VOID and (
            self.skipping or tag in ("script", "code", "kbd") or own.get("class") == "card" or own.get("id") == "toml"
        ):
            self.skipping.append(tag)
        self.found += [own[name] or "" for name in self.SHOWN if name in own and not self.skipping]

    def handle_endtag(self, tag: str) -> None:
        if self.skipping:
            self.skipping.pop()

    def handle_data(self, data: str) -> None:
        if not self.skipping and data.strip():
            self.found.append(" ".join(data.split()))


@cache
def english() -> tuple[frozenset[str], re.Pattern[str]]:
    """Return the English texts that are said otherwise in German, and what matches those with places in them."""
    fixed, filled = set(), []
    for message in language.catalogue("de"):
        for one in (message.id,) if isinstance(message.id, str) else message.id or ():
            plain = re.sub(r"<\w+>.*", "", one).replace("%%", "%")  # up to its first tag, where its text ends
            if not re.search("[a-z]{2}", PLACES.sub("", plain)) or one in catalogue.forms(message):
                continue
            if PLACES.search(plain):
                filled.append(".+".join(re.escape(part) for part in PLACES.split(plain)[::2]))
            else:
                fixed.add(plain.strip(MARKS))
    return frozenset(fixed), re.compile("|".join(filled))


MARKS = " ·.:,;()×→←└\u00a0"


def pages(study: str) -> list[str]:
    parameters = {"study": study, "image": "none", "model": NameReader().id}
    skipped = (
        "/api/",
        "/dicomweb/",
        "/v2",
        "/static/",
        "/events",
        "/metrics",
        "/healthz",
        "/readyz",
        "/login/provider",
    )
    paths = [path.format_map(parameters) for method, path in TABLE if method == "GET" and not path.startswith(skipped)]
    return [*paths, "/?class=read", "/?class=unanalysed", "/studies/nothing", "/quality?days=90"]


def test_no_page_says_a_word_in_english_to_who_reads_german(german: TestClient, study: str) -> None:
    fixed, filled = english()
    left = []
    for path in pages(study):
        answer = german.get(path)
        if not answer.headers["content-type"].startswith("text/html"):
            continue
        assert path.endswith("/critical") or '<html lang="de"' in answer.text, path
        said = {words.strip(MARKS): words for words in Words(answer.text).found}
        left += [f"{path}: {said[words]}" for words in said if words in fixed or filled.fullmatch(words)]
    assert left == []


def test_the_report_is_printed_in_the_readers_language(german: TestClient, app: FastAPI, study: str) -> None:
    def text(http: TestClient) -> str:
        pdf = http.get(f"/api/v1/studies/{study}/report.pdf").content
        return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages)

    said = text(german)
    assert "Röntgenbefund" in said
    assert "Fraktur: vorhanden, von keinem Modell benannt." in said
    assert "die Notiz" in said
    assert "Radiograph report" in text(browser(app, "Dr English"))


def test_what_is_stored_and_sent_stays_english(german: TestClient, study: str) -> None:
    rows = german.get("/api/v1/worklist").json()["studies"]
    assert any(row["reason"].startswith("requested as urgent") or "likely" in row["reason"] for row in rows)
    problem = german.get("/api/v1/studies/nothing").json()
    assert problem["detail"] == "study nothing: no such study at this site"
    assert "Fraktur" not in german.get(f"/api/v1/studies/{study}").text


def test_a_reader_chooses_the_language_and_has_it_wherever_they_log_in(app: FastAPI) -> None:
    http = browser(app, "Dr Chooser")
    form = {"theme": "dark", "zone": "", "csrf": csrf_token(http.cookies[COOKIE])}
    assert '<html lang="en"' in http.get("/").text
    assert http.post("/settings", data=form | {"language": "de"}).is_success
    page = browser(app, "Dr Chooser", {"Accept-Language": "en"}).get("/settings").text
    assert '<html lang="de"' in page
    assert '<option value="de" lang="de" selected>Deutsch</option>' in page
    assert '<html lang="en"' in browser(app, "Dr Other").get("/").text
    assert http.post("/settings", data=form | {"language": "xx"}).status_code == 422
    assert http.post("/settings", data=form | {"language": ""}).is_success
    assert '<html lang="en"' in http.get("/").text


def test_a_stranger_is_answered_in_the_language_that_the_browser_asks_for(app: FastAPI) -> None:
    http = TestClient(app, base_url=BASE)
    assert "Anmelden" in http.get("/login", headers=GERMAN).text
    assert "Log in" in http.get("/login").text
    wrong = http.post("/login", data={"name": "a", "password": "b"}, headers=GERMAN)
    assert "Name oder Passwort falsch" in wrong.text


def test_the_site_has_a_language_for_browsers_that_ask_for_none_that_there_is(tmp_path: Path) -> None:
    with TestClient(create_app(tmp_path, Settings(threads=1, language="de"), models=[]), base_url=BASE) as http:
        assert '<html lang="de"' in http.get("/login").text
        assert '<html lang="de"' in http.get("/login", headers={"Accept-Language": "tlh"}).text
        assert '<html lang="en"' in http.get("/login", headers={"Accept-Language": "en"}).text
    with pytest.raises(ConfigError, match="language"):
        load(tmp_path, {"WETREAD_LANGUAGE": "../en"})


def test_the_front_end_gets_its_words_once_and_for_ever(german: TestClient) -> None:
    address = re.search(r'<script defer src="(/static/language/de\.js\?v=\w+)"', german.get("/").text)
    assert address
    answer = german.get(address[1])
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]
    assert answer.text.startswith("globalThis.wetread={plural:n=>Number((n != 1)),")
    assert '"Gespeichert"' in answer.text
    assert len(answer.content) < 80_000
    for code in ("en", "xx", "..%2f..%2fde"):
        assert german.get(f"/static/language/{code}.js").status_code == 404
