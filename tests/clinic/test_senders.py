"""Where a peer listens."""

from __future__ import annotations

import pytest

from wetread.clinic.senders import Sender, Senders
from wetread.config import Settings
from wetread.errors import ConfigError


def test_a_peer_is_that_of_its_own_site() -> None:
    lines = ["CT1@10.1.0.5:104=north", "CT1@10.2.0.5:104=south", "CT1@10.3.0.5:104", "CT2@10.4.0.5"]
    senders = Senders(Settings(site="home", dicom_peers=lines))
    for site, host in (("north", "10.1.0.5"), ("south", "10.2.0.5"), ("home", "10.3.0.5")):
        assert (peer := senders.peer("CT1", site)) is not None
        assert peer.host == host
    assert senders.peer("CT1", "elsewhere") is None
    assert senders.peer("CT2", "home") is None


def test_who_may_correct_is_said_in_its_line() -> None:
    lines = ["PACS@10.1.0.5:104+tls+correct=north", "CT@10.1.0.6", "*@10.2.0.0/16+correct"]
    senders = Senders(Settings(dicom_peers=lines))
    pacs = senders.find("PACS", "10.1.0.5")
    assert pacs is not None
    assert (pacs.corrects, pacs.tls, pacs.port, pacs.site) == (True, True, 104, "north")
    assert senders.find("PACS", "10.1.0.7") is None  # elsewhere the name alone is worth nothing
    for ae, address, corrects in (("CT", "10.1.0.6", False), ("MR", "10.2.0.1", True)):
        line = senders.find(ae, address)
        assert line is not None
        assert line.corrects is corrects


@pytest.mark.parametrize(
    "host", ["cr1", "cr-1.ward_2.example", "xn--kln-sna.example.", "10.0.0.0/8", "[fd00::7]", "3com"]
)
def test_a_host_is_an_address_a_network_or_a_name(host: str) -> None:
    assert Sender.parse(f"CR1@{host}").network is not None


@pytest.mark.parametrize(
    "host", ["10.0.0.300", "10.0.0", "cr1+corect", '127.0.0.1"', "cr 1", "10.0.0.0/33", "-cr1", "a..b"]
)
def test_a_mistyped_host_is_refused_instead_of_never_matching(host: str) -> None:
    with pytest.raises(ConfigError, match="no address, network or host name"):
        Sender.parse(f"CR1@{host}")
