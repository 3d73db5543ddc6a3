"""How a session ended at its destination, in words; the command itself is run in tests/e2e."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sterna.cli.follow import Reporter
from sterna.cli.output import Output
from sterna.cli.serve import check_store, sentence
from sterna.core.events import Outcome, Result
from sterna.core.serving import AfterStats
from sterna.errors import PeerAborted, TransportError
from sterna.host.lease_files import FileLeaseStore, create_file_store
from sterna.net.memory import memory_transport_pair
from sterna.registry import ErrorCode

LACKS = AfterStats(stale=7, demanded=1, pushed=2)
SILENT = TransportError(ErrorCode.PEER_SILENT, "nothing for 5 s")
DIFFERS = PeerAborted(ErrorCode.MEMORY_MISMATCH, "it differs")
LOST = PeerAborted(ErrorCode.GUEST_LOST, "the image is gone")


def test_how_a_guest_has_come() -> None:
    transport, _ = memory_transport_pair()
    came = Result(Outcome.COMPLETED, bytes_received=1 << 20, blackout_s=0.05)
    here = "the guest runs here, 50 ms after this side was ready: 1 MiB from memory"
    assert sentence(came, transport) == here
    followed = replace(came, after=AfterStats(1, 1, 0, seconds=0.25), resumed=2)
    assert sentence(followed, transport).endswith(
        "1 MiB from memory; 1 page followed within 250 ms, 1 of them because the guest waited for it; "
        "the link was lost and came back 2 times"
    )


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (
            Result(Outcome.STRANDED, error=SILENT, after=LACKS),
            (
                "the guest runs here, and waits for pages that are still at the source: peer_silent: nothing "
                "for 5 s. It lacks 4 pages: keep the source's image. If that is gone the guest is lost: "
                "sterna verdict tells, at the source"
            ),
        ),
        (
            Result(Outcome.MOVED, ErrorCode.MEMORY_MISMATCH, error=DIFFERS),
            (
                "the guest runs here, and its memory is not what memory has sent, by the digest of its "
                "pause: the peer ended the session: memory_mismatch: 'it differs'. Its image is kept there "
                "[ONE-40]"
            ),
        ),
        (
            Result(Outcome.STRANDED, ErrorCode.GUEST_LOST, error=LOST, after=LACKS),
            (
                "guest_lost: the guest runs here and lacks 4 pages, gone at memory: the peer "
                "ended the session: guest_lost: 'the image is gone' [ONE-42]"
            ),
        ),
    ],
)
def test_pages_that_may_be_gone_are_not_promised(end: Result, said: str) -> None:
    """[ONE-40] [ONE-42] A destination cannot see the source's image, nor say that it is gone."""
    transport, _ = memory_transport_pair()
    assert sentence(end, transport) == said


async def test_a_store_that_does_not_answer_is_told_of_before_anybody_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """[ONE-16] A directory that is not mounted yet, or that is looked for in another place than it is."""
    reporter = Reporter(Output())
    await check_store(None, reporter)
    create_file_store(tmp_path / "leases")
    await check_store(FileLeaseStore(tmp_path / "leases"), reporter)
    assert capsys.readouterr().err == ""
    await check_store(FileLeaseStore(tmp_path / "elsewhere"), reporter)
    said = " ".join(capsys.readouterr().err.split())
    assert "no lease store at" in said
    assert "No guest is let in before it answers" in said
