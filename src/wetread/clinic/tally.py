"""What a process counts for Prometheus of what comes in, and of what it does with it.

Labels are words of this code and codes of the standard, never what a sender says. Each process counts its own and
begins at nothing; whoever wants the sum over several adds them, as Prometheus does over its targets.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from wetread.clinic.jobs import Job
from wetread.infer.predict import Analysis


class Tally:
    """The counters of one process, in a registry of their own.

    Attributes
    ----------
    registry : CollectorRegistry
    associations : Counter
        By ``outcome`` and ``reason``: *accepted*, *refused* for a reason, *aborted* after it was accepted.
    stores : Counter
        Answers to C-STORE by ``status``, ``0x0000`` and so on.
    stow : Counter
        Instances of STOW requests by ``result``: *stored*, *warning* or *failed*, and ``reason``, ``0xA700`` and so on.
    pulls : Counter
        Studies of pulls by ``state``, see `wetread.clinic.pull.State`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.associations = self._counter(
            "wetread_dicom_associations", "DICOM associations asked for, and those that broke off.", "outcome", "reason"
        )
        self.stores = self._counter("wetread_dicom_stores", "Answers to C-STORE.", "status")
        self.stow = self._counter("wetread_stow_instances", "Instances of STOW requests.", "result", "reason")
        self.pulls = self._counter("wetread_pulled_studies", "Studies that were to be pulled.", "state")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)


class Done:
    """What a process did, in a registry: analyses by outcome and how long they took, and tries to deliver."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.analyses = Counter(
            "wetread_analyses", "Images analysed or refused.", ("model", "outcome"), registry=registry
        )
        self.seconds = Histogram(
            "wetread_analysis_seconds", "Time to read and analyse one image.", ("model",), registry=registry
        )
        self.deliveries = Counter(
            "wetread_deliveries", "Tries to send an output.", ("kind", "outcome"), registry=registry
        )

    def analysed(self, job: Job, analysis: Analysis | None, seconds: float) -> None:
        """Count one finished job."""
        if analysis is not None:
            outcome = str(analysis.code) if analysis.code else "analysed"
            self.analyses.labels(analysis.model, outcome).inc()
            self.seconds.labels(analysis.model).observe(seconds)

    def delivered(self, kind: str, outcome: str) -> None:
        """Count one try to send something."""
        self.deliveries.labels(kind, outcome).inc()
