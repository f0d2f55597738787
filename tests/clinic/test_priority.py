"""The priority rule against its promises: AI only raises, the cap promotes, nothing depends on order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.clinic import priority
from wetread.clinic.priority import ORDER, Class, Priority, Rule, Scored
from wetread.errors import ClinicError, ConfigError
from wetread.findings import CHEXPERT

RULE = Rule()
PRIORITIES = st.sampled_from(list(Priority))
SCORED = st.builds(
    Scored,
    model=st.sampled_from(["a 1", "b 2"]),
    finding=st.sampled_from(CHEXPERT.findings),
    probability=st.floats(0, 1),
    flagged=st.booleans(),
    call=st.sampled_from(["likely", "unsure"]),
)


def scored(finding: str, probability: float = 0.9, flagged: bool = True, call: str = "likely") -> Scored:
    return Scored("phantom 0.1", finding, probability, flagged, call)


@pytest.mark.parametrize(
    ("finding", "wanted"),
    [
        ("Pneumothorax", "critical"),
        ("Edema", "urgent"),
        ("Consolidation", "urgent"),
        ("Pneumonia", "urgent"),
        ("Pleural Effusion", "urgent"),
        ("Fracture", "routine"),
        ("Cardiomegaly", "routine"),
        ("No Finding", None),
        ("Support Devices", None),
        ("Normal", None),
    ],
)
def test_default_classes(finding: str, wanted: str | None) -> None:
    assert RULE.of(finding) == wanted


def test_reason_names_finding_call_and_model() -> None:
    decision = priority.decide(RULE, Priority.ROUTINE, [scored("Edema", 0.99), scored("Pneumothorax", 0.6)])
    assert (decision.priority, decision.finding) == (Priority.CRITICAL, "Pneumothorax")
    assert decision.reason == "Pneumothorax likely (phantom 0.1)"


def test_the_more_probable_of_one_class_is_named() -> None:
    decision = priority.decide(RULE, Priority.ROUTINE, [scored("Edema", 0.7), scored("Pneumonia", 0.8)])
    assert decision.finding == "Pneumonia"


def test_refusal_is_the_reason() -> None:
    decision = priority.decide(RULE, Priority.URGENT, [], refusal="lateral only")
    assert decision.priority is Priority.URGENT
    assert decision.reason == "requested as urgent; not analysed: lateral only"


def test_support_devices_alone_do_not_rank() -> None:
    decision = priority.decide(RULE, Priority.ROUTINE, [scored("Support Devices"), scored("No Finding")])
    assert (decision.priority, decision.finding) == (Priority.ROUTINE, None)


@given(PRIORITIES, st.lists(SCORED, max_size=20))
def test_ai_never_lowers(floor: Priority, found: list[Scored]) -> None:
    assert ORDER[priority.decide(RULE, floor, found).priority] <= ORDER[floor]


@given(PRIORITIES, st.lists(SCORED, max_size=20), SCORED)
def test_one_more_finding_never_lowers(floor: Priority, found: list[Scored], more: Scored) -> None:
    before = priority.decide(RULE, floor, found).priority
    assert ORDER[priority.decide(RULE, floor, [*found, more]).priority] <= ORDER[before]


@given(PRIORITIES, st.lists(SCORED, max_size=20), st.randoms(use_true_random=False))
def test_order_of_findings_does_not_matter(floor: Priority, found: list[Scored], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    a, b = priority.decide(RULE, floor, found), priority.decide(RULE, floor, shuffled)
    assert (a.priority, a.finding) == (b.priority, b.finding)


@given(PRIORITIES, st.lists(SCORED, max_size=20))
def test_there_is_always_a_reason(floor: Priority, found: list[Scored]) -> None:
    assert priority.decide(RULE, floor, found).reason


@given(PRIORITIES, PRIORITIES, st.booleans(), st.booleans())
def test_rank_follows_class_and_cap(a: Priority, b: Priority, a_overdue: bool, b_overdue: bool) -> None:
    if a_overdue == b_overdue and ORDER[a] < ORDER[b]:
        assert priority.rank(a, a_overdue) <= priority.rank(b, b_overdue)
    assert priority.rank(a, True) < priority.rank(a, False)
    if b is not Priority.CRITICAL:
        assert priority.rank(a, True) < priority.rank(b, False)
        assert priority.rank(Priority.CRITICAL, False) < priority.rank(b, b_overdue)


@given(PRIORITIES, st.datetimes(timezones=st.just(UTC), min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)))
def test_the_more_urgent_the_shorter_the_cap(cls: Priority, at: datetime) -> None:
    due = [priority.overdue_at(RULE, p, at) for p in Priority]
    assert due == sorted(due)
    assert priority.overdue_at(RULE, cls, at) > at


@pytest.mark.parametrize(
    ("cap", "words"), [(timedelta(hours=4), "4 h"), (timedelta(minutes=30), "30 min"), (timedelta(minutes=90), "1.5 h")]
)
def test_promotion_says_the_cap(cap: timedelta, words: str) -> None:
    assert priority.promoted("Edema likely", cap) == f"promoted: waiting cap {words}; Edema likely"


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        (None, "routine"),
        ("", "routine"),
        ("STAT", "critical"),
        ("HIGH", "urgent"),
        ("MEDIUM", "routine"),
        ("LOW", "routine"),
        (" Urgent ", "urgent"),
    ],
)
def test_requested_words(word: str | None, wanted: str) -> None:
    assert priority.parse(word) == wanted


def test_unknown_word_is_named() -> None:
    with pytest.raises(ClinicError, match="'whenever'"):
        priority.parse("whenever")


def test_a_site_has_its_own_rule(tmp_path: Path) -> None:
    file = tmp_path / "rule.toml"
    file.write_text('never = []\n[critical]\nfindings = ["Fracture"]\ncap_minutes = 5\n')
    rule = priority.load(file)
    assert rule.of("Fracture") is Priority.CRITICAL
    assert rule.of("Pneumothorax") is Priority.ROUTINE
    assert rule.cap(Priority.CRITICAL) == timedelta(minutes=5)
    assert rule.urgent == RULE.urgent


def test_a_rule_takes_a_finding_out_of_the_classes_that_it_does_not_name() -> None:
    rule = priority.read('[critical]\nfindings = ["Edema", "Support Devices"]\ncap_minutes = 5', "rule")
    assert rule.of("Edema") is rule.of("Support Devices") is Priority.CRITICAL
    assert rule.of("Pneumothorax") is Priority.ROUTINE
    assert rule.of("Consolidation") is Priority.URGENT
    assert rule.of("No Finding") is None
    assert "Edema" not in rule.urgent.findings


def test_points_decide_what_counts() -> None:
    rule = priority.read("[points]\nPneumothorax = 0.95\nEdema = 0.2\n", "rule")
    found = [scored("Pneumothorax", 0.9), scored("Edema", 0.3, flagged=False, call="unsure")]
    assert priority.decide(rule, Priority.ROUTINE, found).finding == "Edema"
    assert priority.decide(Rule(), Priority.ROUTINE, found).finding == "Pneumothorax"


def test_the_heavier_finding_of_a_class_is_named_and_gives_its_head_start() -> None:
    rule = priority.read("[weights]\nEdema = 30\n", "rule")
    found = [scored("Pneumonia", 0.99), scored("Edema", 0.6)]
    decision = priority.decide(rule, Priority.ROUTINE, found)
    assert (decision.finding, decision.ahead) == ("Edema", timedelta(minutes=30))
    assert priority.decide(rule, Priority.CRITICAL, found).ahead == timedelta(0)  # requested: not for the finding


@given(
    st.builds(
        Rule,
        critical=st.builds(Class, findings=st.just(['Hernia "x"']), cap_minutes=st.floats(1, 100).map(round)),
        ratio=st.none() | st.sampled_from([1.0, 2.5]),
        weights=st.dictionaries(st.sampled_from(["Edema", "a b", 'q"\\']), st.integers(0, 1000).map(float)),
        points=st.dictionaries(st.sampled_from(CHEXPERT.findings), st.floats(0, 1)),
    )
)
def test_a_rule_that_is_written_reads_the_same(rule: Rule) -> None:
    assert priority.read(priority.written(rule), "rule") == rule


def test_each_site_may_have_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "north.toml").write_text("[routine]\ncap_minutes = 7")
    assert priority.rules("").of("north") == RULE
    rules = priority.rules(str(tmp_path))
    assert rules.of("north").routine.cap_minutes == 7
    assert rules.of("south") == RULE
    (tmp_path / "default.toml").write_text("ratio = 3")
    assert priority.rules(str(tmp_path)).of("south").ratio == 3
    assert priority.rules(str(tmp_path / "north.toml")).of("south").routine.cap_minutes == 7
    (tmp_path / "empty").mkdir()
    for bad in ("empty", "nowhere.toml"):
        with pytest.raises(ConfigError, match=bad):
            priority.rules(str(tmp_path / bad))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ratio = 0.5", "ratio"),
        ("ratio = nan", "ratio"),
        ("[weights]\nEdema = -1", "weights.Edema"),
        ("[points]\nEdema = 1.5", "points.Edema"),
        ('never = ["Edema"]\n[urgent]\nfindings = ["Edema"]\ncap_minutes = 5', "named more than once"),
        ("never = 7", "never"),
        ("critical = 7", "critical"),
        ("[critical]\ncap_minutes = 0", "critical.cap_minutes"),
        ("[critical]\ncap_minutes = inf", "critical.cap_minutes"),
        ("[criticall]\ncap_minutes = 1", "criticall"),
        ("[urgent", "not a priority rule"),
    ],
)
def test_a_bad_rule_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "rule.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named):
        priority.load(file)
