"""The pages of the models, and a card that comes from anywhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page import Page
from ward import NameReader, png

from wetread.clinic import access
from wetread.config import Settings
from wetread.model.package import Package
from wetread.web.models import card

ALLOWED = {
    *(
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "p",
        "em",
        "strong",
        "code",
        "pre",
        "ul",
        "ol",
        "li",
        "blockquote",
        "hr",
        "br",
    ),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


class Tags(HTMLParser):
    """What a browser would make of a card."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= set(attrs)


HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/p.png)",
    "<https://evil.example>",
    "[a]: javascript:alert(1)\n\n[a]",
    "| a |\n|---|\n| <svg onload=alert(1)> |",
    "```html\n<script>\n```",
    '``` "onload=alert(1)\nx\n```',
    "&lt;script&gt; &#60;script&#62;",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_card_brings_no_markup_of_its_own(text: str) -> None:
    check(str(card(text)))


@given(st.text(st.sampled_from("<>[]()!`*_#|-&;:/\"'= \nascriptjvhe"), max_size=80))
def test_no_text_becomes_markup(text: str) -> None:
    check(str(card(text)))


def check(html: str) -> None:
    found = Tags(html)
    assert found.tags <= ALLOWED
    # Of a card's own words only the language of a code block and the start of a list come into an attribute.
    assert {name for name, _ in found.attributes} <= {"class", "style", "start"}
    assert {value for name, value in found.attributes if name == "style"} <= {
        "text-align:left", "text-align:right", "text-align:center"
    }  # fmt: skip


def test_the_shipped_cards_keep_their_words() -> None:
    html = str(card(Package.open("phantom").card))
    check(html)
    assert "<h2>Intended use</h2>" in html
    assert "<td>chexpert: No Finding" in html


def test_a_model_shows_what_it_did(client: Any) -> None:
    for n in range(11):
        client.send((f"edema-{n}.png", png(n)))
    client.send(("lateral.png", png(40)))
    model = NameReader()
    overview = client("GET", "/models", "radiologist")
    assert overview.status_code == 200
    assert f'href="/models/{model.id}"' in overview.text
    page = client("GET", f"/models/{model.id}", "engineer").text
    text = re.sub(r"\s+", " ", " ".join(Page(page).text))
    assert "images 12" in text
    assert "LATERAL_ONLY 1 of 12 · 8 % (1–35)" in text
    assert "Edema 11 of 11 · 100 % (74–100)" in text
    assert "state serving" in text
    assert "default: AI orders the list" in text


def test_what_is_not_there_or_elsewhere_is_not_shown(client: Any) -> None:
    assert client("GET", "/models/none").status_code == 404
    token = access.create(client.clinic.database, "there", "administrator", "elsewhere")
    headers = {"Authorization": f"Bearer {token}"}
    page = client.http.get(f"/models/{NameReader().id}", headers=headers).text
    assert "It looked at nothing in this time." in page


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings()
