"""`wetread predict`: many files in, one entry per file out, in order."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from wetread.errors import WetreadError
from wetread.infer import heatmap
from wetread.infer.predict import Analysis, Predictor
from wetread.infer.study import analyse
from wetread.radiograph.read import Radiograph


def expand(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as given and, for a folder, every file below it in sorted order, hidden ones left out."""
    for path in paths:
        if path.is_dir():
            found = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
            yield from sorted(p for p in found if p.is_file())
        else:
            yield path


def render(results: Iterable[tuple[Path, Analysis]], *, as_json: bool) -> Iterator[str]:
    """Yield the output piece by piece: a JSON list, or lines for a person."""
    if not as_json:
        yield from (text(file, analysis) for file, analysis in results)
        return
    before = "[\n"
    for file, analysis in results:
        yield before + json.dumps({"file": str(file), **analysis.to_dict()}, ensure_ascii=False, allow_nan=False)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def text(file: Path, analysis: Analysis) -> str:
    """Return the lines that a person reads: suitability, view, and a line per finding."""
    view = f"view {analysis.view or 'unknown'}"
    if not analysis.suitable:
        return f"{file}: not analysed by {analysis.model}: {analysis.code}: {analysis.reason}; {view}\n"
    lines = [f"{file}: suits {analysis.model}, {view}, abnormal {analysis.abnormal:.3f}"]
    lines += [f"  caution: {caution}" for caution in analysis.cautions]
    width = max(len(result.finding) for result in analysis.findings)
    for result in analysis.findings:
        sign, flag = (">=", "  flagged") if result.flagged else ("< ", "")
        lines.append(
            f"  {result.finding:{width}}  {result.call:8}  {result.probability:.3f} {sign} {result.threshold:.3f} "
            f"({analysis.point}){flag}"
        )
    return "\n".join(lines) + "\n"


def whole(predictor: Predictor, paths: Iterable[Path], *, heatmaps: Path | None, as_json: bool) -> str:
    """Analyse files as the images of one study; return its result and theirs, as JSON or lines for a person.

    Raises
    ------
    WetreadError
        When a file cannot be read, or the folder of the heatmaps cannot be made.
    """
    files = list(expand(paths))
    radiographs = [predictor.read(file) for file in files]
    study, images = analyse(predictor, radiographs)
    if heatmaps:
        drawer = Heatmaps(heatmaps, predictor)
        for file, analysis, radiograph in zip(files, images, radiographs, strict=True):
            drawer.write(file, analysis, radiograph)
    if not as_json:
        lines = [text(file, analysis) for file, analysis in zip(files, images, strict=True)]
        return "".join(lines) + text(Path("study"), study)
    entries = [{"file": str(file), **one.to_dict()} for file, one in zip(files, images, strict=True)]
    about = {"aggregate": predictor.package.meta.aggregate, "kind": predictor.package.meta.kind}
    found = {"study": about | study.to_dict(), "images": entries}
    return json.dumps(found, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


class Heatmaps:
    """Writes overlays into a folder, one PNG per file and finding, named ``<file>.<finding>.png``.

    Flagged findings are drawn; where none is flagged, the most probable one, so that every analysed
    image can be looked into. A normal finding has nothing to show.
    """

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WetreadError(f"--heatmap {folder}: cannot be made: {error.strerror}") from None
        self.folder, self.predictor = folder, predictor
        self._used: dict[str, int] = {}

    def write(self, file: Path, analysis: Analysis, radiograph: Radiograph | None = None) -> list[Path]:
        """Draw one analysis over its radiograph (read from `file` by default); returns what was written."""
        if analysis.seen is None or analysis.maps is None:
            return []
        task = self.predictor.package.task
        shown = [result for result in analysis.findings if result.finding != task.normal]
        chosen = [r for r in shown if r.flagged] or [max(shown, key=lambda r: r.probability)]
        pixels = (radiograph or self.predictor.read(file)).pixels
        self._used[file.name] = count = self._used.get(file.name, 0) + 1
        stem = file.name if count == 1 else f"{file.name}-{count}"
        written = []
        for result in chosen:
            values = analysis.maps[task.findings.index(result.finding)]
            picture = heatmap.overlay(pixels, heatmap.to_image(values, analysis.seen.box, pixels.shape))
            path = self.folder / f"{stem}.{result.finding.lower().replace(' ', '_')}.png"
            path.write_bytes(heatmap.png(picture))
            written.append(path)
        return written


def run(
    predictor: Predictor, paths: Iterable[Path], *, heatmaps: Path | None = None, progress: bool = False
) -> Iterator[tuple[Path, Analysis]]:
    """Analyse files and folders in order, drawing heatmaps and a progress bar on the way.

    Raises
    ------
    WetreadError
        When the folder of the heatmaps cannot be made.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    drawer = Heatmaps(heatmaps, predictor) if heatmaps else None
    begun: deque[Path] = deque()  # analyses come in the order in which files were begun
    columns = (TextColumn("analysed"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task("", total=None)

        def begin() -> Iterator[Path]:
            for file in expand(paths):
                begun.append(file)
                yield file

        for analysis in predictor.analyse_many(begin()):
            file = begun.popleft()
            if drawer:
                drawer.write(file, analysis)
            bar.advance(task)
            yield file, analysis
