"""Storage commitment (DICOM PS3.4 annex J): we take responsibility for instances, after having looked.

A request is written down and answered at once; the report follows, to where the peer listens according to the setting
`dicom_peers`, or else on the association on which it asked, while that is open. An instance is committed when its row
is there and its bytes, read back, have the SHA-256 that they had. What cannot be delivered is tried again, also after
a restart, for three days.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from weakref import WeakValueDictionary

import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import build_context, build_role
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from sqlalchemy.engine import Row
from sqlalchemy.exc import SQLAlchemyError

from wetread.clinic import audit, identity, peers, store
from wetread.clinic.archive import CHUNK, Archive
from wetread.clinic.peers import Caller, Peer, PeerError
from wetread.clinic.store import Store
from wetread.errors import ClinicError, ReadError

log = logging.getLogger(__name__)

PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
INVALID_ARGUMENT = 0x0115
CLASS_CONFLICT = 0x0119
NO_SUCH_ACTION = 0x0123
RESOURCE_LIMITATION = 0x0213
FAILURES = {
    PROCESSING_FAILURE: "the bytes in the archive are not those that were received",
    NO_SUCH_INSTANCE: "not here, or quarantined",
    CLASS_CONFLICT: "here, but of another SOP class",
}
GIVE_UP = timedelta(days=3)
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=10), timedelta(hours=1)
_LEASE = timedelta(minutes=10)  # of one attempt, during which no other process tries

Reference = tuple[str, str]  # SOP Class UID, SOP Instance UID


class Commitments:
    """Requests for storage commitment, and the reports on them.

    Parameters
    ----------
    database, archive
        What is committed.
    where : callable
        Takes an AE title and a site, gives where it listens, or None.
    caller : Caller
        How we call others.
    """

    def __init__(
        self,
        database: Store,
        archive: Archive,
        where: Callable[[str, str], Peer | None],
        caller: Caller,
    ) -> None:
        self.database, self.archive = database, archive
        self._where, self._caller = where, caller
        self._open: WeakValueDictionary[str, Association] = WeakValueDictionary()

    def request(self, event: Event, ae: str, site: str) -> int:
        """Write down an N-ACTION request and return the status with which it is answered."""
        try:
            if event.action_type != 1:
                return NO_SUCH_ACTION
            asked = event.action_information
            transaction = str(asked.TransactionUID)
            items = [
                (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
                for item in asked.ReferencedSOPSequence
            ]
        except Exception:  # pydicom raises nearly anything on hostile bytes
            return INVALID_ARGUMENT
        if not items or any(
            not text or len(text) > 64 for text in [transaction, *(uid for item in items for uid in item)]
        ):
            return INVALID_ARGUMENT
        try:
            key = self.add(ae, site, transaction, items)
        except SQLAlchemyError as error:
            log.error("storage commitment for %s cannot be written down: %s", ae, type(error).__name__)
            return RESOURCE_LIMITATION
        self._open[key] = event.assoc
        return 0

    def add(self, ae: str, site: str, transaction: str, items: Sequence[Reference]) -> str:
        """Write down what is to be reported on; the same transaction again replaces the one before. Return its id."""
        table, now = store.commitment, store.now()
        values = {"items": [list(item) for item in items], "state": "pending", "tries": 0, "due_at": now, "error": None}
        with self.database.write() as connection:
            store.ensure_site(connection, site)
            same = (table.c.site == site, table.c.ae == ae, table.c.transaction == transaction)
            key = connection.execute(sa.select(table.c.id).where(*same)).scalar()
            if key is None:
                key = store.new_id()
                connection.execute(
                    table.insert().values(id=key, site=site, ae=ae, transaction=transaction, created_at=now, **values)
                )
            else:
                connection.execute(table.update().where(table.c.id == key).values(created_at=now, **values))
            audit.record(connection, site, f"AE {ae}", "commitment.requested", key, {"instances": len(items)})
        return str(key)

    def step(self) -> int:
        """Report on what is due; return how many reports were delivered."""
        table, now = store.commitment, store.now()
        with self.database.read() as connection:
            due = connection.execute(
                sa.select(table)
                .where(
                    table.c.state == "pending",
                    sa.or_(table.c.due_at <= now, table.c.due_at > now + _LONGEST_WAIT),  # the clock was set back
                )
                .order_by(table.c.due_at)
                .limit(20)
            ).all()
        return sum(self._report(row) for row in due)

    def verify(self, site: str, items: Sequence[Reference]) -> list[tuple[Reference, int]]:
        """Look for instances and read them back; return each with 0, or the reason of its failure (PS3.3 C.14.1.1)."""
        table = store.instance
        wanted = [uid for _, uid in items]
        found: dict[str, Row[Any]] = {}
        with self.database.read() as connection:
            for start in range(0, len(wanted), 500):
                rows = connection.execute(
                    sa.select(table.c.sop_uid, table.c.sha256, table.c.bytes, table.c.sop_class).where(
                        table.c.site == site,
                        table.c.state != "quarantined",
                        table.c.sop_uid.in_(wanted[start : start + 500]),
                    )
                )
                found |= {row.sop_uid: row for row in rows}
        return [(item, self._verdict(item, found.get(item[1]))) for item in items]

    def _verdict(self, item: Reference, row: Row[Any] | None) -> int:
        if row is None:
            return NO_SUCH_INSTANCE
        if row.sop_class and row.sop_class != item[0]:
            return CLASS_CONFLICT
        try:
            digest = hashlib.sha256()
            with self.archive.path(row.sha256).open("rb") as file:
                while piece := file.read(CHUNK):
                    digest.update(piece)
        except (OSError, ReadError):
            return PROCESSING_FAILURE
        whole = self.archive.size(row.sha256) == row.bytes and digest.hexdigest() == row.sha256
        return 0 if whole else PROCESSING_FAILURE

    def _report(self, row: Row[Any]) -> bool:
        table, now = store.commitment, store.now()
        with self.database.write() as connection:
            mine = connection.execute(
                table.update()
                .where(table.c.id == row.id, table.c.state == "pending", table.c.due_at == row.due_at)
                .values(due_at=now + _LEASE, tries=row.tries + 1)
            ).rowcount
        if not mine:
            return False  # another process does it
        items = [(kind, uid) for kind, uid in row.items]
        failed = 0
        try:
            verdicts = self.verify(row.site, items)
            failed = sum(1 for _, reason in verdicts if reason)
            error = self._deliver(row, _information(row.transaction, verdicts), 2 if failed else 1)
        except ClinicError as unreachable:  # the archive in S3: nothing is known of the instances
            error = identity.clean(str(unreachable))
        with self.database.write() as connection:
            values: dict[str, Any] = {"state": "done", "error": None}
            if error and now - row.created_at < GIVE_UP:
                wait = min(_FIRST_WAIT * 2 ** min(row.tries, 12), _LONGEST_WAIT)
                values = {"due_at": store.now() + wait, "error": error}
            elif error:
                values = {"state": "failed", "error": error}
                store.emit(
                    connection, "commitment.failed", row.site, None, {"ae": row.ae, "transaction": row.transaction}
                )
            connection.execute(table.update().where(table.c.id == row.id).values(values))
            if "state" in values:
                detail = {"state": values["state"], "instances": len(items), "failed": failed}
                audit.record(connection, row.site, f"AE {row.ae}", "commitment.reported", row.id, detail)
        if error:
            log.warning("storage commitment: no report to %s: %s", row.ae, error)
        if failed:
            log.warning("storage commitment: %d of %d instances of %s not committed", failed, len(items), row.ae)
        return error is None

    def _deliver(self, row: Row[Any], information: Dataset, event_type: int) -> str | None:
        """Send the report; return why it did not arrive, or None."""
        reason = f"{row.ae}: no address in dicom_peers, and its association has ended"
        if peer := self._where(row.ae, row.site):
            role = build_role(StorageCommitmentPushModel, scp_role=True)
            try:
                with peers.association(
                    peer, [build_context(StorageCommitmentPushModel)], self._caller, ext_neg=[role]
                ) as link:
                    return _send(link, information, event_type)
            except PeerError as error:
                reason = str(error)
        still = self._open.get(row.id)
        if still is not None and still.is_established:
            return _send(still, information, event_type)
        return identity.clean(reason)


def _send(link: Association, information: Dataset, event_type: int) -> str | None:
    try:
        status, _ = link.send_n_event_report(
            information, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
    except (RuntimeError, ValueError) as error:
        return identity.clean(f"the peer takes no report ({error})")
    code = status.get("Status")
    return None if code == 0 else "no answer" if code is None else f"answered 0x{code:04X}"


def _information(transaction: str, verdicts: Sequence[tuple[Reference, int]]) -> Dataset:
    """Return the event information of a report (DICOM PS3.4 table J.3-2)."""
    information = Dataset()
    information.TransactionUID = UID(transaction)
    for keyword, chosen in (
        ("ReferencedSOPSequence", [v for v in verdicts if not v[1]]),
        ("FailedSOPSequence", [v for v in verdicts if v[1]]),
    ):
        sequence = []
        for (sop_class, sop_uid), reason in chosen:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = UID(sop_class), UID(sop_uid)
            if reason:
                item.FailureReason = reason
            sequence.append(item)
        if sequence:
            setattr(information, keyword, sequence)
    return information
