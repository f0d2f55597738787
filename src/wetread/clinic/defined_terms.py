"""What may stay in a de-identified file: a short list of attributes, each with the only values it may have.

Codes (VR CS) and names of makers stay when they are defined terms of DICOM or of the lists here, coded concepts when
PS3.16 has them, with its words for them; numbers are written anew, within bounds. Anything else may be somebody's name
and goes, whatever its attribute is meant for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes as dicom_codes
from pydicom.sr.coding import Code
from pydicom.uid import UID

from wetread.radiograph.dicom import PHANTOM_MANUFACTURER

Check = Callable[[Any], Any]  # takes a value, returns what stays of it, None for nothing
_LIMIT = 16  # most values of one attribute, and most items of a sequence


def _one(*terms: str) -> Check:
    def check(value: Any) -> str | None:
        text = str(value).strip().upper()
        return text if text in terms else None

    return check


def _number(low: float, high: float, count: int = 1) -> Check:
    """Numbers written anew; `count` is how many there may be."""

    def check(value: Any) -> Any:
        found = value if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else [value]
        numbers = [float(str(each)) for each in found]
        if not 0 < len(numbers) <= count or not all(math.isfinite(n) and low <= n <= high for n in numbers):
            return None
        plain = [f"{n:.9g}" for n in numbers]
        return plain[0] if len(plain) == 1 else plain

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> int | None:
        return value if isinstance(value, int) and low <= value <= high else None

    return check


def _image_type(value: Any) -> list[str] | None:
    """Return the values that PS3.3 C.7.6.1.1.2 and the modules of CR and DX define; the first two must be such."""
    found = [str(each).strip().upper() for each in ([value] if isinstance(value, str) else value)][:_LIMIT]
    if len(found) < 2 or found[0] not in ("ORIGINAL", "DERIVED") or found[1] not in ("PRIMARY", "SECONDARY"):
        return None
    more = ("", "POST_CONTRAST", "POST_PROCESSED", "PROCESSED", "RESAMPLED", "STITCHED", "QUANTITY", "OTHER")
    return [*found[:2], *(each for each in found[2:] if each in more)]


def _orientation(value: Any) -> list[str] | None:
    """Return two directions (PS3.3 C.7.6.1.1.1): letters of different axes, each at most once."""
    found = [str(each).strip().upper() for each in ([value] if isinstance(value, str) else value)]
    axes = {"A": 0, "P": 0, "L": 1, "R": 1, "H": 2, "F": 2}
    for each in found:
        if not re.fullmatch("[APLRHF]{1,3}", each) or len({axes[letter] for letter in each}) < len(each):
            return None
    return found if len(found) == 2 else None


def _maker(value: Any) -> str | None:
    """Return a maker of X-ray devices in one spelling, whatever else stands beside it."""
    text = str(value).strip()
    if text == PHANTOM_MANUFACTURER:
        return text
    words = re.findall("[A-Z0-9]+", text.upper())
    return next((maker for maker in _MAKERS if maker.upper() in words), None)


_MAKERS = (
    "Agfa", "Canon", "Carestream", "DRGEM", "DRTECH", "Fujifilm", "Fuji", "GE", "GMM", "Hologic", "Imix", "Kodak",
    "Konica", "Lodox", "Lumisys", "Oldelft", "Philips", "Planmed", "Rayence", "Samsung", "Sedecal", "Shimadzu",
    "Siemens", "Swissray", "Toshiba", "Varian", "Vidar", "Vieworks",
)  # fmt: skip
_BODY_PARTS = (  # PS3.16 annex L, what a radiograph may show, and what devices write for the chest
    "ABDOMEN", "ABDOMENPELVIS", "ANKLE", "ARM", "BREAST", "CALCANEUS", "CHEST", "CHESTABDOMEN", "CHESTABDPELVIS",
    "CLAVICLE", "COCCYX", "CSPINE", "CTSPINE", "ELBOW", "EXTREMITY", "FEMUR", "FINGER", "FOOT", "FOREARM", "HAND",
    "HEAD", "HEADNECK", "HEART", "HIP", "HUMERUS", "JAW", "KNEE", "LEG", "LSPINE", "LSSPINE", "LUNG", "LUNGS",
    "MEDIASTINUM", "NECK", "NECKCHEST", "PATELLA", "PELVIS", "PHANTOM", "PORT CHEST", "PORTABLE CHEST", "RIB", "RIBS",
    "SCAPULA", "SHOULDER", "SKULL", "SPINE", "SSPINE", "STERNUM", "THIGH", "THORAX", "TIBIA", "TIBIA FIBULA",
    "TLSPINE", "TOE", "TRACHEA", "TSPINE", "WHOLEBODY", "WRIST", "ZYGOMA",
)  # fmt: skip
_WHOLE = 2**31
KEPT: dict[str, Check] = {
    # What the picture is made of.
    "SamplesPerPixel": _integer(1, 4),
    "PlanarConfiguration": _integer(0, 1),
    "NumberOfFrames": _number(1, 1),
    "Rows": _integer(1, 65535),
    "Columns": _integer(1, 65535),
    "BitsAllocated": _integer(1, 64),
    "BitsStored": _integer(1, 64),
    "HighBit": _integer(0, 63),
    "PixelRepresentation": _integer(0, 1),
    "PixelPaddingValue": _integer(-_WHOLE, _WHOLE),
    "PixelPaddingRangeLimit": _integer(-_WHOLE, _WHOLE),
    "PixelIntensityRelationshipSign": _integer(-1, 1),
    "PhotometricInterpretation": _one(
        "MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"
    ),
    "PresentationLUTShape": _one("IDENTITY", "INVERSE"),
    "PixelIntensityRelationship": _one("LIN", "LOG", "DISP"),
    "VOILUTFunction": _one("LINEAR", "LINEAR_EXACT", "SIGMOID"),
    "RescaleIntercept": _number(-1e9, 1e9),
    "RescaleSlope": _number(-1e9, 1e9),
    "RescaleType": _one("US", "OD", "HU"),
    "WindowCenter": _number(-1e9, 1e9, _LIMIT),
    "WindowWidth": _number(-1e9, 1e9, _LIMIT),
    "LossyImageCompression": _one("00", "01"),
    "LossyImageCompressionRatio": _number(0, 1e6, _LIMIT),
    # What it shows, and how it was taken.
    "ImageType": _image_type,
    "Modality": _one("CR", "DX", "RG", "RF", "XA", "PX", "IO", "MG", "OT", "CT", "MR", "US", "NM", "PT", "ES"),
    "PresentationIntentType": _one("FOR PRESENTATION", "FOR PROCESSING"),
    "BodyPartExamined": _one(*_BODY_PARTS),
    "ViewPosition": _one(
        "PA", "AP", "LL", "RL", "RLD", "LLD", "LLO", "RLO", "LAT", "LATERAL", "LAO", "RAO", "LPO", "RPO"
    ),
    "PatientOrientation": _orientation,
    "Laterality": _one("R", "L"),
    "ImageLaterality": _one("R", "L", "U", "B"),
    "BurnedInAnnotation": _one("YES", "NO"),
    "DetectorType": _one("DIRECT", "SCINTILLATOR", "STORAGE", "FILM"),
    "ConversionType": _one("DV", "DI", "DF", "WSD", "SD", "SI", "DRW", "SYN"),
    "Grid": _one("FIXED", "RECIPROCATING", "PARALLEL", "FOCUSED", "CROSSED", "NONE"),
    "Manufacturer": _maker,
    "KVP": _number(0, 500),
    "ExposureTime": _number(0, 1e6),
    "XRayTubeCurrent": _number(0, 1e5),
    "Exposure": _number(0, 1e5),
    "ExposureInuAs": _number(0, 1e8),
    "DistanceSourceToDetector": _number(0, 1e5),
    "DistanceSourceToPatient": _number(0, 1e5),
    "PixelSpacing": _number(1e-4, 100, 2),
    "ImagerPixelSpacing": _number(1e-4, 100, 2),
    "PixelAspectRatio": _number(1, 1e6, 2),
    # Characteristics of the patient that the option of the profile retains; the age is the clinic's.
    "PatientSize": _number(0.2, 2.6),
    "PatientWeight": _number(0.2, 500),
    "PatientSex": _one("M", "F", "O"),
}
_CODED = {
    "ViewCodeSequence": (4010,),
    "ViewModifierCodeSequence": (4011,),
    "AnatomicRegionSequence": (4, 4009),
}
_TABLES = ("ModalityLUTSequence", "VOILUTSequence")
SEQUENCES = frozenset((*_CODED, *_TABLES))
# Codes of SNOMED-RT that devices write and the reader knows, but pydicom's map of them does not.
_OLD = {"R-10214": "272479007", "R-10232": "399198007", "R-10236": "399173006"}
_SOURCES = ("SCT", "SRT", "SNM3", "99SDM", "DCM")


def reduce(dataset: Dataset) -> Dataset:
    """Return what may stay of a data set, pixels aside, written anew."""
    kept = Dataset()
    for keyword, check in KEPT.items():
        if keyword in dataset and not dataset[keyword].is_empty:
            try:
                value = check(dataset[keyword].value)
            except (TypeError, ValueError):
                value = None
            if value is not None:
                setattr(kept, keyword, value)
    for keyword, lists in _CODED.items():
        if items := [code for item in dataset.get(keyword) or [] if (code := _coded(item, lists)) is not None]:
            setattr(kept, keyword, Sequence(items[:_LIMIT]))
    for keyword in _TABLES:
        if items := [table for item in dataset.get(keyword) or [] if (table := _table(item)) is not None]:
            setattr(kept, keyword, Sequence(items[:_LIMIT]))
    return kept


def storage(uid: Any) -> UID:
    """Return the SOP class of an image that DICOM knows.

    Raises
    ------
    ValueError
        When it is another, which may be anything.
    """
    found = UID(str(uid))
    if found.is_private or found.type != "SOP Class" or "Image Storage" not in found.name:
        raise ValueError("SOP class")
    return found


@cache
def _concepts(lists: tuple[int, ...]) -> list[Code]:
    found: list[Code] = []
    for number in lists:
        group = getattr(dicom_codes, f"cid{number}")
        found += [getattr(group, name) for name in group.trait_names()]
    return [code for code in found if isinstance(code, Code)]  # a word may be a method's of the list


def _coded(item: Dataset, lists: tuple[int, ...]) -> Dataset | None:
    """Return a coded concept of PS3.16 in its words, by its code of today or of SNOMED-RT; None for any other."""
    value, scheme = str(item.get("CodeValue") or "").strip(), str(item.get("CodingSchemeDesignator") or "").strip()
    if scheme not in _SOURCES or not re.fullmatch("[A-Z0-9-]{1,16}", value):
        return None
    said = Code(value, "SRT" if scheme in ("SNM3", "99SDM") else scheme, "")
    if said.scheme_designator == "SRT" and value in _OLD:
        said = Code(_OLD[value], "SCT", "")
    known = next((code for code in _concepts(lists) if code == said), None)
    if known is None:
        return None
    kept = Dataset()
    kept.CodeValue, kept.CodingSchemeDesignator, kept.CodeMeaning = value, scheme, known.meaning[:64]
    return kept


def _table(item: Dataset) -> Dataset | None:
    """Return a look-up table that rises or falls throughout, which no text does for long; None for any other."""
    try:
        count, first, bits = (int(each) for each in item.LUTDescriptor)
        data = item.LUTData
        count = count or 65536
        values = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.atleast_1d(np.asarray(data))
        steps = np.diff(values[:count].astype(np.int64))
    except (AttributeError, TypeError, ValueError):
        return None
    if len(values) < count or not 8 <= bits <= 16 or not (steps.min(initial=0) >= 0 or steps.max(initial=0) <= 0):
        return None
    kept = Dataset()
    kept.add_new("LUTDescriptor", "SS" if first < 0 else "US", [count % 65536, first, bits])
    kept.add_new("LUTData", "OW", values[:count].astype("<u2").tobytes())
    return kept
