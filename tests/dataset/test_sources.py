"""What holds for every collection: refusals, limits, terms, errors in one line."""

from pathlib import Path

import polars as pl
import pytest

from wetread.dataset import sources
from wetread.dataset.split import unit
from wetread.errors import DatasetError


def test_a_limit_takes_whole_patients_in_an_order_of_their_own(make_folders):
    root = make_folders({f"{['NORMAL', 'PNEUMONIA'][n % 2]}/person{n // 3}_virus_{n}.jpeg": n for n in range(60)})
    everything = sources.collect("kermany", root, seed=4).rows
    order = sorted(set(everything["patient"]), key=lambda patient: unit([patient], 4, "limit")[0])
    before = set()
    for limit in (1, 3, 20, 59, 60, 1000):
        got = sources.collect("kermany", root, limit=limit, seed=4)
        taken = set(got.rows["patient"])
        assert taken == set(order[: len(taken)])
        assert before <= taken
        assert got.rows.height <= max(limit, 3)
        assert got.rows.equals(everything.filter(pl.col("patient").is_in(list(taken))))
        assert got.about["selection"]["images_beyond_limit"] == 60 - got.rows.height
        before = taken


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b"just,two\n1,2\n", b'Path,"broken\n', bytes(range(256))])
def test_a_table_that_is_none_is_an_error_not_a_traceback(tmp_path, data):
    (tmp_path / "train.csv").write_bytes(data)
    (tmp_path / "Data_Entry_2017.csv").write_bytes(data)
    for kind in ("chexpert", "nih"):
        with pytest.raises(DatasetError, match=str(tmp_path)) as error:
            sources.collect(kind, tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", list(sources.SOURCES))
def test_an_empty_or_missing_root_is_an_error(tmp_path, kind):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DatasetError, match=str(root)):
            sources.collect(kind, root)


def test_an_unknown_kind_limit_or_label_table_is_an_error(chexpert, make_folders):
    with pytest.raises(DatasetError, match="'mura': unknown; known: chexpert"):
        sources.collect("mura", chexpert[0])
    with pytest.raises(DatasetError, match="limit = 0"):
        sources.collect("chexpert", chexpert[0], limit=0)
    with pytest.raises(DatasetError, match=r"no label table absent\.csv"):
        sources.collect("chexpert", chexpert[0], labels="absent.csv")
    (chexpert[0] / "binary.csv").write_bytes(bytes(range(128, 256)))
    for name in ("binary.csv", str(chexpert[0] / "binary.csv")):
        with pytest.raises(DatasetError, match="not UTF-8 text"):
            sources.collect("chexpert", chexpert[0], labels=name)
    with pytest.raises(DatasetError, match="labels in the folder names"):
        sources.collect("folders", make_folders({"a/1.png": 1, "b/2.png": 2}), labels="x.csv")


def test_every_source_states_its_terms():
    for kind, source in sources.SOURCES.items():
        assert source.licence
        assert source.attribution
        assert source.patient
        assert source.url.startswith("https://") or kind in ("phantom", "reviews", "folders")


def test_the_manual_has_the_table_of_collections():
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    for kind, source in sources.SOURCES.items():
        count = f"{source.images:,}" if source.images else "–"
        assert (
            f"| `{kind}` | {source.title} | {count} | {source.layout} | {source.patient} | {source.licence} |" in text
        )
