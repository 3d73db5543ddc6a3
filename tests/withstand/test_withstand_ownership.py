"""Who may run the guest: stale epochs, permission that is replayed, and two sides that both claim it.

Every frame of the commit is said with every epoch, attempt and digest but the right one, early, twice and on
the next connection. What must never come of it: a guest that runs without permission, two that run, an older
image that starts by itself, or an image that is freed before its guest lives elsewhere.

Published bugs of this class: a capability that only one side had set booted two guests in QEMU (875fcd013a);
Cloud Hypervisor set the source running again after `Complete`, and released disks before the other side was
durable (#7111); Propolis could leave nobody running; libvirt relies on a lock manager whose default does
nothing.

[HND-1] [HND-3] [RUN-1] [CMP-1] [CMP-4] [ONE-11] [ONE-12] [ONE-14] [ONE-20] [ONE-30] [ONE-49] [CON-53]
[CON-62] [CON-64]
"""

from __future__ import annotations

import struct

import pytest
import trio
from trio.testing import MockClock
from withstand_fields import leaves
from withstand_judge import judge, judge_any
from withstand_siege import Siege, arrivals
from withstand_support import EPOCH, THERE, Victim, at_home, pair, recording, sample

from sterna.core.events import Claim, Outcome
from sterna.core.tables import COMMITTED, DestinationState, SourceState
from sterna.errors import GuestError, LocalProtocolError
from sterna.host.agent import PeerListHost
from sterna.registry import ErrorCode, FrameType
from sterna.wire import records as r

F, C = FrameType, ErrorCode
S, D = SourceState, DestinationState
U64 = (1 << 64) - 1
EPOCHS = (0, 1, EPOCH - 1, EPOCH, EPOCH + 1, EPOCH + 2, 1 << 63, U64 - 1, U64)


def with_epoch(frame: FrameType, epoch: int) -> bytes:
    (leaf,) = (leaf for leaf in leaves(frame) if leaf.path == "epoch")
    body = sample(frame)
    return body[: leaf.offset] + struct.pack("<Q", epoch) + body[leaf.offset + 8 :]


COMMITS = [
    ("destination", F.HANDOVER, EPOCH, "HND-1"),
    ("source", F.RUNNING, EPOCH + 1, "RUN-1"),
    ("source", F.COMPLETE, EPOCH + 1, "CMP-4"),
    ("destination", F.RELEASE, EPOCH + 1, "CMP-4"),
]


@pytest.mark.parametrize(
    ("role", "frame", "right", "clause"), COMMITS, ids=[frame.name for _, frame, _, _ in COMMITS]
)
def test_every_epoch_but_the_right_one(role: str, frame: FrameType, right: int, clause: str) -> None:
    """[HND-1] [RUN-1] [CMP-4] Older ones, newer ones, and those that wrap."""
    for epoch in EPOCHS:
        victim = at_home(role, frame)
        victim.attack(victim.frame(frame, with_epoch(frame, epoch)))
        if epoch == right:
            assert victim.machine.result is None
            continue
        last = frame is F.HANDOVER and epoch == U64
        judge(victim, C.BAD_VALUE if last else C.BAD_EPOCH, clause="HND-3" if last else clause)


@pytest.mark.parametrize("frame", [F.LOADED, F.COMPLETE], ids=lambda frame: frame.name)
def test_another_digest(frame: FrameType) -> None:
    """[CON-53] [CMP-1] No permission for another image, and this one is kept."""
    (leaf,) = (leaf for leaf in leaves(frame) if leaf.path == "digest")
    victim = at_home("source", frame)
    body = sample(frame)
    victim.attack(victim.frame(frame, body[: leaf.offset] + bytes(16) + body[leaf.offset + 16 :]))
    code = C.DIGEST_MISMATCH if frame is F.LOADED else C.MEMORY_MISMATCH
    judge(victim, code)
    assert not victim.guest.released


@pytest.mark.parametrize(
    "frame", [F.HANDOVER, F.RUNNING, F.COMPLETE, F.RELEASE, F.BYE, F.LOADED], ids=lambda frame: frame.name
)
def test_a_word_of_the_commit_too_early(frame: FrameType) -> None:
    """[ONE-20] [ONE-24] Recorded in another session of the same guest, and said in each state of this one."""
    for role in "source", "destination":
        said = [one for one in recording()[role] if one.frame == frame]
        for number, state in enumerate(arrivals(role)):
            if not said or recording()[role][number].frame == frame:
                continue
            victim = Victim(role)
            if role == "source":
                victim.until(S.GREETING)
            while victim.next < number:
                next(victim._moves)
            victim.settle()
            assert victim.machine.state is state
            victim.attack(victim.again(said[0]))
            judge(victim, C.UNEXPECTED_FRAME)


def test_a_permission_that_comes_twice() -> None:
    """[ONE-30] While CLAIMING is recorded, while the epoch is claimed, while the guest is started."""
    for state in D.RECORDING, D.CLAIMING, D.COMMITTING, D.STARTING, D.RUNNING:
        victim = Victim("destination").until(state)
        permission = next(said for said in recording()["destination"] if said.frame == F.HANDOVER)
        victim.attack(victim.again(permission))
        judge(victim, C.UNEXPECTED_FRAME, clause="CON-3")
        assert victim.room.has_run, "permission stands, whether the connection does or not"
        assert victim.room.calls.count("run") == 1


@pytest.mark.parametrize("frame", [F.HANDBACK, F.VERDICT], ids=lambda frame: frame.name)
@pytest.mark.parametrize("epoch", EPOCHS)
def test_both_sides_own_it(frame: FrameType, epoch: int) -> None:
    """[ONE-20] [ONE-37] [HND-2] A destination gives back what it may run, or names the source: not even then.

    The guest stays paused here. A HANDBACK of the right epoch is a permission to claim, and no claim.
    """
    victim = Victim("source").until(S.HANDED_OVER)
    victim.attack(victim.frame(frame, with_epoch(frame, epoch)))
    if frame is F.HANDBACK and epoch == EPOCH + 1:
        result = judge_any(victim) or victim.machine.result
        assert result is not None
        assert result.verdict is not None
        assert result.verdict.handed_back
    else:
        result = judge(victim, C.BAD_EPOCH if frame is F.HANDBACK else C.UNEXPECTED_FRAME)
        assert result.verdict is None
    assert result.outcome is Outcome.UNDECIDED
    assert "resume" not in victim.guest.calls


def test_a_hand_back_that_is_taken_back() -> None:
    """[ONE-37] RUNNING behind it changes nothing: the session is over, and the records decide."""
    victim = Victim("source").until(S.HANDED_OVER)
    victim.attack(victim.record(r.HandBack(EPOCH + 1, THERE)), victim.record(r.Running(EPOCH + 1, THERE)))
    result = victim.machine.result
    assert result is not None
    assert (result.outcome, victim.records) == (Outcome.UNDECIDED, ["session", "granted"])


def test_a_destination_that_lies_about_running() -> None:
    """[ONE-38] [CMP-2] RUNNING of a stranger's runner: the image is kept all the same."""
    for runner in r.NO_RUNNER, THERE, r.Runner("source.test", b"\x11" * 16):
        victim = at_home("source", F.RUNNING)
        victim.attack(victim.record(r.Running(EPOCH + 1, runner)))
        assert victim.machine.state is S.MOVED
        victim.end(C.CONNECTION_LOST)
        result = judge(victim, C.CONNECTION_LOST, told=False)
        assert result.outcome is Outcome.MOVED
        assert not victim.guest.released


def test_an_epoch_that_is_claimed_by_somebody_else() -> None:
    """[ONE-29] The store says no after HANDOVER: the guest is not run, and everything of it is freed."""
    victim = Victim("destination").until(D.CLAIMING)
    carry_out = victim.both._destination

    async def lose(request: object) -> object:
        answer = await carry_out(request)  # type: ignore[arg-type]
        return r.Runner("another", bytes(16)) if isinstance(request, Claim) else answer

    victim.both._destination = lose  # type: ignore[method-assign,assignment]
    victim.settle()
    result = judge(victim, C.STALE_EPOCH)
    assert result.outcome is Outcome.ROLLED_BACK
    assert not victim.room.has_run


@pytest.mark.parametrize("code", [C.STALE_EPOCH, C.BUSY, C.NOT_AUTHORISED])
def test_a_host_that_knows_better(code: ErrorCode) -> None:
    """[ONE-11] [ONE-12] The source is told, and its guest runs on."""
    both = pair()
    admit = both._destination

    async def refuse(request: object) -> object:
        if type(request).__name__ == "Admit":
            raise GuestError("an older claim", code)
        return await admit(request)  # type: ignore[arg-type]

    both._destination = refuse  # type: ignore[method-assign,assignment]
    both.run()
    assert both.source.result is not None
    assert (both.source.result.outcome, both.source.result.code) == (Outcome.ROLLED_BACK, code)
    assert both.source_guest.running  # type: ignore[attr-defined]
    assert both.destination_guest.machine is None  # type: ignore[attr-defined]


# ---- the next connection ----


HANDED = next(number for number, said in enumerate(recording()["destination"]) if said.frame == F.HANDOVER)


def session_at(host: PeerListHost, said: list[tuple[FrameType, bytes, bytes]], *, honest: int) -> Siege:
    """A session at this host: the recording up to a frame, then these frames, then a break."""
    sieges: list[Siege] = []

    async def script(siege: Siege) -> None:
        for frame, body, bulk in said:
            await siege.say(siege.frame(frame, body, bulk))
            await trio.sleep(0.1)
        siege.peer._outgoing.end(C.CONNECTION_LOST)

    async def main() -> None:
        siege = Siege("destination")
        sieges.append(siege)
        async with host.session() as session:
            session.cancel = siege.endpoint.cancel
            siege.endpoint._host = session
            await siege.run(honest, script)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return sieges[0]


def hello(epoch: int) -> tuple[FrameType, bytes, bytes]:
    return F.HELLO, with_epoch(F.HELLO, epoch), b""


def test_a_guest_that_was_handed_over_comes_again() -> None:
    """[ONE-11] [ONE-14] At the same host: the session replayed, an older claim, the epoch that runs here."""
    host = PeerListHost("host", None)
    permission = (F.HANDOVER, sample(F.HANDOVER), b"")
    first = session_at(host, [permission], honest=HANDED)
    assert first.room.has_run
    judge(first, C.CONNECTION_LOST, told=False)  # type: ignore[arg-type]

    replay = [(F(said.frame), said.body, said.bulk) for said in recording()["destination"]]
    for said in replay, [hello(EPOCH)]:
        second = session_at(host, said, honest=0)
        assert [each.frame for each in second.spoken] == [F.VERDICT]
        assert not second.room.has_run
    for epoch in EPOCH + 1, EPOCH - 1, 0:
        judge(session_at(host, [hello(epoch)], honest=0), C.STALE_EPOCH)  # type: ignore[arg-type]
    newer = session_at(host, [hello(EPOCH + 2)], honest=0)
    judge(newer, C.CONNECTION_LOST, told=False)  # type: ignore[arg-type]
    assert newer.spoken[0].frame == F.WELCOME


def test_a_session_that_was_cut_before_handover_comes_again() -> None:
    """[ONE-12] [CON-63] Nothing of it is left: neither its memory nor its place."""
    host = PeerListHost("host", None)
    for honest in 1, 4, HANDED:
        again = session_at(host, [], honest=honest)
        judge(again, C.CONNECTION_LOST, told=False)  # type: ignore[arg-type]
        assert not again.room.has_run


def test_no_state_before_handover_lets_a_guest_run() -> None:
    """[ONE-24] What the tables call committed begins with RECORDING, behind HANDOVER."""
    assert {D.LOADED, D.LOADING, S.SEALED, S.CONFIRMING, S.GRANTING, S.RECORDING} & COMMITTED == set()
    assert {D.RECORDING, S.HANDED_OVER} <= COMMITTED


def test_cancel_after_the_commit_is_too_late() -> None:
    """[CON-72] For the operator as for everybody."""
    for victim in Victim("source").until(S.HANDED_OVER), Victim("destination").until(D.CLAIMING):
        with pytest.raises(LocalProtocolError, match="too_late"):
            victim.machine.cancel(victim.now)
