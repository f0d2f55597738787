"""Rollout: a package earns its way into service, stage after stage, and a worse one is taken back.

    stage → shadow → canary → champion

Each step is one transaction with one audit row (`clinic.deploying`); the services take it up within seconds and without
a restart (`clinic.takeup`). `judge` weighs what both packages said of the same studies (`verdict`), `act` does what it
says. What a person holds, no verdict promotes; what fails is rolled back all the same.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field
from sqlalchemy.engine import Connection

from wetread.clinic import deploying, deployments, store
from wetread.clinic.deploying import Change
from wetread.clinic.deployments import CANARY, CHAMPION, EVERYWHERE, SHADOW, Deployment, Slot
from wetread.clinic.store import Store
from wetread.clinic.takeup import candidate
from wetread.config import Settings
from wetread.errors import ConflictError, NotFoundError
from wetread.improve import due, record, staging, verdict
from wetread.improve.margins import Limits
from wetread.improve.policy import Policy
from wetread.improve.staging import Staging
from wetread.improve.verdict import HOLD, PROMOTE, ROLL_BACK, Verdict
from wetread.model.package import Package


class RolloutPolicy(Policy):
    """A rollout policy (TOML): what staging tests, the share of a canary, and what a verdict asks for."""

    share: float = Field(0.1, gt=0, lt=1)
    staging: Staging = Staging()
    verdict: Limits = Limits()


@dataclass(frozen=True)
class Rollout:
    """One clinic's rollouts, at one site or at all.

    Parameters
    ----------
    database : Store
    data : Path
        Its folder.
    settings : Settings
    actor : str
        Who asks.
    site : str
        The only site, or `EVERYWHERE`.
    """

    database: Store
    data: Path
    settings: Settings
    actor: str
    site: str = EVERYWHERE

    def stage(self, name: str, policy: Staging) -> staging.Staged:
        """Test a package and put it into the data folder; see `staging.stage`."""
        staged = staging.stage(self.database, self.data, name, self.settings, policy, self.actor, site=self.site)
        if not staged.unchanged:
            record.write(
                self.data / "improve" / "rollout" / f"stage-{staged.model[:12]}", staged.to_json(), _staged(staged)
            )
        return staged

    def shadow(self, name: str, reason: str = "") -> Change:
        """Let a staged package analyse beside the champion, unseen.

        Raises
        ------
        ConflictError
            When it was not staged beside the champion of now, or did not pass the last time, or another one challenges.
        """
        package = Package.open(name, self.data)
        new = candidate(package)
        with self.database.write() as connection:
            champion = due.champion(connection, self.site, new.slot)
            if champion is None or champion.model != new.model:  # else there is nothing to try
                done = staging.last(connection, new.model, champion.model if champion else None)
                there = (self.data / "models" / new.model / "model.json").is_file()
                if not (done and done["passed"] and there):
                    beside = f" beside the champion of now, {champion.label}" if champion else ""
                    site = f" --site {self.site}" if self.site else ""
                    raise ConflictError(
                        f"{package.name} ({new.model[:12]}) was not staged, or failed,{beside}: run "
                        f"`wetread rollout stage {name} --data {self.data}{site}` first"
                    )
            self._site(connection)
            return deploying.shadow(connection, self.site, new, self.actor, reason, home=self.settings.site)

    def canary(self, share: float, reason: str = "", *, slot: str = "") -> Change:
        """Let the challenger's word count for a share of the new studies."""
        with self.database.write() as connection:
            found = deploying.find(connection, self.site, slot)
            return deploying.canary(connection, found, share, self.actor, reason, home=self.settings.site)

    def promote(self, reason: str = "", *, slot: str = "", model: str = "") -> Change:
        """Make the challenger the champion."""
        with self.database.write() as connection:
            found = deploying.find(connection, self.site, slot, model)
            return deploying.promote(connection, found, self.actor, reason, home=self.settings.site, model=model)

    def hold(self, reason: str = "", *, slot: str = "") -> Change:
        """Keep the challenger where it is, whatever verdicts say."""
        with self.database.write() as connection:
            found = deploying.find(connection, self.site, slot)
            return deploying.hold(connection, found, self.actor, reason, home=self.settings.site)

    def rollback(self, reason: str = "", *, slot: str = "", model: str = "") -> Change:
        """End the challenger, or bring the champion's predecessor back."""
        with self.database.write() as connection:
            found = deploying.find(connection, self.site, slot, model)
            return deploying.rollback(connection, found, self.actor, reason, home=self.settings.site, model=model)

    def status(self) -> list[Slot]:
        """Return what holds, by slot."""
        with self.database.read() as connection:
            there = deployments.slots(deployments.history(connection, self.site), self.site)
        return [there[name] for name in sorted(there)]

    def challenged(self, slot: str = "") -> list[tuple[Rollout, str]]:
        """Return each site's or everywhere's rollouts in which something challenges, with the slot.

        Without a site those of every site alone, too; with one its own, and when only others challenge there, these,
        for `judge` to refuse.

        Raises
        ------
        NotFoundError
            When nothing ever was in that slot.
        """
        with self.database.read() as connection:
            rows = deployments.history(connection, self.site or None)
        if slot and all(row.slot != slot for row in rows):
            raise NotFoundError(f"slot {slot[:64]!r}: nothing is deployed there; see `wetread rollout status`")
        found = [row for row in rows if row.until is None and row.stage != CHAMPION and slot in ("", row.slot)]
        own = [row for row in found if not self.site or row.site == self.site]
        return [(replace(self, site=self.site or row.site), row.slot) for row in own or found]

    def judge(self, limits: Limits, *, slot: str = "", browsers: Path | None = None) -> Verdict:
        """Weigh the challenger against the champion, and keep the verdict; nothing else changes.

        Parameters
        ----------
        browsers : Path, optional
            What browsers measured of the pages, for a canary.

        Raises
        ------
        ConflictError
            When nothing challenges, or what does challenges at every site and `site` is one.
        """
        with self.database.read() as connection:
            found = deploying.find(connection, self.site, slot)
            row = deploying.challenger(found)
        said = verdict.judge(self.database, found, limits, self.site, browsers)
        record.write(self.data / "improve" / "rollout" / said.id, said.to_json(), verdict.render(said))
        with self.database.write() as connection:
            deploying.judged(connection, row, said.summary())
        return said

    def act(self, said: Verdict, policy: RolloutPolicy) -> Change | None:
        """Do what a verdict says: to the next stage, or back; None when it says hold, or a person does.

        Raises
        ------
        ConflictError
            When the challenger is another, or in another stage, by now.
        """
        home, reason = self.settings.site, f"verdict {said.id[:8]}: {said.reasons[0]}"
        with self.database.write() as connection:
            found = deploying.find(connection, self.site, said.slot)
            row = found.challenger
            if row is None or row.id != said.deployment:
                raise ConflictError("the challenger is another, or in another stage, than was judged; judge it anew")
            if said.outcome == ROLL_BACK:
                return deploying.rollback(
                    connection, found, self.actor, reason, home=home, model=row.model, automatic=True
                )
            if said.outcome == HOLD or row.held:
                return None
            if row.stage == SHADOW:
                return deploying.canary(connection, found, policy.share, self.actor, reason, home=home)
            return deploying.promote(connection, found, self.actor, reason, home=home, model=row.model)

    def _site(self, connection: Connection) -> None:
        if self.site != EVERYWHERE:
            store.ensure_site(connection, self.site)


def row_json(row: Deployment) -> dict[str, Any]:
    """Return a row for machines."""
    values = asdict(row) | {"since": row.since.isoformat(), "until": row.until and row.until.isoformat()}
    return {name: value for name, value in values.items() if name != "salt"}


def change_json(change: Change) -> dict[str, Any]:
    """Return a change for machines."""
    return {"done": change.done, "changed": change.changed, "words": change.words, "deployment": row_json(change.row)}


def slot_json(slot: Slot) -> dict[str, Any]:
    """Return what holds for a slot, for machines."""
    return {
        "slot": slot.name,
        "champion": row_json(slot.champion) if slot.champion else None,
        "challenger": row_json(slot.challenger) if slot.challenger else None,
        "history": [row_json(row) for row in slot.rows],
    }


def _staged(staged: staging.Staged) -> str:
    lines = [f"# Staging of {staged.model_name} ({staged.model[:12]}) for {staged.slot}", ""]
    lines += [f"**{'Passed' if staged.passed else 'Failed'}.**", "", "| test | found | wanted | |", "|---|---|---|---|"]
    lines += [f"| {t.name} | {t.found} | {t.wanted} | {'pass' if t.passed else 'fail'} |" for t in staged.tests]
    return "\n".join(lines) + "\n"


__all__ = ["CANARY", "HOLD", "PROMOTE", "ROLL_BACK", "Rollout", "RolloutPolicy", "change_json", "slot_json"]
