"""A department with a few studies a day in which something may change, for the tests of drift."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import department
import numpy as np
from department import HERE, Tables

from wetread.clinic.store import Store
from wetread.improve import drift
from wetread.improve.drift import DriftPolicy

MODEL, FINDINGS = "a" * 64, ("Edema", "Pneumothorax")
START = datetime(2026, 3, 1, tzinfo=UTC)
POLICY = DriftPolicy(least_images=40, least_reviews=40, resamples=199, alpha=0.05)


class Department:
    """Draws studies, a few a day, each of one image of one patient unless said otherwise."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.tables: Tables = {name: [] for name in department.ORDER}
        self.count = 0

    def come(
        self, days: range, a_day: int = 8, *, device: str = "ACME DR", dark: float = 0.0, score: float = 0.0,
        ill: float = 0.2, off: float = 0.0, axis: float = 0.0, refused: float = 0.0, unread: float = 0.0,
        patient: str | None = None, signed: bool = True, station: str | None = None, source: str | None = None,
    ) -> Department:  # fmt: skip
        rng = self.rng
        for day in days:
            for _ in range(a_day):
                self.count += 1
                n, at = self.count, START + timedelta(days=day + rng.random())
                image = str(uuid.UUID(int=rng.getrandbits(128), version=4))
                sick = [rng.random() < ill for _ in FINDINGS]
                p = [min(0.999, max(0.001, (0.65 if s else 0.15) + rng.gauss(0, 0.1) + score)) for s in sick]
                said = [
                    {"finding": f, "probability": q, "threshold": 0.5, "flagged": q > 0.5, "call": "likely"}
                    for f, q in zip(FINDINGS, p, strict=True)
                ]
                self._add(
                    n, at, image, patient or f"P{n}", said, device, rng.gauss(0.5 - dark, 0.05), axis, refused, unread
                )
                if signed:
                    answers = [s if rng.random() > off else not s for s in sick]
                    self._sign(n, at, said, answers)
                self.tables["instance"][-1] |= {"station": station, "source": source}
        return self

    def stay(self, days: range, beds: int, nights: float, **more: Any) -> Department:
        """Beds that are never empty: each has a daily image of who lies in it, `nights` on the average."""
        for bed in range(beds):
            guest, left = 0, self.rng.expovariate(1 / nights)
            for day in days:
                self.come(range(day, day + 1), 1, patient=f"bed {bed}, {guest}", **more)
                left -= 1
                if left <= 0:
                    guest, left = guest + 1, self.rng.expovariate(1 / nights)
        return self

    def _add(
        self, n: int, at: datetime, image: str, patient: str, said: list[dict[str, Any]], device: str, mean: float,
        axis: float, refused: float, unread: float,
    ) -> None:  # fmt: skip
        rng, suitable = self.rng, self.rng.random() >= refused
        readable = not unread or rng.random() >= unread
        suitable = suitable and readable
        features = np.array([rng.gauss(axis, 1) for _ in range(6)], np.float16)
        self.tables["study"].append({
            "id": f"study-{n}", "site": HERE, "study_uid": f"1.{n}", "patient_id": patient, "patient_name": "",
            "views": "PA", "images": 1, "cautions": [], "received_at": at, "analysis": "analysed", "overdue": False,
            "reading": "unread", "floor": "routine", "priority": "routine", "overdue_at": at, "rank": 0, "reason": "",
        })  # fmt: skip
        self.tables["series"].append({"id": f"series-{n}", "study": f"study-{n}", "series_uid": f"2.{n}"})
        self.tables["instance"].append({
            "id": image, "site": HERE, "study": f"study-{n}", "series": f"series-{n}", "sop_uid": f"3.{n}",
            "sha256": f"{n:064x}", "bytes": 1, "format": "dicom", "name": "", "state": "stored", "received_at": at,
            "device": device,
        })  # fmt: skip
        common = {"model": MODEL, "model_name": "one", "at": at}
        self.tables["image_result"].append(common | {
            "id": f"result-{n}", "instance": image, "version": "1", "suitable": suitable, "reason": "", "cautions": [],
            "caution_codes": [], "point": "screen", "findings": said if suitable else [], "seconds": 0.1,
        })  # fmt: skip
        exposure = {"mean": mean, "spread": rng.gauss(0.2, 0.02), "black": 0, "white": 0, "rows": 1, "columns": 1}
        if readable:
            self.tables["image_trait"].append({
                "instance": image, "model": MODEL, "exposure": exposure, "at": at,
                "features": features.tobytes() if suitable else None,
            })  # fmt: skip
        self.tables["study_result"].append(
            common | {"id": f"merged-{n}", "study": f"study-{n}", "images": "x", "findings": said}
        )

    def _sign(self, n: int, at: datetime, said: list[dict[str, Any]], answers: list[bool]) -> None:
        self.tables["study"][-1]["reading"] = "signed"
        self.tables["review"].append({
            "id": f"review-{n}", "study": f"study-{n}", "reader": "ann", "state": "signed", "normal": False,
            "note": "", "models": [MODEL], "created_at": at, "signed_at": at,
        })  # fmt: skip
        for finding, present in zip(said, answers, strict=True):
            self.tables["review_finding"].append({
                "review": f"review-{n}", "finding": finding["finding"], "answer": "agree" if present else "disagree",
                "call": "likely", "model": MODEL,
            })  # fmt: skip

    def report(self, database: Store, policy: DriftPolicy = POLICY, day: int = 35) -> drift.Report:
        department.put(database, self.tables)
        (found,) = drift.check(database, HERE, policy, until=START + timedelta(days=day))
        return found
