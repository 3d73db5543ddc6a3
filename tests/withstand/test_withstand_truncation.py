"""A whole migration that ends after every single byte, in both directions.

Each byte of what either side hears is once the last one. Then the connection is closed properly, or breaks,
or stays open in silence. The end of a stream is never taken for its success; a frame that is not whole has
not been said.

Published bugs of this class: Cloud Hypervisor took the end of the connection for the end of post-copy, and
asserted where bytes were missing; QEMU's device sections had no length, so that a stream that lacked a byte
was read on as something else until a footer was introduced; TLS streams that were cut without close_notify
passed for whole ones (QEMU's multifd has a compatibility flag for it).

[FRM-10] [PRE-7] [CON-69] [CON-70] [CON-74] [CON-75] [ONE-20] [ONE-30] [ONE-49]
"""

from __future__ import annotations

import functools

import pytest
from withstand_judge import check_guest, judge
from withstand_support import PARAMETERS, ROLES, SMALL, Said, Victim, recording

from sterna.core.events import Outcome
from sterna.core.tables import SourceState
from sterna.guest.workload import WorkloadParameters
from sterna.limits import PREFACE_BYTES
from sterna.registry import ErrorCode, FrameType
from sterna.wire import unchecked

C = ErrorCode
# Of the bytes of pages every one is the last once, of the small guest; where page bytes come in the blackout
# too, and for breaks and silence, it is one in so many.
BULK_STEP = 61
PREFACE = unchecked.preface()


@functools.cache
def places(role: str, guest: WorkloadParameters) -> list[tuple[int, int]]:
    """Every place at which what a side hears can end: whole frames before it, and bytes of the next one.

    The preface counts as part of the first.
    """
    found = [(0, 0)]
    for number, said in enumerate(recording(parameters=guest)[role]):
        length = len(said.raw) + (PREFACE_BYTES if number == 0 else 0)
        found += [(number, count) for count in range(1, length)] + [(number + 1, 0)]
    return found


def heard(role: str, frames: int, count: int, guest: WorkloadParameters = PARAMETERS) -> Victim:
    """A victim that has heard so many frames, and then so many bytes of the next one."""
    victim = Victim(role, parameters=guest)
    if role == "source":
        victim.until(SourceState.GREETING)
    while victim.next < frames:
        next(victim._moves)
    victim.settle()
    rest: tuple[Said, ...] = victim.recorded[role][frames:]
    if count:
        start = b"" if frames else PREFACE
        victim._prefaced = True
        victim.attack((start + rest[0].raw)[:count])
    return victim


def check(victim: Victim, *codes: ErrorCode, told: bool) -> None:
    """One coded end; a migration that was complete stays so [CON-70]."""
    result = victim.machine.result
    assert result is not None
    if result.error is None:
        assert result.outcome is Outcome.COMPLETED
        check_guest(victim, result)
        return
    judge(victim, *codes, told=told)


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_the_end_after_every_byte(role: str) -> None:
    """[FRM-10] [PRE-7] [CON-69] Closed as it should be: the code tells whether a frame was cut."""
    outcomes = set()
    for frames, count in places(role, SMALL):
        victim = heard(role, frames, count, SMALL)
        over = victim.machine.result
        victim.end()
        between = not count or (frames, count) == (0, PREFACE_BYTES)
        if over is None:
            check(victim, C.CONNECTION_LOST if between else C.TRUNCATED, told=False)
        else:
            assert victim.machine.result is over
        assert victim.machine.result is not None
        outcomes.add(victim.machine.result.outcome)
    known = {Outcome.ROLLED_BACK, Outcome.MOVED, Outcome.COMPLETED}
    assert outcomes == (known | {Outcome.UNDECIDED} if role == "source" else known)


def sparse(role: str) -> list[tuple[int, int]]:
    """The places of a side, but of the bytes of pages only one in so many."""
    kept = []
    for frames, count in places(role, PARAMETERS):
        said = recording()[role][frames : frames + 1]
        into_bulk = count - len(said[0].raw) + len(said[0].bulk) if said and count else 0
        if into_bulk <= 0 or into_bulk % BULK_STEP == 0:
            kept.append((frames, count))
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_a_break_after_every_byte(role: str) -> None:
    """[CON-69] Reset, or without its closing exchange: the transport's code, whatever was cut."""
    for number, (frames, count) in enumerate(sparse(role)):
        victim = heard(role, frames, count)
        over = victim.machine.result
        code = (C.CONNECTION_LOST, C.NOT_CLOSED)[number % 2]
        victim.end(code)
        if over is None:
            check(victim, code, told=False)


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_silence_after_every_byte(role: str) -> None:
    """[CON-74] [CON-75] The connection stays open and nothing comes: half-open peers, lost packets."""
    for frames, count in sparse(role):
        victim = heard(role, frames, count)
        began = victim.now
        if victim.machine.result is None:
            victim.starve()
            check(victim, C.PHASE_DEADLINE, C.PEER_SILENT, told=True)
            assert victim.now - began <= 12.0, "noticed in seconds"


@pytest.mark.parametrize("role", ROLES)
def test_bytes_come_one_by_one(role: str) -> None:
    """[FRM-13] The same conversation in reads of one byte ends as it should."""
    victim = heard(role, 0, 0)
    victim._prefaced = True
    stream = PREFACE + b"".join(said.raw for said in victim.recorded[role])
    for at in range(len(stream)):
        victim.hear(stream[at : at + 1])
        victim.settle()
    result = victim.machine.result
    assert result is not None
    assert result.outcome is Outcome.COMPLETED
    assert result.code is None
    check_guest(victim, result)


def test_every_kind_of_end_is_among_the_places() -> None:
    """The recordings have page bytes, state, and what must not be lost: permission, and its use."""
    for guest in PARAMETERS, SMALL:
        heard_by = recording(parameters=guest)
        kinds = {said.frame for role in ROLES for said in heard_by[role]}
        assert kinds >= {
            FrameType.PAGES,
            FrameType.STATE,
            FrameType.HANDOVER,
            FrameType.RUNNING,
            FrameType.BYE,
        }
        assert sum(len(said.bulk) for said in heard_by["destination"]) >= 4096
        for role in ROLES:
            stream_bytes = PREFACE_BYTES + sum(len(said.raw) for said in heard_by[role])
            assert len(places(role, guest)) == stream_bytes + 1
