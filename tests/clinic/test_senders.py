"""Where a peer listens."""

from __future__ import annotations

from wetread.clinic.senders import Senders
from wetread.config import Settings


def test_a_peer_is_that_of_its_own_site() -> None:
    lines = ["CT1@10.1.0.5:104=north", "CT1@10.2.0.5:104=south", "CT1@10.3.0.5:104", "CT2@10.4.0.5"]
    senders = Senders(Settings(site="home", dicom_peers=lines))
    for site, host in (("north", "10.1.0.5"), ("south", "10.2.0.5"), ("home", "10.3.0.5")):
        assert (peer := senders.peer("CT1", site)) is not None
        assert peer.host == host
    assert senders.peer("CT1", "elsewhere") is None
    assert senders.peer("CT2", "home") is None
