import re

import browser
import numpy as np
import pytest
from page import Page
from scipy.special import expit

from wetread.evaluate import operating_points, plots, report
from wetread.evaluate.evaluation import evaluate
from wetread.evaluate.intervals import Interval
from wetread.findings import PNEUMONIA, Task

HOSTILE = "<script>alert(1)</script>"


def evaluated(task, images=120, **options):
    rng = np.random.default_rng(0)
    width = len(task.findings)
    if task.exclusive:
        labels = np.eye(width)[rng.integers(0, width, images)]
    else:
        labels = rng.integers(0, 2, (images, width)).astype(float)
    probability = expit(rng.normal(2 * labels - 1, 1))
    if task.exclusive:
        probability = probability / probability.sum(axis=1, keepdims=True)
    points = operating_points.fit(task, probability, labels)
    options = {"groups": np.arange(images), "resamples": 40} | options
    thresholds = {"screen": points.screen, "balanced": points.balanced}
    return evaluate(task, probability, labels, points=thresholds, cutoffs=points.cutoffs, **options)


@pytest.fixture(scope="module")
def hostile():
    task = Task("t", ("Edema", "Fracture", HOSTILE))
    return report.html(
        evaluated(task, meta={"model": {"name": HOSTILE, "views": ["PA", "AP"], "licence": None}}), title=HOSTILE
    )


def test_the_page_is_well_formed_and_asks_nothing_of_the_network(hostile):
    page = Page(hostile)
    assert page.requests == []
    assert "default-src 'none'" in hostile
    assert "@import" not in hostile
    assert page.tables > 6
    assert hostile.count("<svg") == 4  # overview and one for each finding


def test_names_cannot_become_markup(hostile):
    assert "<script" not in hostile
    assert "&lt;script&gt;" in hostile


def test_the_page_says_each_figure_and_caution():
    result = evaluated(PNEUMONIA, meta={"dataset": {"SHA-256": "ab" * 32}}, sources=["a"] * 120)
    text = " ".join(Page(report.html(result, title="tiny on phantoms")).text)
    for found in result.findings:
        assert report.area(found.auroc) in text
        for point in found.points.values():
            assert report.rate(point.sensitivity) in text
            assert report.threshold(point.threshold) in text
        for caution in found.cautions:
            assert caution in text
    assert report.rate(result.classes.accuracy) in text
    assert "tiny on phantoms" in text
    assert "ab" * 32 in text
    assert "Research use only" in text


def test_a_page_of_nothing_but_undefined_figures_can_be_written():
    task = Task("t", ("A", "B"))
    result = evaluate(task, np.full((5, 2), 0.5), np.array([[np.nan, 0]] * 5), resamples=5)
    text = " ".join(Page(report.html(result)).text)
    assert "No AUROC is defined" in text
    assert report.UNDEFINED in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(
    ("value", "area", "rate"),
    [
        (Interval(0.97449, 0.951, 0.98849), "0.974 (0.951–0.988)", "97.4 % (95.1–98.8)"),
        (Interval(np.nan, np.nan, np.nan), "—", "—"),
        (Interval(1.0, np.nan, np.nan), "1.000 (no interval)", "100.0 % (no interval)"),
    ],
)
def test_figures_are_written_with_their_interval(value, area, rate):
    assert (report.area(value), report.rate(value)) == (area, rate)


def test_thresholds_keep_three_digits():
    assert [report.threshold(t) for t in (0.5, 0.0123456, 0.000012)] == ["0.500", "0.0123", "1.2e-05"]


def test_the_summary_is_about_the_abnormal_finding_or_the_mean():
    two = " ".join(report.summary(evaluated(PNEUMONIA)))
    assert "AUROC of Pneumonia" in two
    assert "At screen it flags" in two
    many = " ".join(report.summary(evaluated(Task("t", ("A", "B", "C")))))
    assert "Mean AUROC over 3 of 3 findings" in many


def test_the_card_holds_use_figures_and_limits_in_well_formed_tables():
    result = evaluated(Task("t", ("Edema", "a|b")))
    meta = {
        "name": "tiny",
        "intended_use": "Ordering a worklist.",
        "limits": ["Adults only."],
        "views": ["PA"],
        "seed": 0,
    }
    text = report.card(result, meta | {"task": result.task.to_dict(), "licence": "CC BY 4.0"})
    for words in ("# tiny", "Research use only", "Ordering a worklist.", "- Adults only.", "CC BY 4.0", "not stated"):
        assert words in text
    assert report.area(result.findings[0].auroc) in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


def test_a_card_without_evaluation_says_so():
    assert "has not been evaluated" in report.card(None, {})


def test_a_plot_is_the_same_each_time_and_changes_no_settings():
    import matplotlib

    before = dict(matplotlib.rcParams)
    result = evaluated(PNEUMONIA).findings[1]
    drawn = plots.finding(result)
    assert drawn == plots.finding(result)
    assert drawn.startswith("<svg")
    assert dict(matplotlib.rcParams) == before
    for words in ("sensitivity", "observed frequency", "screen", "balanced"):
        assert words in drawn


@pytest.mark.system
@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium: apt-get install -y chromium")
@pytest.mark.parametrize("width", [1280, 600])
def test_a_browser_shows_the_page_without_complaint_or_request(tmp_path, width, chromium):
    file = tmp_path / "report.html"
    file.write_text(report.html(evaluated(Task("t", ("Edema", "Fracture", HOSTILE)))), encoding="utf-8")
    requests, complaints = [], []
    page = chromium.new_page(viewport={"width": width, "height": 800})
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    boxes = [figure.bounding_box() for figure in page.locator("svg").all()]
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.close()
    assert (requests, complaints) == ([file.as_uri()], [])
    assert overflow <= 0  # wide tables scroll by themselves
    assert len(boxes) == 4
    assert all(box["width"] > 300 and box["height"] > 50 for box in boxes)
