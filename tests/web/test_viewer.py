"""What stands on screen, grey by grey: Chromium's picture of known DICOM files against pydicom's own rendering."""

from __future__ import annotations

import base64
import io
import itertools

import browser
import cv2
import films
import numpy as np
import pytest
from browser import Server, level, signed_in, until, wait_for, watched
from pydicom import Dataset, dcmread
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

from wetread.radiograph import phantom

pytestmark = browser.needed
SIDE = 4  # patches in a row; each is large enough for a middle that no neighbour has a part in


def patches(low: int, high: int, kind: type) -> np.ndarray:
    """Return sixteen constant patches of 64×64, from `low` to `high`."""
    steps = np.linspace(low, high, SIDE * SIDE).round().astype(kind).reshape(SIDE, SIDE)
    return np.kron(steps, np.ones((64, 64), kind))


def voi(values: np.ndarray, first: int = 0, **more: str) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values), first, 16])
    item.add_new("LUTData", "US", [int(value) for value in values])
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


CURVE = np.rint(65535 * np.linspace(0, 1, 4096) ** 1.7).astype(int)
TWELVE, SIXTEEN = patches(60, 4000, np.uint16), patches(900, 64000, np.uint16)
SIGNED = patches(-1900, 2000, np.int16)
WINDOW = {"WindowCenter": "1900", "WindowWidth": "2500"}
M1 = {"PhotometricInterpretation": "MONOCHROME1"}
FILES = {
    "12 bits": (TWELVE, {}),
    "12 bits, MONOCHROME1": (TWELVE, M1),
    "window": (TWELVE, WINDOW),
    "window, MONOCHROME1": (TWELVE, WINDOW | M1),
    "window, MONOCHROME1 and INVERSE": (TWELVE, WINDOW | M1 | {"PresentationLUTShape": "INVERSE"}),
    "window, INVERSE": (TWELVE, WINDOW | {"PresentationLUTShape": "INVERSE"}),
    "narrow window, MONOCHROME1": (SIXTEEN, M1 | {"WindowCenter": "30000", "WindowWidth": "4000"}),
    "rescaled": (TWELVE, WINDOW | {"RescaleSlope": "0.5", "RescaleIntercept": "800"}),
    "falling, MONOCHROME1": (TWELVE, WINDOW | M1 | {"RescaleSlope": "-1", "RescaleIntercept": "4095"}),
    "16 bits signed": (SIGNED, {"WindowCenter": "0", "WindowWidth": "3000"}),
    "16 bits signed, MONOCHROME1": (SIGNED, M1 | {"WindowCenter": "0", "WindowWidth": "3000"}),
    "table": (TWELVE, {"VOILUTSequence": [voi(CURVE)]}),
    "table, MONOCHROME1": (TWELVE, M1 | {"VOILUTSequence": [voi(CURVE)]}),
    "sigmoid": (TWELVE, WINDOW | {"VOILUTFunction": "SIGMOID"}),
    "8 bits": (patches(3, 250, np.uint8), {}),
}


def expected(content: bytes, index: int = 0) -> np.ndarray:
    """Return pydicom's grey, 0 to 255, of each patch."""
    film = dcmread(io.BytesIO(content))
    inner = np.asarray(apply_modality_lut(film.pixel_array, film))
    tables = len(film.get("VOILUTSequence") or ())
    if index < tables:
        shown = apply_voi(inner, film, index).astype(float) * 255 / 65535
    elif "WindowCenter" in film:
        plain = Dataset()  # pydicom scales to the depth that the header of the file names
        plain.PhotometricInterpretation, plain.PixelRepresentation, plain.BitsStored = "MONOCHROME2", 0, 16
        for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
            if keyword in film:
                plain[keyword] = film[keyword]
        shown = apply_windowing(inner, plain, index - tables) * 255 / 65535
    else:
        low, high = (0, 255) if film.BitsStored == 8 else (inner.min(), inner.max())
        shown = 255 * (inner.astype(float) - low) / (high - low)
    inverse = film.PhotometricInterpretation == "MONOCHROME1" or film.get("PresentationLUTShape") == "INVERSE"
    return (255 - shown if inverse else shown)[32::64, 32::64]


@pytest.fixture(scope="module")
def session(server, chromium):
    with signed_in(chromium, server, 1200, 700) as context:
        yield context


@pytest.fixture(scope="module")
def page(server, session):
    with watched(session, server.url) as page:
        yield page


BOTH_KEYS = """for (const key of '5p')
    document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}))"""
COUNT = itertools.count(1)


def send(server: Server, stored: np.ndarray, patient: str = "", **elements: object) -> tuple[str, bytes]:
    """Send a film of a patient of its own; return its study and its bytes."""
    number = next(COUNT)
    content = films.dicom(
        stored,
        StudyInstanceUID=f"1.2.9.{number}.1",
        SeriesInstanceUID=f"1.2.9.{number}.2",
        SOPInstanceUID=f"1.2.9.{number}.3",
        **{"PatientID": patient or f"V{number}", "PatientName": f"Film^{number}"} | elements,
    )
    return server.send(content, f"{number}.dcm"), content


def opened(page, server: Server, study: str) -> None:
    page.goto(f"{server.url}/studies/{study}")
    until(page, "document.body.dataset.drawn")


def picture(page, pane: int = 0) -> np.ndarray:
    """Return the greys of a pane's canvas, float [H, W]."""
    address = page.evaluate("n => document.querySelectorAll('.viewport canvas')[n].toDataURL('image/png')", pane)
    content = np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_COLOR).astype(float).mean(2)


def seen(page, pane: int = 0) -> np.ndarray:
    """Return the grey in the middle of each patch, as the picture lies whole in its pane, float [4, 4]."""
    shown = picture(page, pane)
    side = min(shown.shape)
    top, left = (shown.shape[0] - side) / 2, (shown.shape[1] - side) / 2
    middles = (np.arange(SIDE) + 0.5) * side / SIDE
    rows, columns = np.meshgrid((top + middles).astype(int), (left + middles).astype(int), indexing="ij")
    found: np.ndarray = shown[rows, columns]
    return found


def shows(page, wanted: np.ndarray, what: str, pane: int = 0) -> None:
    """Wait until each patch is within one grey level of what is wanted."""
    worst = [255.0]

    def right() -> bool:
        worst[0] = float(np.abs(seen(page, pane) - wanted).max())
        return worst[0] <= 1.0

    try:
        wait_for(page, right, what)
    except AssertionError:
        raise AssertionError(
            f"{what}: {worst[0]:.1f} grey levels off: {seen(page, pane).round()} {wanted.round()}"
        ) from None


class TestGrey:
    @pytest.mark.parametrize("name", FILES)
    def test_it_is_pydicoms_first_and_after_reset_and_its_negative_inverted(self, server, page, name):
        stored, elements = FILES[name]
        study, content = send(server, stored, **elements)
        wanted = expected(content)
        opened(page, server, study)
        shows(page, wanted, "first")
        page.keyboard.press("i")
        shows(page, 255 - wanted, "inverted")
        for key in ("2", "3", "+", "s", "r"):
            page.keyboard.press(key)
        shows(page, wanted, "reset after all that")
        assert "INVERTED" not in page.inner_text("#level")

    def test_the_senders_windows_come_one_after_the_other(self, server, page):
        study, content = send(
            server,
            TWELVE,
            **M1,
            VOILUTSequence=[voi(CURVE, LUTExplanation="BONE")],
            WindowCenter=["2048", "900"],
            WindowWidth=["4096", "800"],
            WindowCenterWidthExplanation=["NORMAL", "LUNG"],
        )
        opened(page, server, study)
        for index, name in enumerate(["BONE", "NORMAL", "LUNG", "BONE"]):
            until(page, "name => document.querySelector('#level').textContent.includes(name)", name)
            shows(page, expected(content, index % 3), name)
            page.keyboard.press("5")

    def test_a_pane_that_goes_while_it_is_drawn_anew_is_left_alone(self, server, page):
        tables = {"VOILUTSequence": [voi(CURVE), voi(CURVE)]}
        send(server, TWELVE, patient="closing", **tables)
        study, _ = send(server, TWELVE, patient="closing", **tables)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        opened(page, server, study)
        for _ in range(2):
            page.keyboard.press("p")
            until(page, "document.querySelectorAll('.pane:not(.coming)').length === 2")
            # The next window of both, and the prior away at once: its values are still on their way.
            page.evaluate(BOTH_KEYS)
            until(page, "document.querySelectorAll('.pane').length === 1")
        until(page, "document.querySelector('#level').textContent.includes('window 1 of')")
        assert not wrong

    def test_what_the_window_cut_off_is_there(self, server, page):
        study, content = send(server, TWELVE, WindowCenter="2000", WindowWidth="100")
        opened(page, server, study)
        shows(page, expected(content), "narrow")
        page.keyboard.press("4")
        values = TWELVE[32::64, 32::64].astype(float)
        shows(page, 255 * (values - 60) / (4000 - 60), "every value")

    def test_level_and_width_are_the_files_own(self, server, page):
        for elements in ({}, M1, {"RescaleSlope": "-1", "RescaleIntercept": "4095"}):
            study, _ = send(server, TWELVE, **WINDOW | elements)
            opened(page, server, study)
            wait_for(page, lambda: page.inner_text("#level").startswith("W 2500"))
            assert level(page) == {"W": 2500, "L": 1900, "zoom": 1}


TURNS = {".": lambda p: np.rot90(p, -1), ",": np.rot90, "s": np.fliplr, "Shift+S": np.flipud}


class TestPlace:
    """Turning, mirroring and the heatmap's place, on a picture whose four quarters differ."""

    def test_turning_and_mirroring_are_as_seen_one_upon_the_other(self, server, page):
        study, content = send(server, TWELVE, **WINDOW, PatientOrientation=["L", "F"])
        opened(page, server, study)
        wanted = expected(content)
        for key in (".", "s", ".", "Shift+S", ",", "s", ",", ",", "Shift+S"):
            page.keyboard.press(key)
            wanted = TURNS[key](wanted)
            shows(page, wanted, f"after {key}")

    def test_letters_say_where_the_patients_sides_are(self, server, page):
        study, _ = send(server, TWELVE, **WINDOW, PatientOrientation=["L", "F"])
        opened(page, server, study)

        def letters() -> list[str]:
            return [page.inner_text(f".side-{side}") for side in ("left", "right")]

        assert letters() == ["R", "L"]
        for key, wanted in (("s", ["L", "R"]), (".", ["F", "H"]), ("r", ["R", "L"])):
            page.keyboard.press(key)
            wait_for(page, lambda wanted=wanted: letters() == wanted, f"the letters after {key}")
        study, _ = send(server, TWELVE, **WINDOW)
        opened(page, server, study)
        assert letters() == ["", ""]

    def test_a_mask_lies_on_what_it_is_of_however_the_picture_lies(self, server, page):
        """The map that the page gets is the phantom's own mask, as if a model had seen a part of the picture."""
        made = phantom.make(2, size=320, findings=["Pleural Effusion"])
        mask = made.masks["Pleural Effusion"].astype(np.float32)
        study = server.send(phantom.dicom(made), "effusion.dcm")
        left, top, width, height = box = (0.05, 0.25, 0.9, 0.7)
        columns, rows = np.meshgrid((left + width * (np.arange(90) + 0.5) / 90) * mask.shape[1] - 0.5,
                                    (top + height * (np.arange(70) + 0.5) / 70) * mask.shape[0] - 0.5)  # fmt: skip
        values = cv2.remap(mask, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR)
        heat = {"rows": 70, "columns": 90, "values": values.ravel().tolist(), "box": box}
        page.route("**/heatmap?*", lambda route: route.fulfill(json=heat))
        try:
            opened(page, server, study)
            page.keyboard.press("h")
            page.wait_for_selector("#legend:not([hidden])")
            wanted = mask
            for key in ("", ".", "s", ",", "Shift+S", "i", "+", "+"):
                if key:
                    page.keyboard.press(key)
                    wanted = TURNS.get(key, lambda p: p)(wanted)
                wait_for(
                    page, lambda w=wanted: overlap(w, veil(page), level(page)["zoom"]) > 0.85, f"the mask after {key!r}"
                )
        finally:
            page.unroute("**/heatmap?*")


def laid(page, mask: np.ndarray) -> float:
    """Return how well the heatmap on screen covers a mask that lies as the picture does."""
    return overlap(mask, veil(page), level(page)["zoom"])


def veil(page) -> np.ndarray:
    """Return where the heatmap is at least half as opaque as it gets, bool [H, W]."""
    address = page.evaluate("document.querySelector('.overlay').toDataURL('image/png')")
    content = np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8)
    alpha = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)[..., 3].astype(float)
    return alpha > max(1.0, alpha.max() / 2)


def overlap(mask: np.ndarray, shown: np.ndarray, zoom: float) -> float:
    """Return intersection over union of what is shown and the mask laid whole into the pane, then zoomed."""
    scale = zoom * min(shown.shape[0] / mask.shape[0], shown.shape[1] / mask.shape[1])
    centre = [(shown.shape[i] - scale * mask.shape[i]) / 2 + 0.5 * scale - 0.5 for i in (0, 1)]
    matrix = np.array([[scale, 0, centre[1]], [0, scale, centre[0]]])
    laid = cv2.warpAffine(mask, matrix, (shown.shape[1], shown.shape[0]), flags=cv2.INTER_LINEAR) > 0.5
    return float((laid & shown).sum() / max(1, (laid | shown).sum()))


class TestPanes:
    def test_each_pane_says_whose_it_is_and_a_prior_that_it_is_one(self, server, page):
        same = {"PatientName": "Doe^Jane", "PatientBirthDate": "19600102"}
        old, old_content = send(
            server, TWELVE[::-1].copy(), "SAME", **WINDOW, **same, StudyDate="20250301", StudyTime="1015"
        )
        now, content = send(server, TWELVE, "SAME", **WINDOW, **M1, **same, StudyDate="20260301", StudyTime="1015")
        send(server, SIXTEEN, "OTHER", **same)
        opened(page, server, now)
        assert page.locator("[data-prior]").count() == 1
        assert "PRIOR 2025-03-01" in page.locator("[data-prior]").inner_text()
        assert "not read" in page.locator("[data-prior]").inner_text()
        page.keyboard.press("p")
        until(page, "document.querySelectorAll('.pane:not(.coming)').length === 2")
        bars = page.locator(".bar").all_inner_texts()
        for bar, day in zip(bars, ("2026-03-01", "2025-03-01"), strict=True):
            for word in ("Doe, Jane", "id SAME", "born 1960-01-02", f"acquired {day}", "PA", "side"):
                assert word in bar
        assert "PRIOR 2025-03-01" in bars[1]
        assert "PRIOR" not in bars[0]
        shows(page, expected(content), "now", 0)
        shows(page, expected(old_content), "prior", 1)

        page.keyboard.press("+")
        page.keyboard.press("i")
        wait_for(page, lambda: level(page)["zoom"] == 1.25)
        self.alike(page)
        page.keyboard.press("i")
        box = page.locator(".viewport").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 60, y + 40, steps=4)
        page.mouse.up()
        wait_for(page, lambda: level(page)["W"] > 2500)
        widened = level(page)["W"]
        page.keyboard.press("e")
        wait_for(page, lambda: level(page)["W"] == widened, "the prior's window as wide")
        page.keyboard.press("e")
        page.keyboard.press("v")
        page.keyboard.press("r")
        wait_for(page, lambda: np.abs(seen(page, 0) - expected(content)).max() <= 1)
        assert np.abs(seen(page, 1) - expected(old_content)).max() > 1
        page.keyboard.press("p")
        until(page, "document.querySelectorAll('.pane').length === 1")
        assert old != now

    @staticmethod
    def alike(page) -> None:
        """Wait until both panes show one picture, one upside down as the other's file has it."""
        wait_for(page, lambda: np.abs(np.flipud(255 - seen(page, 0)) - seen(page, 1)).max() <= 2, "panes alike")

    def test_lengths_are_told_in_what_the_file_allows(self, server, page):
        cases = (
            ({"ImagerPixelSpacing": [0.2, 0.2]}, 0.2, "mm at detector"),
            ({"PixelSpacing": [0.15, 0.15], "ImagerPixelSpacing": [0.2, 0.2]}, 0.15, "mm, calibrated"),
            ({}, 1.0, "px, no spacing in the file"),
        )
        for elements, step, unit in cases:
            study, _ = send(server, TWELVE, **WINDOW, **elements)
            opened(page, server, study)
            box = page.locator(".viewport").bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.keyboard.press("/")
            page.mouse.move(x - 80, y)
            page.mouse.down()
            page.mouse.move(x + 80, y, steps=4)
            page.mouse.up()
            page.mouse.move(x + 80, y + 90)
            side = min(box["height"], box["width"])
            wanted = 160 * TWELVE.shape[0] / side * step
            until(page, "document.querySelector('.svg-layer text')?.textContent")
            told = page.text_content(".svg-layer text")
            assert unit in told
            assert float(told.split()[0]) == pytest.approx(wanted, abs=max(1.0, 0.02 * wanted))


def test_the_next_study_takes_the_place_of_this_one_and_back_returns(server, session):
    """The page is turned, not loaded: the document stays, and picture, names and address are the next study's."""
    for number in range(3):
        send(server, TWELVE if number % 2 else SIXTEEN, **WINDOW)
    with watched(session, server.url) as page:
        page.goto(server.url + "/studies/next")
        until(page, "document.body.dataset.drawn")
        page.evaluate("window.same = true")
        visited = []
        for _ in range(2):
            study = page.evaluate("document.body.dataset.study")
            visited.append(study)
            page.keyboard.press("n")
            until(page, "was => document.body.dataset.study !== was && document.body.dataset.drawn", study)
            assert page.evaluate("window.same") is True
            now = page.evaluate("document.body.dataset.study")
            assert page.url.endswith(f"/studies/{now}")
            row = server.api.get(f"/studies/{now}").json()
            assert row["patient_id"] in page.inner_text("header.identity")
            assert row["patient_id"] in page.inner_text(".bar")
            assert page.evaluate("document.body.dataset.drawn") == row["images"][0]["image"]
        page.go_back()
        page.wait_for_selector(f'body[data-study="{visited[-1]}"][data-drawn]')
