"""*Research use only* follows the model package: on every page and output of one that asks for it, on no other."""

from __future__ import annotations

import io

import pydicom
import pypdf
import pytest
import ward
from fastapi.testclient import TestClient
from web.conftest import BASE, Client

from wetread.config import Settings
from wetread.model import package
from wetread.model.package import Package
from wetread.web.app import create_app

WORDS = "research use"


class Free(ward.NameReader):
    """A model whose package allows more than research."""

    research_only = False


@pytest.fixture(scope="module", params=[True, False], ids=["research only", "free"])
def told(request, tmp_path_factory):
    """Give what is told of a study of a model that is for research only, or is not: where → text; and which it is."""
    app = create_app(
        tmp_path_factory.mktemp("clinic"), Settings(), models=[ward.NameReader() if request.param else Free()]
    )
    with TestClient(app, base_url=BASE) as http:
        client = Client(app, http)
        study = client.send(("edema.dcm", ward.dicom(1)))["studies"][0]["study"]
        pages = {path: client("GET", path, "radiologist").text for path in ("/", f"/studies/{study}", "/try")}
        pages["report"] = client("GET", f"/studies/{study}/report?overlay=true", "radiologist").text
        pages["login"] = http.get("/login").text
        pages["fhir"] = client("GET", f"/api/v1/studies/{study}/fhir").text
        pdf = pypdf.PdfReader(io.BytesIO(client("GET", f"/api/v1/studies/{study}/report.pdf").content))
        pages["pdf"] = " ".join(page.extract_text() for page in pdf.pages)
        capture = pydicom.dcmread(io.BytesIO(client("GET", f"/api/v1/studies/{study}/sc").content))
        pages["capture"] = f"{capture.ImageComments} {capture.SeriesDescription}"
        structured = pydicom.dcmread(io.BytesIO(client("GET", f"/api/v1/studies/{study}/sr").content))
        pages["sr"] = " ".join(str(item.TextValue) for _, item in _walk(structured) if item.get("ValueType") == "TEXT")
    return request.param, pages


def _walk(item, depth=0):
    for inner in item.get("ContentSequence", ()):
        yield depth, inner
        yield from _walk(inner, depth + 1)


def test_it_is_on_everything_or_on_nothing(told):
    restricted, pages = told
    for where, text in pages.items():
        assert (WORDS in text.lower()) == restricted, where
        assert "AI triage" in text or "AI TRIAGE" in text, where


@pytest.mark.parametrize("name", ["pneumonia", "phantom"])
def test_what_ships_is_for_research_only(name):
    assert Package.open(name).meta.research_only is True


def test_a_package_is_for_research_only_unless_it_says_otherwise():
    assert package.Meta.model_fields["research_only"].default is True
