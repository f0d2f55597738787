"""What the page says in words about a probability."""

from __future__ import annotations

from importlib import resources

import pytest

from wetread.model.package import Meta
from wetread.web.meaning import words

SHIPPED = resources.files("wetread") / "shipped" / "phantom" / "model.json"


def meta(**metrics: object) -> Meta:
    known = Meta.model_validate_json(SHIPPED.read_text(encoding="utf-8"))
    return known.model_copy(update={"metrics": metrics})


pytestmark = pytest.mark.skipif(not SHIPPED.is_file(), reason="needs the shipped model `phantom`")


def test_a_probability_is_said_as_films_of_a_hundred() -> None:
    known = meta(
        findings={"Edema": {"images": 546, "positives": 72, "ece": 0.0212}},
        rules={"screen": "sensitivity", "balanced": "youden", "sensitivity": 0.98},
    )
    assert words(known, "Edema", 0.371, "screen", flagged=True) == [
        "Of 100 films with this score, about 37 had it in the validation data.",
        "Measured on 546 films, of which 72 had it, and such numbers were off by about 2 of 100 on average.",
        "The operating point screen is set to find about 98 of 100 films that have it; this film is at or above it: "
        "flagged, and counted in its place in the list.",
    ]
    assert "weighs missed and false findings alike" in words(known, "Edema", 0.3, "balanced", flagged=False)[-1]


@pytest.mark.parametrize(
    ("probability", "said"),
    [(0.0, "about 0"), (0.001, "fewer than 1"), (0.006, "about 1"), (0.994, "about 99"), (0.999, "more than 99")],
)
def test_it_says_no_more_than_is_known(probability: float, said: str) -> None:
    assert said in words(None, "Edema", probability, "screen", flagged=False)[0]


def test_the_shipped_model_can_say_where_it_was_measured() -> None:
    known = Meta.model_validate_json(SHIPPED.read_text(encoding="utf-8"))
    for finding, measured in known.metrics["findings"].items():
        said = words(known, finding, 0.5, "screen", flagged=True)
        assert f"Measured on {measured['images']} films, of which {measured['positives']} had it" in said[1]


@pytest.mark.parametrize(
    "metrics",
    [{}, {"findings": []}, {"findings": {"Edema": 3}}, {"findings": {"Edema": {"images": "many", "ece": [1]}}},
     {"findings": {"Edema": {"images": -1, "positives": True}}, "rules": "all"}, {"rules": {"screen": {"a": 1}}}],
)  # fmt: skip
def test_a_package_that_says_something_odd_breaks_nothing(metrics: dict[str, object]) -> None:
    said = words(meta(**metrics), "Edema", 0.4, "screen", flagged=False)
    assert said[0] == "Of 100 films with this score, about 40 had it, as far as the model's calibration holds."
    assert said[-1].endswith("below it: not flagged.")
