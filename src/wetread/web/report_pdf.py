"""A report as PDF, with its fonts inside.

DejaVu covers Latin, Greek and Cyrillic letters; the setting `report_font` names a font for others. A letter that
neither has, or that runs from right to left, is written as its code, and the page says so: a wrong or missing letter in
a name would be worse. The printed page has no such limits.
"""

from __future__ import annotations

import functools
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4, LETTER
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFError, TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, Image, KeepTogether, PageTemplate, Paragraph, Table

from wetread.errors import ConfigError
from wetread.infer import heatmap
from wetread.web.language import N_, word
from wetread.web.language import gettext as _

if TYPE_CHECKING:
    from wetread.web.report import Picture, Report

PAPERS = {"A4": A4, "Letter": LETTER}
NOT_ORIGINAL = N_("AI overlay, not the original")
LEGEND = N_("Where the picture spoke for the finding, within this map only.")
CODED = N_(
    "Letters that this server has no font for, or that run from right to left, stand here as their Unicode code in "
    "brackets; print the report's page instead, or see the setting report_font."
)
_MARGIN, _HEAD, _FOOT = 16 * mm, 16 * mm, 12 * mm
_SPECIAL = frozenset({"R", "AL", "AN", "RLE", "RLO", "LRE", "LRO", "PDF", "LRI", "RLI", "FSI", "PDI"})
_drawing = threading.Lock()  # ReportLab's fonts keep state


def draw(
    report: Report, pictures: Mapping[str, Sequence[NDArray[np.uint8]]], *, paper: str = "A4", font: str = ""
) -> bytes:
    """Return a report as PDF.

    Parameters
    ----------
    pictures : mapping
        Image → its original, uint8 [H, W], and then each overlay of `Picture.overlays`, uint8 [H, W, 3].
    paper : {"A4", "Letter"}
    font : str
        File of a TrueType font for what DejaVu lacks.

    Raises
    ------
    ConfigError
        When `font` is none.
    """
    with _drawing:
        return _Writer(_letters(font)).draw(report, pictures, PAPERS[paper])


@functools.cache
def _letters(font: str) -> tuple[tuple[str, frozenset[int]], ...]:
    """Register the fonts; return their names and the code points that each has."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    found = []
    for name, file in (("Plain", folder / "DejaVuSans.ttf"), ("Bold", folder / "DejaVuSans-Bold.ttf"), ("Other", font)):
        if not file:
            continue
        try:
            made = TTFont(name, str(file))
        except (TTFError, OSError) as error:
            raise ConfigError(f"report_font {file}: no TrueType font ({error}); name a .ttf file") from None
        pdfmetrics.registerFont(made)
        found.append((name, frozenset(made.face.charToGlyph)))
    return tuple(found)


class _Writer:
    """Writes one report; `coded` once a letter could not be shown."""

    def __init__(self, letters: tuple[tuple[str, frozenset[int]], ...]) -> None:
        self.letters, self.coded = dict(letters), False
        plain = ParagraphStyle("plain", fontName="Plain", fontSize=9, leading=12, splitLongWords=1)
        self.styles = {
            "plain": plain,
            "title": ParagraphStyle("title", plain, fontName="Bold", fontSize=15, leading=20),
            "head": ParagraphStyle("head", plain, fontName="Bold", fontSize=10, leading=14, spaceBefore=8),
            "quiet": ParagraphStyle("quiet", plain, fontSize=8, leading=10, textColor=colors.HexColor("#444444")),
            "alarm": ParagraphStyle(
                "alarm", plain, fontName="Bold", borderWidth=0.8, borderColor=colors.black, borderPadding=4,
                spaceBefore=6, spaceAfter=6,
            ),
        }  # fmt: skip

    def draw(
        self, report: Report, pictures: Mapping[str, Sequence[NDArray[np.uint8]]], size: tuple[float, float]
    ) -> bytes:
        """Write the report."""
        width, height = size[0] - 2 * _MARGIN, size[1] - 2 * _MARGIN - _HEAD - _FOOT
        story = self._story(report, pictures, width, height)
        study = _("study %(id)s", id=report.study[:8])
        who = self._spans(f"{report.patient} · {report.identity[1][1]} · {study}")
        made = self._spans(report.made)

        demo = _("Demo: a phantom, not a patient.") if report.demo else ""

        def frame(canvas: Canvas, document: Any) -> None:
            canvas.saveState()
            top = size[1] - _MARGIN
            words = " ".join(filter(None, (report.banner, demo)))
            if words:
                canvas.setFillColorRGB(0, 0, 0)
                canvas.rect(_MARGIN, top - 6 * mm, width, 6 * mm, fill=1, stroke=0)
                canvas.setFillColorRGB(1, 1, 1)
                wide = pdfmetrics.stringWidth(words, "Bold", 8.5)
                canvas.setFont("Bold", 8.5 * min(1, (width - 4 * mm) / wide))
                canvas.drawString(_MARGIN + 2 * mm, top - 4.2 * mm, words)
                canvas.setFillColorRGB(0, 0, 0)
            for words, at in ((who, top - 11 * mm), (made, _MARGIN)):
                line = Paragraph(words, self.styles["quiet"])
                line.wrap(width - 20 * mm, 20 * mm)
                line.drawOn(canvas, _MARGIN, at)
            canvas.setFont("Plain", 8)
            canvas.drawRightString(size[0] - _MARGIN, _MARGIN + 2, _("page %(number)s", number=canvas.getPageNumber()))
            canvas.restoreState()

        document = BaseDocTemplate(
            buffer := BytesIO(), pagesize=size, title=report.title, author="Wetread", invariant=0,
            leftMargin=_MARGIN, rightMargin=_MARGIN, topMargin=_MARGIN, bottomMargin=_MARGIN,
        )  # fmt: skip
        inner = Frame(_MARGIN, _MARGIN + _FOOT, width, height + _HEAD - 14 * mm, 0, 0, 0, 0)
        document.addPageTemplates(PageTemplate("page", [inner], onPage=frame))
        document.build(story)
        return buffer.getvalue()

    def _story(
        self, report: Report, pictures: Mapping[str, Sequence[NDArray[np.uint8]]], width: float, height: float
    ) -> list[Flowable]:
        story: list[Flowable] = [self._line(report.title, "title")]
        if not report.signed:
            story.append(self._line(report.unsigned, "alarm"))
        columns = [self._facts(facts, width / 2) for facts in (report.identity, report.acquisition)]
        story.append(Table([columns], colWidths=[width / 2] * 2, style=[_TOP, *_TIGHT]))
        for signed in report.signed:
            lines = [self._line(signed.title, "head"), *(self._line(line) for line in signed.lines)]
            lines += [self._line(line) for line in signed.note.splitlines() if line.strip()]
            story += lines
        story.append(self._line(_("Images"), "head"))
        if not report.pictures:
            story.append(self._line(_("This study has no image that can be shown.")))
        for picture in report.pictures:
            story.append(self._images(picture, pictures[picture.image], width, height * 0.55))
        story.append(self._line(_("AI triage result"), "head"))
        story += [self._line(line) for line in report.triage]
        if not report.models:
            story.append(self._line(_("No model spoke about this study.")))
        for model in report.models:
            story.append(self._line(model.words, "quiet"))
            rows = [
                [self._line("\u00a0" * 4 * level + ("└ " if level else "") + word(finding, "finding")),
                 self._line(word(call, "call")), self._line(_("flagged") if flagged else "")]
                for finding, call, flagged, level in model.calls
            ]  # fmt: skip
            story.append(Table(rows, colWidths=[70 * mm, 25 * mm, 25 * mm], hAlign="LEFT", style=_ROWS))
        if report.cautions:
            story.append(self._line(_("Cautions"), "head"))
            story += [self._line(f"! {caution}") for caution in report.cautions]
        if self.coded:
            story.append(self._line(word(CODED), "quiet"))
        return story

    def _facts(self, facts: Sequence[tuple[str, str]], width: float) -> Table:
        rows = [[self._line(label, "quiet"), self._line(value)] for label, value in facts]
        return Table(rows, colWidths=[22 * mm, width - 24 * mm], style=_ROWS, hAlign="LEFT")

    def _images(
        self, picture: Picture, drawn: Sequence[NDArray[np.uint8]], width: float, height: float
    ) -> KeepTogether:
        """Return the original and, beside it, its overlays."""
        original = _("Image %(label)s: the original, reduced, in its sender's window.", label=picture.label)
        legend = [
            f"{word(NOT_ORIGINAL)}: {word(finding, 'finding')} {word(call, 'call')} ({model}). {word(LEGEND)}"
            for finding, call, model in picture.overlays
        ]
        captions = [f"{original} {picture.name}", *legend]
        across = 2 if len(drawn) > 1 else 1
        wide = width / across - 2 * mm
        cells: list[list[Flowable]] = []
        for pixels, caption in zip(drawn, captions, strict=True):
            rows_, columns_ = pixels.shape[:2]
            scale = min(wide / columns_, height / rows_)
            file = BytesIO(heatmap.png(pixels))
            shown = Image(file, columns_ * scale, rows_ * scale, hAlign="LEFT")
            cells.append([shown, self._line(caption, "quiet")])
        # Each overlay has the original at its side.
        rows = [cells] if len(cells) <= 2 else [[cells[0], cells[1]], *([[], cell] for cell in cells[2:])]
        return KeepTogether(
            [
                Table(
                    rows,
                    colWidths=[width / across] * across,
                    hAlign="LEFT",
                    style=[_TOP],
                )
            ]
        )

    def _line(self, words: str, style: str = "plain") -> Paragraph:
        return Paragraph(self._spans(words, self.styles[style].fontName), self.styles[style])

    def _spans(self, words: str, font: str = "Plain") -> str:
        """Return text as ReportLab's markup, each run in a font that has it; what none has as its code."""

        def choose(letter: str) -> str:
            if unicodedata.bidirectional(letter) in _SPECIAL:
                return ""
            return next((name for name in (font, "Plain", "Other") if ord(letter) in self.letters.get(name, ())), "")

        made = []
        for name, letters in groupby(unicodedata.normalize("NFC", " ".join(words.split("\n"))), choose):
            run = "".join(letters)
            if not name:
                self.coded = True
                made.append("".join(f"[U+{ord(letter):04X}]" for letter in run))
            else:
                made.append(escape(run) if name == font else f'<font name="{name}">{escape(run)}</font>')
        return "".join(made)


_TOP = ("VALIGN", (0, 0), (-1, -1), "TOP")
_TIGHT = [
    ("LEFTPADDING", (0, 0), (-1, -1), 0),
    ("RIGHTPADDING", (0, 0), (-1, -1), 4),
    ("TOPPADDING", (0, 0), (-1, -1), 0),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 1),
]
_ROWS = [*_TIGHT, _TOP]
