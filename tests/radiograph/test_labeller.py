from collections import Counter

import numpy as np

from wetread.findings import CHEXPERT
from wetread.radiograph import labeller
from wetread.radiograph.synthesis import labels

COUNT = 4000


def reports(*findings):
    rng = np.random.default_rng(0)
    truth = labels(findings)
    return [labeller.report(truth, rng) for _ in range(COUNT)]


def share(said, finding, value):
    return sum(report[finding] == value for report in said) / len(said)


def test_positives_turn_uncertain_at_the_published_rates():
    said = reports("Atelectasis")
    rates = Counter(report["Atelectasis"] for report in said)
    uncertain = rates[-1] / (rates[-1] + rates[1])
    assert abs(uncertain - labeller.UNSURE["Atelectasis"]) < 0.03
    assert abs(1 - (rates[-1] + rates[1]) / COUNT - labeller.MISSED) < 0.015


def test_a_parent_is_often_left_blank_although_its_child_is_named():
    said = reports("Cardiomegaly")
    assert abs(share(said, "Enlarged Cardiomediastinum", None) - 0.93) < 0.03
    alone = reports("Enlarged Cardiomediastinum")
    assert share(alone, "Enlarged Cardiomediastinum", None) < 0.06


def test_the_absent_is_mostly_not_mentioned_and_rarely_invented():
    said = reports("Fracture")
    assert abs(share(said, "Edema", None) - labeller.ABSENT_UNSAID) < 0.04
    assert abs(share(said, "Edema", 1) - labeller.INVENTED) < 0.01


def test_no_finding_stands_alone_or_with_devices():
    for report in reports() + reports("Support Devices", "Pleural Effusion"):
        assert set(report) == set(CHEXPERT.findings)
        others = [f for f in CHEXPERT.findings if f not in ("No Finding", "Support Devices")]
        named = any(report[f] in (1, -1) for f in others)
        assert report["No Finding"] == (None if named else 1)
