import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from wetread.errors import WetreadError
from wetread.evaluate import shortcuts
from wetread.evaluate.shortcuts import Shortcuts, Twins
from wetread.findings import PNEUMONIA, Task
from wetread.radiograph import phantom
from wetread.radiograph.pixels import plain

TASK = Task("t", ("A",))


def films(count, side=64, seed=0):
    """Smooth pictures that differ from each other."""
    rng = np.random.default_rng(seed)
    blurred = ndimage.gaussian_filter(rng.normal(0, 1, (count, side, side)), (0, 4, 4))
    return np.clip(128 + 400 * blurred, 0, 255).astype(np.uint8)


def test_an_attribute_that_coincides_with_a_finding_is_named():
    rng = np.random.default_rng(0)
    y = (np.arange(400) % 2).astype(float)
    ages = np.where(y == 1, "60-79", "0-4")
    swapped = rng.random(400) < 0.05
    ages[swapped] = np.where(y[swapped] == 1, "0-4", "60-79")
    sex = rng.choice(["F", "M"], 400)
    found = {
        c.attribute: c
        for c in shortcuts.coincidences(TASK, y[:, None], {"age": ages, "sex": sex}, groups=np.arange(400))
    }
    assert found["age"].nearly
    assert not found["sex"].nearly
    assert found["age"].auroc == pytest.approx(roc_auc_score(y, ages == "60-79"))
    assert 0.5 <= found["sex"].auroc < 0.6
    assert "A and age nearly coincide" in found["age"].sentence()
    assert sum(map(sum, found["age"].groups.values())) == 400


def test_many_groups_of_one_give_nothing_away():
    y = (np.arange(200) % 2).astype(float)
    hospital = np.array([f"h{n}" for n in range(200)])
    assert shortcuts.coincidences(TASK, y[:, None], {"hospital": hospital}, groups=np.arange(200)) == ()


def test_that_an_attribute_is_missing_can_give_a_finding_away():
    y = (np.arange(200) % 2).astype(float)
    (found,) = shortcuts.coincidences(TASK, y[:, None], {"age": np.where(y == 1, "", "18-39")}, groups=np.arange(200))
    assert found.auroc == 1
    assert found.groups == {"unknown": (100, 0), "18-39": (0, 100)}


def test_few_images_and_mirrored_findings_are_left_out():
    y = np.zeros((100, 1))
    y[:10] = 1
    view = {"view": np.where(y[:, 0] == 1, "AP", "PA")}
    assert shortcuts.coincidences(TASK, y, view, groups=np.arange(100)) == ()
    y = (np.arange(100) % 2).astype(float)
    both = shortcuts.coincidences(
        PNEUMONIA, np.stack([1 - y, y], 1), {"view": np.where(y == 1, "AP", "PA")}, groups=np.arange(100)
    )
    assert [c.finding for c in both] == ["Pneumonia"]


def test_near_duplicates_are_found_through_compression_exposure_and_size():
    pixels = films(60)
    smaller = cv2.resize(pixels[1], (40, 40), interpolation=cv2.INTER_AREA)
    copies = [
        cv2.imdecode(cv2.imencode(".jpg", pixels[0], [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_GRAYSCALE),
        cv2.resize(smaller, (64, 64), interpolation=cv2.INTER_LINEAR),
        np.clip(pixels[2] * 0.9 + 8, 0, 255).astype(np.uint8),
        pixels[3],
    ]
    everything = np.concatenate([pixels, copies])
    judged, others = np.arange(60, 64), np.arange(60)
    assert sorted(shortcuts.twins(everything, judged, others)) == [(60, 0), (61, 1), (62, 2), (63, 3)]


def test_different_bodies_are_no_duplicates_and_other_studies_of_one_are_told_apart():
    made = [phantom.make(seed, size=64).radiograph.pixels for seed in range(30)]
    pixels = np.stack(made)
    assert shortcuts.twins(pixels, np.arange(15), np.arange(15, 30)) == []
    assert shortcuts.twins(pixels, np.arange(0), np.arange(30)) == []


def test_the_bands_miss_no_pair_within_the_distance():
    rng = np.random.default_rng(0)
    pixels = films(40, seed=1)
    noisy = np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)
    everything = np.concatenate([pixels, noisy])
    hashes = np.stack([shortcuts.dhash(image) for image in everything])
    found = dict(shortcuts.twins(everything, np.arange(40, 80), np.arange(40)))
    for row in range(40, 80):
        near = (hashes[row] ^ hashes[:40]).sum(1)
        alike = [
            np.corrcoef(*(cv2.resize(everything[n], (64, 64)).ravel() for n in (row, other)))[0, 1]
            for other in range(40)
        ]
        expected = (near <= shortcuts.NEAR) & (np.array(alike) >= shortcuts.ALIKE)
        assert (row in found) == expected.any()


def test_a_hash_ignores_exposure():
    image = films(1)[0] // 2
    assert (shortcuts.dhash(image) == shortcuts.dhash(image + 40)).all()
    assert shortcuts.dhash(image).shape == (256,)


SIDE = 32
ZONE = np.zeros((SIDE, SIDE), bool)
ZONE[8:24, 8:24] = True


def blinded(corner):
    """Pictures with a disease in the chest and, where `corner`, a mark of it in a corner; a model that sees both."""
    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.5).astype(float)
    pixels = rng.integers(90, 110, (300, SIDE, SIDE)).astype(np.uint8)
    pixels[:, 10:20, 10:20] += (40 * y + rng.normal(20, 8, 300)).clip(0, 100).astype(np.uint8)[:, None, None]
    if corner:
        pixels[:, :3, :3] += (30 * y).astype(np.uint8)[:, None, None]

    def score(x):
        inside, mark = x[:, 0, 10:20, 10:20].mean((1, 2)), x[:, 0, :3, :3].mean((1, 2))
        return (1 / (1 + np.exp(-((inside - 140) + (mark - 115)) / 10)))[:, None]

    return score, pixels, y[:, None]


@pytest.mark.parametrize("corner", [True, False])
def test_a_model_that_needs_no_lungs_is_caught(corner):
    score, pixels, y = blinded(corner)
    (found,) = shortcuts.lungs_out(score, TASK, pixels, y, score(pixels[:, None]), ZONE, groups=np.arange(300))
    assert found.whole.value > 0.95
    assert found.suspicious is corner
    assert (found.masked.value > 0.9) is corner
    said = Shortcuts((), None, (found,)).cautions()
    assert len(said) == corner
    assert all("without the lungs" in sentence for sentence in said)


def test_masking_hides_the_zone_and_nothing_else():
    pixels = films(3, SIDE)
    hidden = shortcuts.without(pixels, ZONE)
    assert (hidden[:, ~ZONE] == pixels[:, ~ZONE]).all()
    for before, after in zip(pixels, hidden, strict=True):
        assert (after[ZONE] == round(before[~ZONE].mean())).all()
    each = np.stack([ZONE, ~ZONE, ZONE & False])
    assert (shortcuts.without(pixels, each)[2] == pixels[2]).all()
    with pytest.raises(WetreadError, match="zone"):
        shortcuts.lungs_out(
            lambda x: x, TASK, pixels, np.zeros((3, 1)), np.zeros((3, 1)), ZONE[:8], groups=np.arange(3)
        )


def test_the_chest_zone_holds_the_lungs_of_other_phantoms():
    transform = plain(64)
    zone = shortcuts.chest_zone(transform)
    assert 0.3 < zone.mean() < 0.8
    covered = [zone[phantom.make(900 + seed, size=64).lungs].mean() for seed in range(5)]
    assert np.mean(covered) > 0.95


def test_what_was_found_is_said():
    said = Shortcuts((), Twins(2, 10, 90, (("a.png", "b.png", "train"),)), ()).cautions()
    assert said == [
        "2 of 10 images have a near-duplicate in another split, e.g. a.png and b.png (train): they test memory."
    ]
    assert Shortcuts((), Twins(0, 10, 90, ()), None).cautions() == []
