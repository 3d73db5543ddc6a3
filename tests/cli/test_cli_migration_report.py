"""How a migration ended, in words; its fields are looked at in test_cli_sending.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from records_support import STORED
from sterna.cli.exits import Exit
from sterna.cli.follow import Reporter
from sterna.cli.migration_report import MigrationReport, exit_of_result, sentence, told_late
from sterna.cli.output import Output
from sterna.core.events import Outcome, Result
from sterna.core.policy import RoundStats
from sterna.core.serving import AfterStats
from sterna.core.verdict import Judgement, Step
from sterna.errors import GuestError, LocalProtocolError, PeerAborted, TransportError
from sterna.host.recovery import Recovered
from sterna.net.memory import memory_transport_pair
from sterna.registry import ErrorCode, Owner
from sterna.wire.records import Verdict


def result(outcome: Outcome, **fields: object) -> Result:
    told = {"run_after_s": 0.5, **fields}
    return Result(outcome, seconds=1.0, bytes_sent=1 << 20, **told)  # type: ignore[arg-type]


ROUND = RoundStats(1, 1, 4096, 0.1, 0, 0)
DIFFERS = LocalProtocolError(ErrorCode.MEMORY_MISMATCH, "it differs", clause="CMP-1")
SILENT = TransportError(ErrorCode.PEER_SILENT, "nothing for 5 s")


def test_pages_that_are_gone_with_their_holder_are_not_promised() -> None:
    """[ONE-42]"""
    transport, _ = memory_transport_pair()
    end = result(Outcome.MOVED, rounds=(ROUND,), error=SILENT, after=AfterStats(stale=3, pushed=2))
    said = sentence(end, transport, kept=False)
    assert "keep this holder" not in said
    assert "that is gone: sterna verdict ID --holder HOLDER --peer recorded" in said


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (result(Outcome.MOVED, error=SILENT, after=AfterStats(stale=3, pushed=2)), Exit.GUEST),
        (result(Outcome.MOVED, error=SILENT, after=AfterStats(stale=3, pushed=3, seconds=0.1)), Exit.OK),
        (result(Outcome.MOVED, error=SILENT), Exit.OK),
        (
            result(Outcome.MOVED, code=ErrorCode.GUEST_LOST, after=AfterStats(stale=3, pushed=2)),
            Exit.LOST,
        ),
        (result(Outcome.COMPLETED, after=AfterStats(stale=3, pushed=3, seconds=0.1)), Exit.OK),
    ],
)
def test_a_guest_that_lacks_pages_is_not_done_with(end: Result, code: Exit) -> None:
    """[ONE-38] [ONE-42] Who reads 0 gives up this host, and with it the only image that has them."""
    assert exit_of_result(end) is code


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (
            result(Outcome.COMPLETED, rounds=(ROUND, ROUND), blackout_s=0.02),
            "the guest runs at memory: 2 rounds, 1 MiB in 1 s, stopped for 20 ms",
        ),
        (
            result(Outcome.COMPLETED, rounds=(ROUND,), after=AfterStats(7, 2, 5, seconds=0.5)),
            (
                "the guest runs at memory: 1 round, 1 MiB in 1 s; 7 pages followed within 500 ms, 2 of them "
                "because the guest waited for them"
            ),
        ),
        (
            result(Outcome.COMPLETED, rounds=(ROUND,), after=AfterStats(7, 2, 5, early=3)),
            (
                "the guest runs at memory: 1 round, 1 MiB in 1 s; 7 pages followed, 2 of them "
                "because the guest waited for them, 3 one by one"
            ),
        ),
        (
            result(Outcome.COMPLETED, rounds=(ROUND,), verified=False),
            "the guest runs at memory: 1 round, 1 MiB in 1 s; nobody has verified its pages (--unverified)",
        ),
        (
            result(Outcome.MOVED, rounds=(ROUND,)),
            (
                "the guest runs at memory: 1 round, 1 MiB in 1 s (the connection was lost at the end; "
                "the image is still here)"
            ),
        ),
        (
            result(Outcome.ROLLED_BACK, error=SILENT, code=ErrorCode.PEER_SILENT),
            (
                "the guest runs on here: peer_silent: nothing for 5 s\n"
                "  look at the other host; --patience TIME waits longer"
            ),
        ),
        (
            result(Outcome.ROLLED_BACK, error=PeerAborted(ErrorCode.INTERNAL, "x")),
            "the guest runs on here: the peer ended the session: internal: 'x'",
        ),
        (
            result(Outcome.UNDECIDED, error=SILENT),
            (
                "nobody here can know who owns the guest: peer_silent: nothing for 5 s. It stays paused "
                "here: run this command again when the destination is back (sterna verdict ID tells more). "
                "If it never comes back, make certain that it cannot run the guest, and say so to sterna "
                "resolve"
            ),
        ),
        (
            result(Outcome.UNDECIDED, verdict=Verdict(Owner.SOURCE, 2, handed_back=True)),
            (
                "the destination has handed the guest back: it never ran there, and never will. It stays "
                "paused here: nothing stands against running it again"
            ),
        ),
        (
            result(Outcome.MOVED, rounds=(ROUND,), error=SILENT, after=AfterStats(stale=3, pushed=2)),
            (
                "the guest runs at memory: 1 round, 1 MiB in 1 s: peer_silent: nothing for 5 s. It may wait "
                "there for pages that are only here: keep this holder and its image"
            ),
        ),
        (
            result(Outcome.MOVED, code=ErrorCode.MEMORY_MISMATCH, error=DIFFERS),
            (
                "the guest runs at memory, and its memory there is not what was sent [ONE-40]: "
                "memory_mismatch: it differs, [CMP-1]. Keep this holder: its image is as it was at the pause"
            ),
        ),
        (
            result(Outcome.MOVED, code=ErrorCode.GUEST_LOST, error=PeerAborted(ErrorCode.GUEST_LOST, "gone")),
            (
                "the guest has moved to memory, which says that it is lost [ONE-42]: the peer ended the "
                "session: guest_lost: 'gone'. Keep this holder: its image is as it was at the pause"
            ),
        ),
        (
            result(Outcome.STRANDED, error=SILENT),
            (
                "the guest runs there, and pages that it needs are here: peer_silent: nothing for 5 s. Keep "
                "this holder: it has them"
            ),
        ),
        (
            result(Outcome.STRANDED, verified=False),
            (
                "the guest runs there, and pages that it needs are here; nobody has verified its pages "
                "(--unverified). Keep this holder: it has them"
            ),
        ),
        (
            result(Outcome.GUEST_FAILED, error=GuestError("gone")),
            "the guest is here but could not be set running again: guest_failed: gone",
        ),
    ],
)
def test_every_end_says_where_the_guest_is(end: Result, said: str) -> None:
    """[ONE-40] [ONE-42] And whether it is what it was."""
    transport, _ = memory_transport_pair()
    assert sentence(end, transport) == said


@pytest.mark.parametrize(
    ("fields", "kept", "then"),
    [
        ({}, True, "Keep this holder: its image is as it was at the pause"),
        (
            {"after": AfterStats(stale=3)},
            True,
            "It may lack pages that are only here: keep this holder and its image",
        ),
        (
            {"after": AfterStats(stale=3)},
            False,
            (
                "It may lack pages that were only in the image here, and that is gone: sterna verdict ID "
                "--holder HOLDER --peer recorded tells whether it has them all"
            ),
        ),
    ],
)
def test_a_guest_that_nobody_has_seen_run_is_not_said_to(
    fields: dict[str, object], kept: bool, then: str
) -> None:
    """[ONE-33] [ONE-58] The slot is the destination's, or START is there; what is to run it may be dead."""
    transport, _ = memory_transport_pair()
    end = result(Outcome.MOVED, error=SILENT, run_after_s=None, **fields)
    assert exit_of_result(end) is Exit.GUEST
    assert sentence(end, transport, kept=kept) == (
        "the guest is owned by memory, and nobody has said yet that it runs there: peer_silent: nothing for "
        "5 s. sterna serve, started again there with the options that it had, runs it; this command, run "
        f"again, asks. {then}"
    )


def test_a_guest_that_is_whole_has_run() -> None:
    """[ONE-39] VERDICT repeats COMPLETE, whoever has missed RUNNING."""
    verdict = Verdict(Owner.DESTINATION, 2, complete=True, digest=b"d" * 16)
    end = result(Outcome.MOVED, run_after_s=None, verdict=verdict)
    assert exit_of_result(end) is Exit.OK
    assert exit_of_result(replace(end, verdict=replace(verdict, complete=False))) is Exit.GUEST


@pytest.mark.parametrize("whole", [False, True])
def test_an_earlier_session_whose_guest_nobody_has_seen_run(
    capsys: pytest.CaptureFixture[str], whole: bool
) -> None:
    """[ONE-21] [ONE-39] A slot says whose it is; COMPLETE says that it has run."""
    judgement = Judgement(Owner.DESTINATION, "slot 2 is there's", "ONE-21", Step.FREE, 2)
    verdict = Verdict(Owner.DESTINATION, 2, complete=whole, digest=b"d" * 16 if whole else b"")
    recovered = Recovered(STORED, judgement, acted=True, verdict=verdict)
    code = MigrationReport(Reporter(Output()), None).settled(recovered)
    assert code is (Exit.OK if whole else Exit.GUEST)
    said = capsys.readouterr().err
    assert "an earlier session of this guest: destination under epoch 2: slot 2 is there's" in said
    assert ("the guest is owned by there, and nobody has said yet that it runs there" in said) is not whole


def test_who_was_too_late_to_cancel_hears_of_nothing_less_than_of_a_loss() -> None:
    """[CON-72] [ONE-40] [ONE-42]"""
    for code in (ErrorCode.GUEST_LOST, ErrorCode.MEMORY_MISMATCH):
        assert told_late(result(Outcome.MOVED, code=code)).code is code
    assert told_late(result(Outcome.MOVED, code=ErrorCode.PEER_SILENT)).code is ErrorCode.TOO_LATE
    assert told_late(result(Outcome.UNDECIDED)).code is None
