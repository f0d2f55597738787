"""The report of a study: its page, and its PDF as an independent reader takes it apart."""

from __future__ import annotations

import io

import cv2
import films
import numpy as np
import pypdf
import pytest
import ward
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from page import Page

from wetread.errors import ConfigError
from wetread.web import report_pdf
from wetread.web.report import BANNER, UNSIGNED, Picture, Report, Said, Signed


def pdf(client, study, **params):
    response = client("GET", f"/api/v1/studies/{study}/report.pdf", "radiologist", params=params)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/pdf"
    return pypdf.PdfReader(io.BytesIO(response.content))


def words(reader):
    return " ".join(" ".join(page.extract_text() for page in reader.pages).split())


def study_of(client, name, content):
    return client.send((name, content))["studies"][0]["study"]


@pytest.fixture(scope="module")
def edema(client):
    return study_of(
        client,
        "edema.dcm",
        ward.dicom(801, SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Žofie", PatientBirthDate="19610203"),
    )


def test_the_pdf_says_who_what_and_what_it_is_not(client, edema):
    reader = pdf(client, edema)
    text = words(reader)
    assert [float(side) for side in reader.pages[0].mediabox[2:]] == pytest.approx([595.28, 841.89], abs=0.01)
    assert "Müller" in text
    assert "Žofie" in text
    assert "1961-02-03" in text
    assert all(BANNER in " ".join(page.extract_text().split()) for page in reader.pages)
    assert UNSIGNED in text
    assert "Edema" in text
    assert "likely flagged" in text
    assert "age unknown" in text
    assert "[U+" not in text


def test_letter_is_another_size(client, edema):
    reader = pdf(client, edema, paper="Letter")
    assert [float(side) for side in reader.pages[0].mediabox[2:]] == [612, 792]
    bad = client("GET", f"/api/v1/studies/{edema}/report.pdf", params={"paper": "A0"})
    assert bad.status_code == 422


def test_the_original_is_there_and_the_overlay_only_beside_it(client, edema):
    [original] = [image for page in pdf(client, edema).pages for image in page.images]
    grey = np.asarray(original.image.convert("L"))
    preview = client("GET", f"/api/v1/studies/{edema}").json()["images"][0]["image"]
    png = client("GET", f"/api/v1/images/{preview}/preview.png", params={"side": 1024}).content
    assert np.array_equal(grey, cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE))
    reader = pdf(client, edema, overlay="true")
    beside = {image.image.mode: np.asarray(image.image) for page in reader.pages for image in page.images}
    assert set(beside) == {"L", "RGB"}
    assert np.array_equal(beside["L"], grey)
    assert (beside["RGB"][..., 0] != beside["RGB"][..., 1]).any()
    assert "AI overlay, not the original: Edema likely" in words(reader)


def test_no_overlay_where_nothing_was_flagged(client):
    study = study_of(client, "plain.dcm", ward.dicom(802))
    assert len([image for page in pdf(client, study, overlay="true").pages for image in page.images]) == 1
    assert "there is no overlay" in client("GET", f"/studies/{study}/report?overlay=true", "radiologist").text


def test_what_a_reader_signed_is_the_report(client):
    study = study_of(client, "edema-2.dcm", ward.dicom(803))
    review = {
        "state": "draft",
        "findings": [{"finding": "Edema", "answer": "disagree"}, {"finding": "Hernia", "answer": "added"}],
        "note": "Seen with <b>Dr Ω</b>.",
    }
    url = f"/api/v1/studies/{study}/reviews"
    assert client("POST", url, "radiologist", json=review).status_code == 201
    assert "Hernia" not in words(pdf(client, study))  # a draft is its reader's own
    assert client("POST", url, "radiologist", json=review | {"state": "signed"}).status_code == 201
    text = words(pdf(client, study))
    assert UNSIGNED not in text
    assert "Signed by radiologist, " in text
    assert "UTC" in text
    assert "Edema: absent (model: likely)." in text
    assert "Hernia: present, named by no model." in text
    assert "Seen with <b>Dr Ω</b>." in text
    page = client("GET", f"/studies/{study}/report", "radiologist").text
    assert "Edema: absent (model: likely)." in Page(page).text[0] + " ".join(Page(page).text)
    assert "<b>Dr" not in page


def test_the_page_is_whole_and_fetches_only_from_here(client, edema):
    text = client("GET", f"/studies/{edema}/report?overlay=true", "radiologist").text
    page = Page(text)
    said = " ".join(" ".join(page.text).split())
    assert BANNER in said
    assert UNSIGNED in said
    assert "Müller" in said
    assert all(request.startswith("/") for request in page.requests)
    pictures = [request for request in page.requests if "/images/" in request]
    assert ["preview.png" in request for request in pictures] == [True, False]
    for picture in pictures:
        assert client("GET", picture, "radiologist").headers["content-type"] == "image/png"


def test_a_study_that_is_not_there(client):
    missing = "0" * 8
    assert client("GET", f"/api/v1/studies/{missing}/report.pdf").status_code == 404
    assert client("GET", f"/studies/{missing}/report").status_code == 404


def report(**changes):
    values = {
        "study": "0123456789",
        "patient": "Roe, Jane",
        "identity": (("Name", "Roe, Jane"), ("Patient ID", "1")),
        "acquisition": (("Study", "Chest"),),
        "pictures": (Picture("a", "1 PA", "a.dcm", ()),),
        "triage": ("Priority: routine",),
        "models": (Said("m", "1", "0" * 64, "screen", (("Edema", "unlikely", False, 0),)),),
        "cautions": (),
        "signed": (),
        "banner": "",
        "demo": False,
        "made": "Made",
    }
    return Report(**values | changes)


def drawn(found, **more):
    pictures = {"a": [films.scene(64, 48, bits=8, seed=1)]}
    return pypdf.PdfReader(io.BytesIO(report_pdf.draw(found, pictures, **more)))


def test_a_package_without_the_restriction_bears_no_banner():
    assert "Research use" not in words(drawn(report()))
    assert "a phantom, not a patient" in words(drawn(report(demo=True)))


@pytest.mark.parametrize("name", ["Ελένη Παπαδοπούλου", "Наталья Щукина", "Øystein Þórðarson"])
def test_greek_cyrillic_and_nordic_names_are_whole_and_their_font_inside(name):
    reader = drawn(report(patient=name, identity=(("Name", name), ("Patient ID", "1"))))
    assert words(reader).count(name) == 2
    fonts = [font.get_object() for font in reader.pages[0]["/Resources"]["/Font"].values()]
    used = [font for font in fonts if "DejaVu" in font["/BaseFont"]]
    assert used
    for font in used:
        assert "/FontFile2" in font["/FontDescriptor"]


@pytest.mark.parametrize("name", ["山田 太郎", "דוד", "محمد"])
def test_letters_without_a_font_are_told_and_never_dropped(name):
    text = words(drawn(report(patient=name, identity=(("Name", name), ("Patient ID", "1")))))
    for letter in name.replace(" ", ""):
        assert f"[U+{ord(letter):04X}]" in text
    assert report_pdf.CODED in text


def test_a_font_of_the_site_shows_its_letters(tmp_path):
    pen = TTGlyphPen(None)
    for number, point in enumerate(((0, 0), (0, 700), (700, 700), (700, 0))):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    glyphs = {name: pen.glyph() for name in (".notdef", "a", "b")}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord("山"): "a", ord("田"): "b"})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (750, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Site", "styleName": "Regular", "psName": "Site-Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file := tmp_path / "site.ttf")
    text = words(drawn(report(patient="山田 Taro"), font=str(file)))
    assert "山田 Taro" in text
    assert report_pdf.CODED not in text
    with pytest.raises(ConfigError, match="report_font"):
        drawn(report(), font=str(tmp_path / "none.ttf"))


def test_a_long_note_and_many_images_take_more_pages():
    many = tuple(Picture(f"{number}", f"{number} PA", "x.dcm", ()) for number in range(6))
    signed = (Signed("Signed by Dr N", ("Normal.",), "\n".join(f"line {number} & more" for number in range(120))),)
    pixels = films.scene(64, 48, bits=8, seed=1)
    made = report_pdf.draw(
        report(pictures=many, signed=signed, banner=BANNER), {picture.image: [pixels] for picture in many}
    )
    reader = pypdf.PdfReader(io.BytesIO(made))
    assert len(reader.pages) >= 3
    text = words(reader)
    assert all(f"line {number} & more" in text for number in (0, 119))
    assert sum(len(page.images) for page in reader.pages) == 6
    assert all(BANNER in " ".join(page.extract_text().split()) for page in reader.pages)
