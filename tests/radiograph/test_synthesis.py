import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetread.errors import WetreadError
from wetread.findings import CHEXPERT
from wetread.radiograph.anatomy import draw_body
from wetread.radiograph.synthesis import NORMAL, PREVALENCE, draw_findings, labels, make

LEAVES = sorted(PREVALENCE)
SIZE = 96


@given(st.integers(0, 2**63), st.integers(0, 5))
def test_labels_close_up_the_tree(seed, study):
    marked = labels(draw_findings(seed, study))
    assert list(marked) == list(CHEXPERT.findings)
    for child, parent in CHEXPERT.parents.items():
        assert marked[parent] >= marked[child]
    abnormal = any(marked[f] for f in CHEXPERT.findings if f not in CHEXPERT.neutral | {"No Finding"})
    assert marked["No Finding"] == (not abnormal)


def test_findings_come_at_their_prevalence():
    drawn = [draw_findings(seed) for seed in range(6000)]
    abnormal = [found for found in drawn if found - CHEXPERT.neutral]
    assert len(abnormal) / len(drawn) == pytest.approx(1 - NORMAL, abs=0.02)
    # Drawing again when nothing came up scales the disease rates alike.
    none = np.prod([1 - p for f, p in PREVALENCE.items() if f not in CHEXPERT.neutral])
    for finding in ("Pleural Effusion", "Fracture"):
        rate = sum(finding in found for found in abnormal) / len(abnormal)
        assert rate == pytest.approx(PREVALENCE[finding] / (1 - none), abs=0.025)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**62), st.sampled_from(["PA", "AP", "LATERAL"]))
def test_masks_are_where_the_labels_say(seed, view):
    phantom = make(seed, view=view, size=SIZE)
    assert set(phantom.masks) == set(phantom.labels) == set(CHEXPERT.findings)
    for finding, mask in phantom.masks.items():
        assert mask.shape == phantom.radiograph.pixels.shape
        assert mask.any() == (phantom.labels[finding] == 1 and finding != "No Finding"), finding
    for child, parent in CHEXPERT.parents.items():
        assert not (phantom.masks[child] & ~phantom.masks[parent]).any()


@pytest.mark.parametrize("view", ["PA", "AP", "LATERAL"])
@pytest.mark.parametrize("finding", LEAVES)
def test_every_finding_changes_the_picture_where_its_mask_is(finding, view):
    inside, outside = [], []
    for seed in range(100, 104):
        # "Lung Opacity" and the like move nothing; a large heart or a collapse shifts more than its mask.
        healthy = make(seed, view=view, size=128, findings=[])
        ill = make(seed, view=view, size=128, findings=[finding])
        change = np.abs(ill.radiograph.pixels.astype(float) - healthy.radiograph.pixels)
        mask = ill.masks[finding]
        inside.append(change[mask].mean())
        outside.append(change[~mask].mean())
        assert ill.labels[finding] == 1
        assert healthy.labels["No Finding"] == 1
    assert np.mean(inside) > 1.5 * np.mean(outside)


def test_fluid_is_brighter_and_free_air_darker_and_smoother():
    for seed in range(200, 206):
        healthy = make(seed, size=256, findings=[])
        fluid = make(seed, size=256, findings=["Pleural Effusion"])
        region = fluid.masks["Pleural Effusion"] & healthy.lungs
        if region.any():
            assert fluid.radiograph.pixels[region].mean() > healthy.radiograph.pixels[region].mean() + 10
        air = make(seed, size=256, findings=["Pneumothorax"])
        region = air.masks["Pneumothorax"] & healthy.lungs
        assert air.radiograph.pixels[region].mean() < healthy.radiograph.pixels[region].mean() - 3


def test_no_vessels_beyond_the_visceral_pleura():
    import cv2

    def grain(phantom, region):
        pixels = phantom.radiograph.pixels.astype(np.float32)
        return np.abs(pixels - cv2.GaussianBlur(pixels, (0, 0), 2.5))[region].mean()

    ratios = []
    for seed in range(300, 308):
        air, healthy = (make(seed, size=320, findings=f) for f in (["Pneumothorax"], []))
        region = cv2.erode((air.masks["Pneumothorax"] & healthy.lungs).astype(np.uint8), np.ones((9, 9))) > 0
        if region.sum() > 400:
            ratios.append(grain(air, region) / grain(healthy, region))
    assert len(ratios) >= 3
    assert np.mean(ratios) < 0.97


def test_one_body_in_every_view():
    front, back, side = (make(42, view=view, size=SIZE).radiograph for view in ("PA", "AP", "LATERAL"))
    assert front.age_years == back.age_years == side.age_years
    assert front.sex == back.sex == side.sex
    assert front.patient == side.patient
    labels = [make(42, view=view, size=SIZE).labels for view in ("PA", "AP", "LATERAL")]
    assert labels[0] == labels[1] == labels[2]
    top = [np.flatnonzero(make(42, view=v, size=320, findings=[]).lungs.any(1)) for v in ("PA", "LATERAL")]
    heights = [(rows[-1] - rows[0]) * r.spacing_mm[0] for rows, r in zip(top, (front, side), strict=True)]
    assert heights[0] * SIZE / 320 == pytest.approx(heights[1] * SIZE / 320, rel=0.12)


def test_another_study_is_the_same_patient_with_other_findings():
    assert draw_body(7, 0).width == draw_body(7, 1).width
    assert len({draw_findings(7, study) for study in range(12)}) > 3


def test_the_same_seed_gives_the_same_pixels_in_another_process():
    here = hashlib.sha256(make(9, size=SIZE).radiograph.pixels.tobytes()).hexdigest()
    code = (
        "import hashlib; from wetread.radiograph.synthesis import make; "
        f"print(hashlib.sha256(make(9, size={SIZE}).radiograph.pixels.tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there
    assert make(10, size=SIZE).radiograph.pixels.tobytes() != make(9, size=SIZE).radiograph.pixels.tobytes()


def test_making_a_phantom_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make(1, size=64)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_lungs_are_darker_than_mediastinum_and_abdomen():
    for seed in range(5):
        phantom = make(seed, size=160, findings=[])
        pixels, lungs = phantom.radiograph.pixels, phantom.lungs
        rows = np.flatnonzero(lungs.any(1))
        assert 0.1 < lungs.mean() < 0.5
        assert pixels[lungs].mean() + 50 < pixels[rows[0] + 20 : rows[-1], 78:82].mean()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"seed": -1}, "seed = -1"),
        ({"view": "OBLIQUE"}, "view = 'OBLIQUE'"),
        ({"size": 10}, "size = 10"),
        ({"findings": ["Gout"]}, "unknown finding 'Gout'"),
        ({"findings": ["No Finding", "Edema"]}, "No Finding excludes"),
    ],
)
def test_bad_arguments_are_named(arguments, part):
    with pytest.raises(WetreadError, match=part):
        make(**{"seed": 0, **arguments})


def test_given_findings_are_closed_upward():
    marked = make(0, size=64, findings=["Pneumonia"]).labels
    assert [f for f, value in marked.items() if value] == ["Lung Opacity", "Consolidation", "Pneumonia"]
    assert make(0, size=64, findings=["No Finding", "Support Devices"]).labels["No Finding"] == 1
