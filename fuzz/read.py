"""Fuzz the reader: any bytes give a radiograph or one coded sentence: `python fuzz/read.py CORPUS [libFuzzer options]`.

Whatever else comes out, a crash, a hang or too much memory, is a finding; libFuzzer leaves the bytes behind. JPEG, PNG,
WebP and TIFF are decoded in this process, where the fuzzer sees them crash. Compressed DICOM frames are decoded apart,
as in service, for those decoders are known to break: only a crash that is not contained is a finding.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["wetread.radiograph", "wetread.clinic.identity", "pydicom"]):
    import pydicom  # noqa: F401

    from wetread.clinic import identity
    from wetread.radiograph import dicom, headers  # noqa: F401
    from wetread.radiograph.read import Limits, read, to_8_bit

from wetread.errors import ReadError
from wetread.radiograph.suitability import suit

LIMITS = Limits(max_bytes=2**20, max_pixels=2**20)
_FILE = Path(tempfile.mkdtemp()) / "file"


def one(data: bytes) -> None:
    """Read one file, and what it says about itself, as intake and worker do."""
    if identity.sniff(data[:4096]) == "dicom":
        _FILE.write_bytes(data)
        said = identity.of(_FILE, data[:4096])
        for uid in (said.study_uid, said.series_uid, said.sop_uid):
            assert uid is None or (len(uid) <= 64 and set(uid) <= set("0123456789.")), uid
        assert "\0" not in said.patient_id + said.patient_name
    try:
        film = read(data, name="film", limits=LIMITS)
    except ReadError as error:
        words = str(error)
        if "\n" in words or not words.startswith("film: "):
            raise AssertionError(words) from None
        return
    assert film.pixels.ndim == 2, film.pixels.shape
    assert 0 < film.pixels.size <= LIMITS.max_pixels
    assert film.pixels.dtype.itemsize * 8 == film.bits
    assert to_8_bit(film.pixels).shape == film.pixels.shape
    answer = suit(film)
    assert answer.suitable or (answer.code and answer.reason)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
