"""The demo in one process: both endpoints over real sockets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sterna.cli.demo_run import Wishes
from sterna.cli.demo_simulated import SimulatedDemo
from sterna.cli.exits import Exit
from sterna.cli.follow import Reporter
from sterna.cli.output import Output
from sterna.host.evidence import Evidence
from sterna.host.peers import PeerList
from sterna.host.pki import init_ca, issue
from sterna.net.tls import TlsConfig
from sterna.observe.outcome import Ended
from sterna.observe.recording import RecordingReader
from sterna.observe.sessions import Over, Sessions

PEERS = PeerList.parse('[[peer]]\nidentity = "source"\n[[peer]]\nidentity = "destination"\n', "peers")


def wishes(evidence: Evidence | None = None, rate_bytes_s: int = 8 << 20) -> Wishes:
    return Wishes(
        memory_bytes=2 << 20, rate_bytes_s=rate_bytes_s, hot_bytes=1 << 20, insecure=False, evidence=evidence
    )


@pytest.mark.slow
async def test_over_tls_with_evidence(tmp_path: Path) -> None:
    init_ca(tmp_path / "pki")
    configs = []
    for name in ("source", "destination"):
        issued = issue(tmp_path / "pki", name)
        configs.append(TlsConfig(issued.certificate, issued.key, issued.authority, PEERS.check_peer))
    evidence = Evidence(tmp_path / "evidence")
    asked = replace(wishes(evidence), record=tmp_path / "x.rec")
    demo = SimulatedDemo(asked, Reporter(Output(json=True)), (configs[0], configs[1]), "destination")
    run = await demo.run()
    assert run.exit_code is Exit.OK
    fields = run.fields(asked)
    assert fields["guest"] == "simulated"
    assert run.source["tls"] == run.destination["tls"]
    assert evidence.path("source.img").read_bytes() == evidence.path("destination.img").read_bytes()
    assert evidence.path("journal.ndjson").read_text().count("\n") > 1
    with (tmp_path / "x.rec").open("rb") as file:
        reader = RecordingReader(file)
        *_, over = Sessions(reader.side, reader.clock).follow(reader)
    assert isinstance(over, Over)
    assert over.follower.fault is None
    assert over.follower.outcome().ended is Ended.COMPLETED


@pytest.mark.slow
async def test_pages_without_hashes() -> None:
    """[MEM-21] Both endpoints are told, and say so."""
    asked = replace(wishes(), unverified=True)
    run = await SimulatedDemo(asked, Reporter(Output(json=True)), None, "destination").run()
    assert run.exit_code is Exit.OK
    assert (run.source["verified"], run.destination["verified"]) == (False, False)


@pytest.mark.slow
async def test_an_idle_guest_in_plaintext() -> None:
    """It writes one page when it begins to run at the destination, and so shows that it does."""
    asked = wishes(rate_bytes_s=0)
    run = await SimulatedDemo(asked, Reporter(Output(json=True)), None, "destination").run()
    assert run.exit_code is Exit.OK
    assert run.writes_before == 0
    assert run.writes_after == 1
    assert run.source["tls"] is None
