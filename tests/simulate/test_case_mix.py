"""Named groups, the caps of a rule and the accuracy of a package, and files that are none."""

import pytest

from wetread.clinic.priority import Priority, Rule, read
from wetread.errors import ConfigError
from wetread.model.package import Package
from wetread.simulate import case_mix
from wetread.simulate.reading_room import Room

GROUPS = """
[[group]]
name = "pneumothorax"
share = 0.02
minutes = 12
critical = 0.85
urgent = 0.03

[[group]]
name = "other"
share = 0.98
minutes = 8
urgent = 0.1
"""


def test_groups_are_split_by_what_the_ai_makes_of_them(tmp_path):
    file = tmp_path / "groups.toml"
    file.write_text(GROUPS)
    kinds = case_mix.groups(file)
    shares = {kind.labels: kind.share for kind in kinds}
    assert shares["critical", "pneumothorax"] == pytest.approx(0.02 * 0.85)
    assert shares["routine", "pneumothorax"] == pytest.approx(0.02 * 0.12)
    assert shares["critical", "other"] == 0
    assert sum(shares.values()) == pytest.approx(1)
    assert {kind.labels[0]: kind.rank for kind in kinds} == {word: n for n, word in enumerate(Priority)}
    room = Room(kinds, caps=case_mix.caps(Rule()))
    assert room.labels == [*Priority, "pneumothorax", "other"]
    assert room.minutes == pytest.approx(8.08)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "group: Field required"),
        ("group = 3", "group: "),
        ("[[group", "no file of groups"),
        ("group = " + "[" * 5000, "no file of groups"),
        (GROUPS.replace("0.98", "0.9"), "the shares of the groups add up to 0.92"),
        (GROUPS.replace("urgent = 0.03", "urgent = 0.2"), "group.0: critical and urgent are 1.05 together"),
        (GROUPS.replace('"other"', '"pneumothorax"'), "group 'pneumothorax' is there twice"),
        (GROUPS.replace('"other"', '"urgent"'), "group.1: name 'urgent' is taken"),
        (GROUPS.replace("minutes = 8", "minutes = 0"), "group.1.minutes: "),
        (GROUPS.replace("minutes = 8", "minutes = inf"), "group.1.minutes: "),
        (GROUPS.replace("minutes = 8", "seconds = 8"), "group.1."),
    ],
)
def test_a_bad_file_of_groups_is_one_line_that_names_it(tmp_path, text, said):
    file = tmp_path / "groups.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        case_mix.groups(file)
    assert str(refused.value).startswith(f"{file}: {said}")
    assert "\n" not in str(refused.value)


def test_the_caps_are_those_of_the_rule():
    assert case_mix.caps(read("[urgent]\ncap_minutes = 45", "rule")) == (30, 45, 240)
    for text in ("ratio = 4", "[weights]\nEdema = 5"):
        with pytest.raises(ConfigError, match="not modelled"):
            case_mix.caps(read(text, "rule"))


def test_a_package_states_its_accuracy():
    package = Package.open("pneumonia")
    stated = package.meta.metrics["findings"]["Pneumonia"]["screen"]
    found = case_mix.accuracy(package, None, "screen")
    assert found == pytest.approx((stated["sensitivity"][0], 1 - stated["specificity"][0]))
    assert found != case_mix.accuracy(package, "Pneumonia", "balanced")
    with pytest.raises(ConfigError, match="--finding 'Gout': pneumonia has Normal, Pneumonia"):
        case_mix.accuracy(package, "Gout", "screen")
    with pytest.raises(ConfigError, match=r"phantom has several; choose one of .*Pneumothorax"):
        case_mix.accuracy(Package.open("phantom"), None, "screen")


def curved(roc):
    package = Package.open("pneumonia")
    package.meta = package.meta.model_copy(update={"metrics": {"roc": roc}})
    return package


def test_a_curve_is_straight_between_its_points_and_flags_as_few_as_can_be():
    roc = case_mix.Roc(curved({"Pneumonia": [0.2, 0.6, 0.6, 0.9, 1.0]}), None)
    assert roc.at_fpf(0.125) == (pytest.approx(0.4), 0.125)
    assert roc.at_sensitivity(0.6) == (0.6, pytest.approx(0.25))  # not 0.5
    assert roc.at_sensitivity(0.1) == (0.1, 0.0)
    assert roc.at_sensitivity(0.75) == (0.75, pytest.approx(0.625))
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError):
            roc.at_fpf(wrong)
        with pytest.raises(ConfigError):
            roc.at_sensitivity(wrong)


@pytest.mark.parametrize(
    "roc",
    [None, 3, [], {}, {"Pneumonia": "high"}, {"Pneumonia": [0.1]}, {"Pneumonia": [0.9, 0.1]},
     {"Pneumonia": [[0, 1]]}, {"Pneumonia": [0.5, 1.5]}, {"Pneumonia": [0.5, None]}, {"Pneumonia": {"a": 1}}],
)  # fmt: skip
def test_a_package_without_a_curve_that_is_one_is_told(roc):
    with pytest.raises(ConfigError, match=r"^pneumonia: model\.json"):
        case_mix.Roc(curved(roc), "Pneumonia")


@pytest.mark.parametrize(
    "figures",
    [
        None,
        {},
        {"sensitivity": [], "specificity": [1.0]},
        {"sensitivity": ["high"], "specificity": [1.0]},
        {"sensitivity": [1.5], "specificity": [0.5]},
        {"sensitivity": [float("nan")], "specificity": [0.5]},
    ],
)
def test_a_package_that_does_not_state_its_accuracy_is_told(figures):
    package = Package.open("pneumonia")
    package.meta = package.meta.model_copy(update={"metrics": {"findings": {"Pneumonia": {"screen": figures}}}})
    with pytest.raises(ConfigError, match=r"^pneumonia: model.json states "):
        case_mix.accuracy(package, "Pneumonia", "screen")
