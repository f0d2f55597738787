"""From a radiograph to an analysis: suitability, pixels, graph, familiarity, thresholds, calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from wetread.config import Settings
from wetread.errors import Caution, Code, ModelError, ReadError
from wetread.infer.batcher import Batcher
from wetread.infer.remote import Remote, address, local_name
from wetread.infer.runtime import Engine, open_engine
from wetread.model import golden
from wetread.model.golden import Outputs
from wetread.model.package import Package
from wetread.radiograph.exposure import Exposure
from wetread.radiograph.pixels import Seen
from wetread.radiograph.read import Limits, Radiograph
from wetread.radiograph.suitability import Suitability, suit

Call = Literal["likely", "unsure", "unlikely"]
Point = Literal["screen", "balanced"]
T = TypeVar("T")
R = TypeVar("R")

# A package's threshold is half the familiarity that 99.5 % of its validation images reach. A picture about which the
# chest check is in doubt must reach the whole.
_KNOWN = 2.0


@dataclass(frozen=True)
class FindingResult:
    """One finding of one image.

    Attributes
    ----------
    finding : str
    probability : float
        Calibrated, 0 to 1.
    threshold : float
        The operating point in force.
    flagged : bool
        Whether the probability reaches it; this is what ranks a study.
    call : {"likely", "unsure", "unlikely"}
        For the reader, from the package's two cut-offs.
    """

    finding: str
    probability: float
    threshold: float
    flagged: bool
    call: Call


@dataclass(frozen=True, eq=False)
class Analysis:
    """What a model says about one image, or why it says nothing.

    Attributes
    ----------
    model, model_id : str
        Short name, and SHA-256 of the package.
    point : {"screen", "balanced"}
        The operating point of the thresholds.
    suitable : bool
        False when the image was refused; then `code` and `reason` say why and there are no findings.
    cautions : tuple of str
        What a reader should know although the image was analysed.
    caution_codes : tuple of Caution
        Their codes, each once.
    view : {"PA", "AP", "LATERAL"} or None
        None when the file does not say.
    abnormal : float or None
        Calibrated chance of any abnormality.
    seen : Seen or None
        What the model saw, and of which part of the image.
    maps : float32 array, shape [F, h, w], or None
        One map per finding, in order; `heatmap.to_image` brings them to image coordinates.
    features : float32 array, shape [D], or None
        Pooled features, for drift.
    familiarity : float or None
    exposure : Exposure or None
        Of the image before the transform, for drift. None for studies scored as arrays.
    """

    model: str
    model_id: str
    point: Point
    suitable: bool
    code: Code | None = None
    reason: str = ""
    cautions: tuple[str, ...] = ()
    caution_codes: tuple[Caution, ...] = ()
    view: str | None = None
    abnormal: float | None = None
    findings: tuple[FindingResult, ...] = ()
    seen: Seen | None = field(default=None, repr=False)
    maps: NDArray[np.float32] | None = field(default=None, repr=False)
    features: NDArray[np.float32] | None = field(default=None, repr=False)
    familiarity: float | None = None
    exposure: Exposure | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready part: everything but the arrays."""
        return {
            "model": self.model,
            "model_id": self.model_id,
            "point": self.point,
            "suitable": self.suitable,
            "code": self.code.value if self.code else None,
            "reason": self.reason,
            "cautions": list(self.cautions),
            "caution_codes": [code.value for code in self.caution_codes],
            "view": self.view,
            "abnormal": self.abnormal,
            "familiarity": self.familiarity,
            "findings": [asdict(result) for result in self.findings],
        }


class Predictor:
    """A package ready to analyse radiographs; close it, or use it as a context.

    Any number of threads may call `analyse` at once: their images run in common batches.

    Attributes
    ----------
    package : Package
    remote : Remote or None
        The server that is asked first, for a model of ``v2+http(s)://``.
    """

    def __init__(self, package: Package, settings: Settings | None = None, *, url: str = "") -> None:
        self.package = package
        self.settings = settings or Settings.model_validate({})
        self._limits = Limits.of(self.settings)
        engine: Engine = open_engine(package, self.settings.runtime, self.settings.threads)
        self.remote: Remote | None = None
        if url:
            engine = self.remote = Remote(
                package,
                url,
                engine,
                token=self.settings.remote_token,
                timeout_s=self.settings.remote_timeout_s,
                retries=self.settings.remote_retries,
                failures=self.settings.remote_failures,
                pause_s=self.settings.remote_pause_s,
            )
        self._engine = engine

        def run(pixels: Sequence[NDArray[np.uint8]]) -> list[Outputs]:
            together = engine.run(np.stack(pixels))
            return [Outputs(*(values[i] for values in together)) for i in range(len(pixels))]

        self._batcher: Batcher[NDArray[np.uint8], Outputs] = Batcher(
            run,
            size=self.settings.batch_size,
            delay_s=self.settings.batch_delay_ms / 1000,
            limit=self.settings.queue_limit,
        )

    @classmethod
    def open(cls, name: str | Path, settings: Settings | None = None, data: Path | None = None) -> Predictor:
        """Open a package by path or name (see `Package.open`) and prove it on its golden radiographs.

        ``v2+https://host/NAME`` opens the package NAME and asks that server first; see `infer.remote`.

        Raises
        ------
        ModelError
            When there is none, or it is not sound, or does not run here as it was packaged.
        ConfigError
            When the address is none.
        """
        package = Package.open(local_name(str(name)), data)
        return cls(package, settings, url=address(str(name)))

    @property
    def runtime(self) -> str:
        """The runtime in use."""
        return self._engine.runtime

    @property
    def engine(self) -> Engine:
        """What runs the graph, without the queue before it."""
        return self._engine

    def prove(self) -> None:
        """Run the golden radiographs again; raises `ModelError` when their outputs are not kept."""
        golden.check(self.package, self._engine.run)

    def close(self) -> None:
        """Finish what is queued and stop."""
        self._batcher.close()
        if self.remote is not None:
            self.remote.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, source: Path | bytes, name: str = "") -> Radiograph:
        """Read a file as this model wants it: large ones at reduced scale.

        Raises
        ------
        ReadError
            With its code.
        """
        return self.package.transform.read(source, name=name, limits=self._limits)

    def analyse(self, radiograph: Radiograph, point: Point | None = None, *, wait_s: float = 60.0) -> Analysis:
        """Analyse one radiograph.

        Parameters
        ----------
        radiograph : Radiograph
        point : {"screen", "balanced"}, optional
            Operating point; by default the settings'.
        wait_s : float
            Longest wait for room in the queue, in s.

        Raises
        ------
        BusyError
            When the queue stays full that long.
        ModelError
            When the graph fails on this image.
        """
        return self._start(radiograph, point or self.settings.point, wait_s)()

    def analyse_many(
        self, sources: Iterable[Radiograph | Path | bytes], point: Point | None = None, *, workers: int = 2
    ) -> Iterator[Analysis]:
        """Analyse many radiographs or files, in order, decoding in threads while the graph runs.

        A file that cannot be read is an analysis with its code, as is one on which the graph fails; memory
        stays flat however many there are.

        Parameters
        ----------
        sources : iterable of Radiograph, Path or bytes
        point : {"screen", "balanced"}, optional
            Operating point; by default the settings'.
        workers : int
            Decoding threads.
        """
        chosen = point or self.settings.point

        def start(source: Radiograph | Path | bytes) -> Callable[[], Analysis]:
            radiograph = source if isinstance(source, Radiograph) else self.read(source)
            return self._start(radiograph, chosen, wait_s=600.0)

        ahead = workers + 2 * self.settings.batch_size
        for prepared in _ahead(start, sources, workers, ahead):
            try:
                yield prepared.result()()
            except ReadError as error:
                yield self.refused(error.code, str(error), chosen)
            except ModelError as error:
                yield self.refused(Code.MODEL_FAILED, str(error), chosen)

    def analyse_seen(self, arrays: Iterable[NDArray[np.uint8]], point: Point | None = None) -> Iterator[Analysis]:
        """Analyse images that are already as the model sees them (a packed dataset's), in order.

        Whether they suit the model was settled when they were packed; only familiarity is still asked.

        Parameters
        ----------
        arrays : iterable of uint8 array, shape [H, W], or of studies [2, H, W]
        point : {"screen", "balanced"}, optional
            Operating point; by default the settings'.
        """
        chosen = point or self.settings.point
        begun: deque[Future[Outputs]] = deque()

        def take() -> Analysis:
            try:
                return self._finish(begun.popleft().result(), None, Suitability(True), None, chosen)
            except ModelError as error:
                return self.refused(Code.MODEL_FAILED, str(error), chosen)

        for array in arrays:
            begun.append(self._batcher.submit(array if array.ndim == 3 else array[None], 600.0))
            if len(begun) >= 2 * self.settings.batch_size:
                yield take()
        while begun:
            yield take()

    def infer(self, pixels: NDArray[np.uint8], *, wait_s: float = 0.0) -> Outputs:
        """Run pixels that are already as the model sees them, in common batches with all others.

        Parameters
        ----------
        pixels : uint8 array, shape [B, 1, H, W], or of a model of studies [B, 2, H, W]
        wait_s : float
            Longest wait for room in the queue, in s.

        Raises
        ------
        BusyError
            When the queue stays full that long.
        ModelError
            For a wrong shape, or when the graph fails.
        """
        side, views = self.package.transform.size, 2 if self.package.meta.kind == "study" else 1
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (views, side, side) or not len(pixels):
            wanted = f"uint8 [B, {views}, {side}, {side}]"
            raise ModelError(f"pixels are {pixels.dtype} {list(pixels.shape)}, {self.package.name} takes {wanted}")
        begun: list[Future[Outputs]] = []
        try:
            begun.extend(self._batcher.submit(image, wait_s) for image in pixels)
            done = [future.result() for future in begun]
        finally:
            for future in begun:
                future.cancel()
        return Outputs(*(np.stack(values) for values in zip(*done, strict=True)))

    def refused(self, code: Code, reason: str, point: Point | None = None, view: str | None = None) -> Analysis:
        """Return the analysis of an image that this model does not answer for."""
        return Analysis(
            self.package.name, self.package.id, point or self.settings.point, False, code, reason, view=view
        )

    def _start(self, radiograph: Radiograph, point: Point, wait_s: float) -> Callable[[], Analysis]:
        """Queue a radiograph; the callable that comes back waits for its analysis."""
        meta = self.package.meta
        fit = suit(radiograph, population=meta.population, views=meta.views)
        exposure = Exposure.of(radiograph)  # not the pixels, which need not wait
        if not (fit.suitable or (fit.doubtful and meta.familiarity_threshold > 0)):
            refused = self.refused(fit.code or Code.NOT_CHEST, fit.reason, point, radiograph.view)
            return lambda: replace(refused, exposure=exposure)
        seen, view = self.package.transform(radiograph), int(radiograph.view == "LATERAL")
        future, taken_as = self._batcher.submit(self._input({view: seen}), wait_s), radiograph.view
        return lambda: replace(
            self._finish(self._of(future.result(), view), taken_as, fit, seen, point), exposure=exposure
        )

    def _input(self, views: Mapping[int, Seen]) -> NDArray[np.uint8]:
        """Return what the graph takes: the image, or frontal (0) and lateral (1), black where there is none."""
        if self.package.meta.kind == "image":
            return next(iter(views.values())).array[None]
        size = self.package.transform.size
        pixels = np.zeros((2, size, size), np.uint8)
        for view, seen in views.items():
            pixels[view] = seen.array
        return pixels

    def _of(self, outputs: Outputs, view: int) -> Outputs:
        """Return the outputs with the maps of one view."""
        return outputs if self.package.meta.kind == "image" else outputs._replace(maps=outputs.maps[view])

    def analyse_pair(
        self, frontal: Radiograph, lateral: Radiograph, point: Point | None = None
    ) -> tuple[Analysis, ...]:
        """Analyse the two views of a study together, with a model of studies.

        Returns
        -------
        tuple of Analysis
            One for each view, with the study's findings and the view's own maps. Where a view does not suit the model,
            its analysis says why and the other is analysed alone.

        Raises
        ------
        BusyError
            When the queue stays full for a minute.
        ModelError
            When the graph fails on this study.
        """
        chosen, meta = point or self.settings.point, self.package.meta
        pair = (frontal, lateral)
        fits = [suit(one, population=meta.population, views=meta.views) for one in pair]
        if not all(fit.suitable for fit in fits):
            return tuple(self.analyse(one, chosen) for one in pair)
        seen = [self.package.transform(one) for one in pair]
        outputs = self._batcher.submit(self._input(dict(enumerate(seen))), 60.0).result()
        return tuple(
            replace(
                self._finish(self._of(outputs, view), one.view, fits[view], seen[view], chosen),
                exposure=Exposure.of(one),
            )
            for view, one in enumerate(pair)
        )

    def calls(self, probability: Sequence[float], point: Point) -> tuple[FindingResult, ...]:
        """Return what the package's thresholds and cut-offs make of the probabilities [F] of its findings."""
        meta = self.package.meta
        thresholds, findings = meta.points[point], []
        for finding, value in zip(self.package.task.findings, probability, strict=True):
            low, high = meta.cutoffs[finding]
            findings.append(
                FindingResult(
                    finding,
                    float(value),
                    thresholds[finding],
                    float(value) >= thresholds[finding],
                    "likely" if value >= high else "unlikely" if value < low else "unsure",
                )
            )
        return tuple(findings)

    def _finish(
        self, outputs: Outputs, view: str | None, fit: Suitability, seen: Seen | None, point: Point
    ) -> Analysis:
        meta = self.package.meta
        familiarity = float(outputs.familiarity)
        common: dict[str, Any] = {
            "model": self.package.name,
            "model_id": self.package.id,
            "point": point,
            "cautions": fit.cautions,
            "caution_codes": fit.caution_codes,
            "view": view,
            "seen": seen,
            "features": outputs.features,
            "familiarity": familiarity,
        }
        if fit.doubtful and familiarity < _KNOWN * meta.familiarity_threshold:
            return Analysis(suitable=False, code=fit.code, reason=fit.reason, **common)
        if familiarity < meta.familiarity_threshold:
            reason = (
                f"unlike the images that {self.package.name} was trained on "
                f"(familiarity {familiarity:.3g}, at least {meta.familiarity_threshold:.3g} wanted)"
            )
            return Analysis(suitable=False, code=Code.UNFAMILIAR, reason=reason, **common)
        return Analysis(
            suitable=True,
            abnormal=float(outputs.abnormal),
            findings=self.calls([float(value) for value in outputs.probability], point),
            maps=outputs.maps,
            **common,
        )


def _ahead(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[Future[R]]:
    """Yield futures of `function` over `items` in order, with at most `ahead` begun and not yet taken."""
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        begun: deque[Future[R]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) >= ahead:
                    yield begun.popleft()
            while begun:
                yield begun.popleft()
        finally:
            for future in begun:
                future.cancel()
