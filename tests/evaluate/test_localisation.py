import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import jaccard_score

from wetread.errors import DatasetError
from wetread.evaluate import localisation
from wetread.evaluate.localisation import Localiser
from wetread.findings import Task
from wetread.infer import heatmap

TASK = Task("t", ("A", "B"))


@given(
    hnp.arrays(np.float64, (6, 7), elements=st.floats(-2, 5, width=16)),
    hnp.arrays(np.bool_, (6, 7)).filter(lambda mask: mask.any()),
    st.sampled_from(localisation.SHARES.tolist()),
)
def test_overlap_is_scikit_learn_s_jaccard(heat, mask, share):
    found = localisation.overlap(heat, mask, [share])[0]
    if heat.max() <= 0:
        assert found == 0
    else:
        assert found == pytest.approx(jaccard_score(mask.ravel(), (heat >= share * heat.max()).ravel()))


def test_pointing_is_whether_the_highest_place_is_inside():
    heat = np.zeros((4, 4))
    heat[1, 2] = 1
    mask = np.zeros((4, 4), bool)
    assert not localisation.points(heat, mask)
    mask[1, 2] = True
    assert localisation.points(heat, mask)
    heat[0, 0] = np.nan  # outside of what the model saw
    assert localisation.points(heat, mask)


def test_a_map_is_resampled_as_the_viewer_does():
    heat = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    viewed = heatmap.to_image(heat, (0.0, 0.0, 1.0, 1.0), (40, 40))
    assert localisation.resize(heat, (40, 40)) == pytest.approx(viewed, abs=1e-5)


def test_figures_of_a_finding_by_hand():
    place = Localiser(TASK, {"A": 0.5, "B": 0.5})
    mask = np.zeros((4, 4), bool)
    mask[:2, :2] = True
    right = np.where(mask, 1.0, 0.0)
    place.add("A", right, mask, 0.9, "p1")
    place.add("A", 1 - right, mask, 0.1, "p2")
    place.add("B", right, np.zeros((4, 4), bool), 0.9, "p1")  # nowhere: does not count
    (found,) = place.result()
    assert (found.finding, found.images, found.flagged) == ("A", 2, 1)
    assert (found.pointing.value, found.pointing_flagged.value, found.middle.value) == (0.5, 1.0, 0.0)
    assert found.iou == found.best_iou == 0.5
    place.add("B", right, mask, 0.9, "p1")
    assert [one.finding for one in place.result()] == ["A", "B", "all"]
    assert place.result()[-1].pointing.value == pytest.approx(2 / 3)


HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"


def test_nih_s_list_of_boxes_is_read_as_published(tmp_path):
    file = tmp_path / "BBox_List_2017.csv"
    file.write_text(
        HEADER
        + "00013118_008.png,Atelectasis,225.084745762712,547.019216763771,86.7796610169492,79.1864406779661,,,\n"
        + "00014716_007.png,Infiltrate,686.1,131.5,185.5,313.5,,,\n"
        + "00014716_007.png,Infiltrate,100,100,50,50,,,\n",
        encoding="utf-8",
    )
    found = localisation.read_boxes(file)
    assert found["00013118_008.png", "Atelectasis"] == [
        pytest.approx(
            (225.084745762712 / 1024, 547.019216763771 / 1024, 86.7796610169492 / 1024, 79.1864406779661 / 1024)
        )
    ]
    assert len(found["00014716_007.png", "Infiltration"]) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line must begin"),
        ("a,b,c\n", "first line must begin"),
        (HEADER, "no box below"),
        (HEADER + "a.png,Mass,1,2,x,4,,,\n", "line 2: expected image"),
        (HEADER + "a.png,Mass,1,2\n", "line 2: expected image"),
        (HEADER + "a.png,Mass,1,2,0,4,,,\n", "is no box"),
        (HEADER + "a.png,Mass,nan,2,3,4,,,\n", "is no box"),
    ],
)
def test_a_list_that_is_none_is_refused_with_the_line(tmp_path, text, words):
    file = tmp_path / "boxes.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=words):
        localisation.read_boxes(file)


def test_a_box_covers_the_cells_whose_centre_it_holds():
    mask = localisation.box_mask([(0.25, 0.5, 0.5, 0.25), (0, 0, 0.25, 0.25)], 4)
    expected = np.zeros((4, 4), bool)
    expected[2, 1:3] = expected[0, 0] = True
    assert (mask == expected).all()
