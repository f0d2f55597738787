"""The page of drift and of the experiment: what was found, of one's own site, for those who keep it running."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from page import Page
from ward import SITE, NameReader

from wetread.clinic import access, store
from wetread.clinic.figures import Period
from wetread.evaluate.shift import Change
from wetread.improve import experiment
from wetread.improve.drift import Report, Source
from wetread.improve.experiment import Design

HOSTILE = "<b>ACME</b> & Co"


def report(key: str, verdict: str, days: int, *sources: Source) -> Report:
    until = store.now() - timedelta(days=days)
    window, before = Period(until - timedelta(7), until), Period(until - timedelta(35), until - timedelta(7))
    look = ("pixels: ask who serves the device",)
    return Report(key, SITE, NameReader().id, "names", before, window, verdict, "why", sources, (HOSTILE,), look, 0.01)


def keep(database: Any, found: Report, site: str = SITE) -> None:
    with database.write() as connection:
        store.ensure_site(connection, site)
        connection.execute(
            store.drift_check.insert().values(
                id=found.id, site=site, model=found.model, at=found.window.until, since=found.window.since,
                until=found.window.until, verdict=found.verdict, report=found.to_dict(),
            )
        )  # fmt: skip


def words(html: str) -> str:
    return re.sub(r"\s+", " ", " ".join(Page(html).text))


@pytest.fixture(scope="module")
def checked(client: Any) -> Any:
    """Two checks of a model here, the newer of which found drift, and one elsewhere."""
    quiet = (Source("all devices", 200, 150, (Change("pixels", "mean", 0.05, 0.25, 0.1, 0.9, 200, 150),), ()),)
    loud = (
        Source(
            "all devices", 200, 160,
            (
                Change("scores", "Edema", 0.1, 0.2, 0.11, 0.4, 200, 160),
                Change("pixels", "mean", 0.625, 0.25, 0.1, 0.001, 200, 160),
            ),
            ("pixels: mean",),
            ("features: discrepancy", "scores: Pneumothorax"),
        ),
        Source(HOSTILE, 12, 9, (), ()),
        Source(f"reviews of station {HOSTILE}", 3, 1, (), ()),
        Source("reviews of sender AE GATE", 0, 2, (), ()),
    )  # fmt: skip
    database = client.clinic.database
    keep(database, report("older", "quiet", 2, *quiet))
    keep(database, report("newer", "drift", 1, *loud))
    keep(database, report("there", "drift", 0, *loud), "elsewhere")
    design = Design(blocks=10, block_minutes=60, findings=("Pneumothorax",))
    experiment.start(database, SITE, design, "Dr E")
    return client


def test_the_newest_check_is_told_and_the_older_ones_drawn(checked: Any) -> None:
    html = checked("GET", "/drift", "engineer").text
    text = words(html)
    assert "names : drift" in text
    assert "New devices: <b>ACME</b> & Co" in text
    assert "<b>ACME" not in html
    assert "all devices, 200 patients before, 160 after" in text
    # the largest effect first, an alarm told as such
    assert text.index("pixels: mean 0.625 0.25 0.100 0.001 alarm") < text.index("scores: Edema 0.100 0.2 0.110 0.400 —")
    assert text.count("Too few to compare.") == 3
    assert "Too few to compare: features: discrepancy, scores: Pneumothorax" in text
    assert "signed studies of station <b>ACME</b> & Co, 3 patients before, 1 after" in text
    drawn = re.findall(r'data-value="([\d.]+)">[\d.]+</td><td data-value="1">', html)
    assert [float(value) for value in drawn] == [0.2, 2.5]  # in order of time
    assert "there" not in re.findall(r"check=(\w+)", html)


def test_the_report_is_there_in_words_of_ones_own_site(checked: Any) -> None:
    answer = checked("GET", "/drift/report?check=newer", "engineer")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "# Drift: names, default" in answer.text
    assert "pixels: ask who serves the device" in answer.text
    assert "Too few to compare: features: discrepancy, scores: Pneumothorax." in answer.text
    for check in ("there", "none", ""):
        assert checked("GET", f"/drift/report?check={check}", "engineer").status_code == 404


def test_the_alarm_stands_on_the_page_of_operations(checked: Any) -> None:
    assert "What names sees is no longer what it was. See what changed" in words(checked("GET", "/operations").text)
    text = checked("GET", "/metrics").text
    drift = [line for line in text.splitlines() if line.startswith("wetread_drift_alarm{") and f'"{SITE}"' in line]
    assert [line.rpartition(" ")[2] for line in drift] == ["1.0"]


def test_an_experiment_shows_how_far_it_is_and_no_effect(checked: Any) -> None:
    text = words(checked("GET", "/drift").text)
    assert "state under way" in text
    assert "blocks 0 of 10" in text
    assert "studies 0, of which 0 are signed" in text
    assert "misses more than 25 % of critical studies" in text
    experiment.stop(checked.clinic.database, SITE, "a new scanner", "Dr E")
    assert "state ended by a person" in words(checked("GET", "/drift").text)
    assert "a new scanner" in checked("GET", "/drift").text


def test_it_speaks_german_and_only_to_those_who_keep_it_running(checked: Any) -> None:
    text = words(checked("GET", "/drift", headers={"Accept-Language": "de"}).text)
    for german in (
        "Neue Geräte",
        "alle Geräte, 200 Patienten vorher, 160 nachher",
        "Bildpunkte: Mittelwert 0,625",
        "signierte Studien: Absender AE GATE",
        "Zu wenige für einen Vergleich: Merkmale",
    ):
        assert german in text
    assert checked("GET", "/drift", "radiologist").status_code == 403
    token = access.create(checked.clinic.database, "there", "engineer", "nowhere")
    nothing = checked.http.get("/drift", headers={"Authorization": f"Bearer {token}"}).text
    assert "Nothing was checked yet" in nothing
    assert "There was none at this site." in nothing
