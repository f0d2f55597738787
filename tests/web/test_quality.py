"""The quality page: what readers answered, as it is written there, for whoever may see it, of their own site."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from page import Page
from ward import NameReader, dicom

from wetread.clinic import access, reviews, store

MODEL = NameReader()


@pytest.fixture(scope="module")
def answered(client: Any) -> Any:
    """Twelve studies with an edema, of which readers confirm nine, deny two, and call one normal."""
    for n in range(12):
        study = client.send((f"edema-{n}.dcm", dicom(n)))["studies"][0]["study"]
        deny = {"Edema": "disagree"}
        answers = {"Edema": "agree"} if n < 9 else deny if n < 11 else {}
        reviews.save(client.clinic.database, "default", study, "Dr A", answers=answers, normal=n == 11, sign=True)
    return client


def words(html: str) -> str:
    page = Page(html)
    return re.sub(r"\s+", " ", " ".join(page.text))


def test_it_says_how_many_each_figure_rests_on(answered: Any) -> None:
    text = words(answered("GET", "/quality?days=7").text)
    assert "12 readings signed in 7 days" in text
    assert "Edema 9 of 11 · 82 % (52–95) 0 2 of 11 · 18 % (5–48)" in text
    assert "raised by AI above what was asked 12 studies" in text
    assert "confirmed, of those answered 9 of 12 · 75 % (47–91)" in text
    assert "false alerts 3 in 7 days · 0.43 a day" in text
    assert "agree, after an own call without it —" in text
    assert "No reader saw a finding that a model called unlikely." in text


def test_it_is_of_ones_own_site_and_of_the_period(answered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    token = access.create(answered.clinic.database, "there", "administrator", "elsewhere")
    other = answered.http.get("/quality", headers={"Authorization": f"Bearer {token}"}).text
    assert "Nobody signed a study in this period." in other
    assert "Edema" not in other
    for days, shown in ((7, 7), (8, 7), (28, 28), (10**6, 90), (-1, 7)):
        page = answered("GET", f"/quality?days={days}").text
        assert f'aria-current="true">{shown} days' in page
    assert answered("GET", "/quality?days=x").status_code == 422
    later = store.now() + timedelta(days=8)
    monkeypatch.setattr(store, "now", lambda: later)
    assert "Nobody signed" in answered("GET", "/quality?days=7").text
    assert "12 readings" in words(answered("GET", "/quality?days=28").text)


def test_its_charts_have_what_their_tables_say(answered: Any) -> None:
    html = answered("GET", "/quality?days=7").text
    row = re.search(r'<th scope="row">Edema</th><td data-value="([^"]+)" data-low="([^"]+)" data-high="([^"]+)">', html)
    assert row is not None
    assert [float(value) for value in row.groups()] == pytest.approx([9 / 11, 0.5230, 0.9486], abs=1e-4)
    assert len(re.findall(r"<figure", html)) == len(re.findall(r"<summary>as a table", html)) >= 3


def test_what_readers_signed_is_told_by_kind_of_reads(answered: Any) -> None:
    text = words(answered("GET", "/quality?days=7").text)
    assert "Readers are no ground truth" in text
    assert "anchored: after the model's word" in text
    assert "names 10 9 —, n 9 —, n 1 0.90 (0.58–0.98), n 10 0.95 (0.67–0.99), n 10 —, n 1" in text
    assert "audit: drawn by lot" not in text
    page = words(answered("GET", f"/models/{MODEL.id}").text)
    assert "Edema 12 9 —, n 9 —, n 3 0.75 (0.46–0.91), n 12" in page
