"""A session is followed to its end, and whatever is changed in it is found where it is, by its clause."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observe_support import D, S, Tape, Unit, migration
from sterna.observe.budget import Budget
from sterna.observe.direction import Frame, Preface
from sterna.observe.follow import Follower
from sterna.observe.outcome import Ended, Runs
from sterna.observe.recording import How, RecordClock
from sterna.registry import ErrorCode as E
from sterna.registry import FrameType as F
from sterna.registry import Phase, Sender, Style
from sterna.wire import records as r
from sterna.wire import unchecked

TAPE = migration()
DAMAGED = migration(damage=[1])  # sixteen pages of round 1 are rejected


def test_a_real_migration_is_good() -> None:
    follower = TAPE.follow()
    assert follower.fault is None
    assert not follower.trouble
    outcome = follower.outcome()
    assert (outcome.ended, outcome.runs) == (Ended.COMPLETED, Runs.DESTINATION)
    summary = follower.summary
    assert summary.frames == {S: 27, D: 12}
    assert [seen.number for seen in summary.rounds] == [1, 2, 3, 4, 5]
    assert [seen.last for seen in summary.rounds] == [False, False, False, False, True]


def test_rejected_pages_are_part_of_a_good_session() -> None:
    """[CON-35] A page that differs from its hash in a running round, and is sent again."""
    follower = DAMAGED.follow()
    assert follower.fault is None
    assert follower.summary.rejected == 16
    assert DAMAGED.record(F.ROUND_ACK).rejected == (r.PageRange(0, 16, 16),)


def pages(tape: Tape, nth: int = 0) -> r.Pages:
    record = tape.record(F.PAGES, nth)
    assert isinstance(record, r.Pages)
    return record


def flipped(tape: Tape, nth: int) -> Tape:
    """A byte of a page is another."""
    raw = tape[tape.where(F.PAGES, nth)].raw
    return tape.replaced(F.PAGES, nth, raw[:-1] + bytes([raw[-1] ^ 0x40]))


def stale(tape: Tape) -> Tape:
    """The blackout's pages are those of the round before: well hashed, well counted, and old."""
    old = tape[tape.where(F.PAGES, -2)]
    new = unchecked.frame(
        F.PAGES,
        unchecked.body(replace(pages(tape, -2), round=pages(tape, -1).round)),
        old.bulk,
        sequence=tape[tape.where(F.PAGES, -1)].sequence,
    )
    return tape.replaced(F.PAGES, -1, new)


def twice(tape: Tape) -> Tape:
    """A batch goes twice in a round, and is counted."""
    at = tape.where(F.PAGES, 1)
    unit, end = tape[at], tape.record(F.ROUND_END)
    more = Tape([*tape[: at + 1], unit, *tape[at + 1 :]]).renumbered()
    last = more[more.where(F.ROUND_END) - 1].sequence
    return more.changed(
        F.ROUND_END,
        pages=end.pages + pages(tape, 1).page_count,
        bulk_bytes=end.bulk_bytes + len(unit.bulk),
        last_sequences=((0, last),),
    )


def added(at: tuple[F, int], sender: Sender, record: r.Record) -> Tape:
    return TAPE.inserted(TAPE.where(*at), sender, record)


def moved(of: tuple[F, int], to: tuple[F, int]) -> Tape:
    """A frame comes once more, before another one."""
    unit, at = TAPE[TAPE.where(*of)], TAPE.where(*to)
    return Tape([*TAPE[:at], unit, *TAPE[at:]]).renumbered()


def unanswered_round(tape: Tape) -> Tape:
    """The second round begins before the first is acknowledged."""
    return tape.swapped(F.ROUND_ACK, F.ROUND, 0, 1)


RANGE = r.PageRange(0, 0, 1)
PROGRESS = r.Progress(Phase.ROUNDS, 2, 64, 0, 9, 0, 0, 0)
ABORT = r.Abort(E.CANCELLED, Phase.ROUNDS)

ALTERED = {
    # what comes, and when
    "HELLO is missing": (lambda: TAPE.without(F.HELLO), "CON-3", E.UNEXPECTED_FRAME, D),
    "GUEST is missing": (lambda: TAPE.without(F.GUEST), "CON-3", E.UNEXPECTED_FRAME, D),
    "GUEST comes twice": (
        lambda: added((F.ROUND, 0), S, TAPE.record(F.GUEST)),
        "CON-3",
        E.UNEXPECTED_FRAME,
        S,
    ),
    "ROUND is missing": (lambda: TAPE.without(F.ROUND, 1), "CON-3", E.UNEXPECTED_FRAME, S),
    "ROUND_ACK is missing": (lambda: TAPE.without(F.ROUND_ACK), "CON-3", E.UNEXPECTED_FRAME, S),
    "ROUND_ACK comes twice": (
        lambda: added((F.ROUND, 1), D, TAPE.record(F.ROUND_ACK)),
        "CON-3",
        E.UNEXPECTED_FRAME,
        D,
    ),
    "ROUND before ROUND_ACK": (lambda: unanswered_round(TAPE), "CON-3", E.UNEXPECTED_FRAME, S),
    "ROUND_END and PAGES swapped": (
        lambda: TAPE.swapped(F.ROUND_END, F.PAGES, 0, 3),
        "RND-3",
        E.COUNT_MISMATCH,
        S,
    ),
    "SWITCHOVER is not answered": (lambda: TAPE.without(F.READY), "CON-3", E.UNEXPECTED_FRAME, S),
    "SEAL before STATE": (lambda: TAPE.swapped(F.SEAL, F.STATE), "SEA-3", E.COUNT_MISMATCH, S),
    "LOADED before SEAL": (lambda: TAPE.swapped(F.LOADED, F.SEAL), "CON-3", E.UNEXPECTED_FRAME, D),
    "HANDOVER without LOADED": (lambda: TAPE.without(F.LOADED), "CON-3", E.UNEXPECTED_FRAME, S),
    "RUNNING without HANDOVER": (lambda: TAPE.without(F.HANDOVER), "CON-3", E.UNEXPECTED_FRAME, D),
    "COMPLETE before RUNNING": (
        lambda: TAPE.swapped(F.COMPLETE, F.RUNNING),
        "CON-3",
        E.UNEXPECTED_FRAME,
        D,
    ),
    "RELEASE without COMPLETE": (lambda: TAPE.without(F.COMPLETE), "CON-3", E.UNEXPECTED_FRAME, S),
    "BYE without RELEASE": (lambda: TAPE.without(F.RELEASE), "CON-3", E.UNEXPECTED_FRAME, S),
    "ROUND_ACK in the blackout": (
        lambda: added((F.STATE, 0), D, replace(TAPE.record(F.ROUND_ACK), round=5, pages=16)),
        "CON-3",
        E.UNEXPECTED_FRAME,
        D,
    ),
    "the destination sends PAGES": (
        lambda: Tape([Unit(D, each.raw) if each.type == F.PAGES else each for each in TAPE]).renumbered(),
        "CON-4",
        E.WRONG_DIRECTION,
        D,
    ),
    "something behind BYE": (
        lambda: Tape([*TAPE, Unit(S, unchecked.frame(F.PING, bytes(8), sequence=27))]),
        "PNG-3",
        E.UNEXPECTED_FRAME,
        S,
    ),
    "something behind ABORT": (
        lambda: added((F.ROUND, 1), S, ABORT),
        "ABT-1",
        E.UNEXPECTED_FRAME,
        S,
    ),
    "what belongs on another connection": (
        lambda: added((F.GUEST, 0), S, r.Attach(bytes(16), bytes(32), 0, 0)),
        "CON-3",
        E.UNEXPECTED_FRAME,
        S,
    ),
    "what was not selected": (
        lambda: added((F.STATE, 0), S, r.DirtyBitmap(1, 0, 0, 8, 0, b"\1")),
        "NEG-7",
        E.NOT_SELECTED,
        S,
    ),
    "pages that follow where none was stale": (
        lambda: moved((F.PAGES, -1), (F.COMPLETE, 0)),
        "PCY-21",
        E.UNEXPECTED_FRAME,
        S,
    ),
    "an attempt is taken back": (
        lambda: TAPE.changed(F.ROUND, 1, attempt=2),
        "CON-23",  # what follows is of the one before
        E.BAD_ATTEMPT,
        S,
    ),
    "PING before WELCOME": (lambda: added((F.WELCOME, 0), S, r.Ping(1)), "CON-2", None, S),
    # what is said
    "another version": (lambda: TAPE.changed(F.WELCOME, version=0x20000), "NEG-2", E.UNSOLICITED, D),
    "a session without an id": (lambda: TAPE.changed(F.WELCOME, session=bytes(16)), "WEL-4", E.BAD_VALUE, D),
    "a feature that was not offered": (
        lambda: TAPE.changed(F.WELCOME, features=(*TAPE.record(F.WELCOME).features, r.FeatureChoice(999))),
        "NEG-5",
        E.UNSOLICITED,
        D,
    ),
    "limits that fit no session": (
        lambda: TAPE.changed(F.HELLO, limits={1: 4096}),
        "LIM-7",
        E.LIMIT_MISMATCH,
        D,
    ),
    "a granule above the limit": (
        lambda: TAPE.changed(F.WELCOME, limits={2: 1024}),
        "LIM-6",
        E.LIMIT_MISMATCH,
        S,
    ),
    "too little room": (lambda: TAPE.changed(F.ACCEPT, reserved_bytes=1), "CON-17", E.BAD_VALUE, D),
    "data streams": (lambda: TAPE.changed(F.ACCEPT, data_streams=1), "ACC-3", E.NOT_SELECTED, D),
    "a round is left out": (lambda: TAPE.changed(F.ROUND, 1, round=3), "CON-20", E.BAD_ROUND, S),
    "pages of another round": (lambda: TAPE.changed(F.PAGES, 1, round=2), "CON-21", E.BAD_ROUND, S),
    "the end of another round": (lambda: TAPE.changed(F.ROUND_END, 0, round=2), "CON-21", E.BAD_ROUND, S),
    "attempt 0": (lambda: TAPE.changed(F.PAGES, 1, attempt=0), "CON-22", E.BAD_ATTEMPT, S),
    "an attempt that was not begun": (
        lambda: TAPE.changed(F.PAGES, 1, attempt=2),
        "CON-23",
        E.BAD_ATTEMPT,
        S,
    ),
    "a wrong count of pages": (lambda: TAPE.changed(F.ROUND_END, 1, pages=17), "RND-3", E.COUNT_MISMATCH, S),
    "a wrong count of bytes": (
        lambda: TAPE.changed(F.ROUND_END, 1, bulk_bytes=0),
        "RND-3",
        E.COUNT_MISMATCH,
        S,
    ),
    "a wrong last sequence": (
        lambda: TAPE.changed(F.ROUND_END, 1, last_sequences=((0, 3),)),
        "RND-4",
        E.COUNT_MISMATCH,
        S,
    ),
    "a batch is dropped": (lambda: TAPE.without(F.PAGES, 1), "RND-3", E.COUNT_MISMATCH, S),
    "a page twice in a round": (lambda: twice(TAPE), "CON-27", E.COUNT_MISMATCH, S),
    "another round acknowledged": (lambda: TAPE.changed(F.ROUND_ACK, 1, round=1), "CON-30", E.BAD_ROUND, D),
    "too few acknowledged": (lambda: TAPE.changed(F.ROUND_ACK, 1, pages=15), "CON-32", E.COUNT_MISMATCH, D),
    "a page rejected that was not sent": (
        lambda: TAPE.changed(F.ROUND_ACK, 1, pages=15, rejected=(r.PageRange(0, 40, 1),)),
        "CON-33",
        E.COUNT_MISMATCH,
        D,
    ),
    "a good page rejected": (
        lambda: TAPE.changed(F.ROUND_ACK, 0, pages=63, rejected=(RANGE,)),
        "CON-35",
        E.COUNT_MISMATCH,
        D,
    ),
    "a damaged page acknowledged": (lambda: flipped(TAPE, 1), "CON-35", E.COUNT_MISMATCH, D),
    "damaged pages acknowledged, others not": (
        lambda: DAMAGED.changed(F.ROUND_ACK, 0, rejected=(r.PageRange(0, 32, 16),)),
        "CON-35",
        E.COUNT_MISMATCH,
        D,
    ),
    "a damaged page in the blackout": (lambda: flipped(TAPE, -1), "CON-47", E.PAGE_HASH, S),
    "a stale page": (lambda: stale(TAPE), "MEM-15", E.DIGEST_MISMATCH, S),
    "a wrong style": (lambda: TAPE.changed(F.SWITCHOVER, style=Style.BITMAP), "SWI-1", E.NOT_SELECTED, S),
    "READY of another attempt": (lambda: TAPE.changed(F.READY, attempt=2), "CON-25", E.BAD_ATTEMPT, D),
    "a wrong count of sections": (
        lambda: TAPE.changed(F.SEAL, state_sections=2),
        "SEA-3",
        E.COUNT_MISMATCH,
        S,
    ),
    "a wrong memory digest": (lambda: TAPE.changed(F.SEAL, digest=bytes(16)), "MEM-15", E.DIGEST_MISMATCH, S),
    "a wrong state digest": (
        lambda: TAPE.changed(F.SEAL, state_digest=bytes(16)),
        "MEM-19",
        E.DIGEST_MISMATCH,
        S,
    ),
    "another state": (
        lambda: TAPE.changed(F.STATE, data=b"\xff" + TAPE.record(F.STATE).data[1:]),
        "MEM-19",
        E.DIGEST_MISMATCH,
        S,
    ),
    "a fragment at the wrong place": (
        lambda: TAPE.changed(F.STATE, offset=8, total_bytes=TAPE.record(F.STATE).total_bytes + 8),
        "STA-5",
        E.BAD_FRAGMENT,
        S,
    ),
    "another digest loaded": (
        lambda: TAPE.changed(F.LOADED, digest=bytes(16)),
        "CON-53",
        E.DIGEST_MISMATCH,
        D,
    ),
    "HANDOVER of another epoch": (lambda: TAPE.changed(F.HANDOVER, epoch=9), "HND-1", E.BAD_EPOCH, S),
    "RUNNING in another epoch": (lambda: TAPE.changed(F.RUNNING, epoch=0), "RUN-1", E.BAD_EPOCH, D),
    "COMPLETE in another epoch": (lambda: TAPE.changed(F.COMPLETE, epoch=0), "CMP-4", E.BAD_EPOCH, D),
    "another digest complete": (
        lambda: TAPE.changed(F.COMPLETE, digest=bytes(16)),
        "CMP-1",
        E.MEMORY_MISMATCH,
        D,
    ),
    "RELEASE of another epoch": (lambda: TAPE.changed(F.RELEASE, epoch=0), "CMP-4", E.BAD_EPOCH, S),
    "PONG without PING": (lambda: TAPE.changed(F.PONG, id=99), "PNG-2", E.UNSOLICITED, D),
    "PROGRESS runs backwards": (
        lambda: added((F.ROUND, 2), S, PROGRESS).inserted(
            TAPE.where(F.ROUND, 2), S, replace(PROGRESS, round=3)
        ),
        "CON-80",
        None,
        S,
    ),
    "PROGRESS all the time": (
        lambda: spliced(F.ROUND, told(PROGRESS) * 40),
        "PRG-1",
        E.LIMIT_RATE,
        S,
    ),
    # bytes
    "a bad preface": (lambda: Tape([Unit(S, b"GET / HTTP/1.1\r\n"), *TAPE[1:]]), "PRE-5", E.HTTP_ON_PLAIN, S),
    "a header bit": (
        lambda: TAPE.patched(F.ROUND, 1, 2, b"\1", repair=False),
        "HDR-2",
        E.HEADER_CHECKSUM,
        S,
    ),
    "flags": (lambda: TAPE.patched(F.ROUND, 1, 2, b"\1"), "HDR-3", E.BAD_HEADER, S),
    "another stream": (lambda: TAPE.patched(F.ROUND, 1, 4, b"\1"), "HDR-5", E.BAD_HEADER, S),
    "a sequence number": (lambda: TAPE.patched(F.ROUND_ACK, 1, 8, b"\1"), "HDR-6", E.BAD_SEQUENCE, D),
    "a body bit": (lambda: TAPE.patched(F.SEAL, 0, 40, b"\2", repair=False), "HDR-10", E.BODY_CHECKSUM, S),
    "reserved bytes of a body": (lambda: TAPE.patched(F.SEAL, 0, 32 + 12, b"\1"), "FRM-3", E.BAD_VALUE, S),
    "an unknown critical frame": (
        lambda: TAPE.patched(F.SWITCHOVER, 0, 0, b"\x7f\xff"),
        "FRM-6",
        E.UNKNOWN_CRITICAL,
        S,
    ),
    "a frame above the limit of the handshake": (
        lambda: Tape([TAPE[0], Unit(S, unchecked.frame(F.HELLO, bytes(65537)))]),
        "LIM-5",
        E.LIMIT_CONTROL,
        S,
    ),
    "a frame above the announced limit": (
        lambda: TAPE.changed(F.WELCOME, limits={1: 65536}).replaced(
            F.STATE, 0, unchecked.frame(F.STATE, bytes(65537), sequence=TAPE[TAPE.where(F.STATE)].sequence)
        ),
        "HDR-7",
        E.LIMIT_CONTROL,
        S,
    ),
    "an encoding that was not selected": (
        lambda: TAPE.changed(
            F.WELCOME,
            features=tuple(each for each in TAPE.record(F.WELCOME).features if each.id != 32),
        ).changed(F.PAGES, 0, runs=zeroed(pages(TAPE).runs), hashes=pages(TAPE).hashes[:0]),
        "PGS-9",
        E.NOT_SELECTED,
        S,
    ),
}


def told(*records: r.Record) -> list[Unit]:
    """Frames of the source."""
    return [Unit(S, unchecked.frame(record.type, unchecked.body(record))) for record in records]


def spliced(before: F, more: list[Unit]) -> Tape:
    """More frames before the first one of a type."""
    at = TAPE.where(before)
    return Tape([*TAPE[:at], *more, *TAPE[at:]]).renumbered()


def zeroed(runs):
    changed = runs.copy()
    changed["encoding"], changed["size_bytes"] = 1, 0
    return changed


@pytest.mark.parametrize("name", ALTERED)
def test_what_was_altered_is_found(name: str) -> None:
    """[CON-3] [CON-4] [CON-26] [CON-27] [CON-35] [CON-44] [CON-80], and the clause of each row."""
    alter, clause, code, sender = ALTERED[name]
    follower = alter().follow()
    assert follower.fault is not None
    fault = follower.fault
    assert (fault.clause, fault.code, fault.sender) == (clause, code, sender), fault
    assert fault.detail or fault.code


def test_the_first_thing_that_is_wrong_counts() -> None:
    """[FRM-11] And says where: the frame's offset, its number, and the place in it."""
    tape = TAPE.changed(F.SEAL, digest=bytes(16)).patched(F.ROUND, 1, 6, b"\1")
    fault = tape.follow().fault
    assert fault is not None
    at = tape.where(F.ROUND, 1)
    before = sum(len(unit.raw) for unit in tape[:at] if unit.sender is S)
    assert (fault.clause, fault.offset, fault.sequence, fault.frame) == ("HDR-4", before, 9, F.ROUND)
    assert fault.at == 6
    assert fault.time_ns == at * 1_000_000


def test_what_follows_a_fault_is_still_seen() -> None:
    """So that a reader sees how the other side answered it."""
    tape = TAPE.changed(F.ROUND_END, 0, pages=1)
    at = tape.where(F.ROUND_END)
    words = r.Abort(E.COUNT_MISMATCH, Phase.ROUNDS, F.ROUND_END, 7, 0, "no")
    seen = Tape(tape[: at + 1]).inserted(at + 1, D, words).seen()
    assert [each.fault is not None for each in seen[-2:]] == [True, False]
    assert seen[-1].what.record == words


@pytest.mark.slow
def test_the_end_may_fall_anywhere() -> None:
    """[CON-69] [FRM-10] A cut session is no bad stream, wherever the cut is; what it means is told."""
    for at, unit in enumerate(TAPE):
        for size in {0, 1, len(unit.raw) // 2, len(unit.raw) - 1}:
            cut = Tape([*TAPE[:at], Unit(unit.sender, unit.raw[:size])])
            follower = cut.follow(end=How.LOST)
            assert follower.fault is None, (at, size)
            assert follower.outcome().ended is not Ended.ABORTED


@pytest.mark.slow
@settings(max_examples=30)
@given(st.data())
def test_how_bytes_are_cut_does_not_matter(data: st.DataObject) -> None:
    """[FRM-13] `chunking`, for good sessions and for bad ones."""
    names = [*ALTERED, ""]
    name = data.draw(st.sampled_from(names))
    tape = ALTERED[name][0]() if name else DAMAGED
    whole, pieces = Follower(keep_bytes=40), Follower(keep_bytes=40)
    size = data.draw(st.integers(50, 5000))
    seen: list[list[object]] = [[], []]
    for unit in tape:
        seen[0] += whole.feed(unit.sender, unit.raw)
        for at in range(0, len(unit.raw), size):
            seen[1] += pieces.feed(unit.sender, unit.raw[at : at + size])
    assert seen[0] == seen[1]
    assert whole.fault == pieces.fault
    assert whole.outcome() == pieces.outcome()


@given(st.lists(st.tuples(st.sampled_from([S, D]), st.binary(max_size=80)), max_size=20), st.data())
def test_any_bytes_give_a_verdict(junk: list[tuple[Sender, bytes]], data: st.DataObject) -> None:
    """`coded-refusal`: rubbish behind, or instead of, a part of a session."""
    follower = Follower()
    for unit in TAPE[: data.draw(st.integers(0, len(TAPE)))]:
        list(follower.feed(unit.sender, unit.raw))
    for sender, raw in junk:
        list(follower.feed(sender, raw))
    for sender in (S, D):
        follower.end(sender, How.LOST)
    assert follower.outcome().text
    assert not follower.trouble


@pytest.mark.slow
@given(st.data())
def test_any_damage_gives_a_verdict(data: st.DataObject) -> None:
    """One byte is another: it is found, unless it is of a page that is sent again, or nobody checks it."""
    at = data.draw(st.integers(0, len(TAPE) - 1))
    unit = TAPE[at]
    offset = data.draw(st.integers(0, len(unit.raw) - 1))
    flip = data.draw(st.integers(1, 255))
    raw = unit.raw[:offset] + bytes([unit.raw[offset] ^ flip]) + unit.raw[offset + 1 :]
    tape = Tape([*TAPE[:at], Unit(unit.sender, raw), *TAPE[at + 1 :]])
    follower = tape.follow()
    of_the_version = at in {0, 2} and offset >= 12  # [PRE-6]
    assert (follower.fault is None) == of_the_version


def test_a_guest_that_is_too_large_for_the_reader() -> None:
    """No fault of anybody's: the reader says that it cannot judge."""
    follower = TAPE.follow(Follower(budget=Budget(1000)))
    assert follower.fault is None
    assert "a guest of 64 pages" in follower.trouble
    assert follower.outcome().ended is Ended.COMPLETED


def test_what_is_announced_is_not_allocated() -> None:
    """`bounded`: an exbibyte of memory, a guest of thousands of regions, sections without end."""
    limits = dict.fromkeys(range(1, 8), (1 << 64) - 1)
    huge = replace(TAPE.record(F.GUEST).regions[0], size_bytes=1 << 60)
    tape = TAPE.changed(F.WELCOME, limits=limits).changed(F.ACCEPT, reserved_bytes=1 << 60)
    follower = tape.changed(F.GUEST, regions=(huge,)).follow()
    assert "a guest of 281474976710656 pages" in follower.trouble
    some = tuple(replace(huge, id=at, address=at << 20, size_bytes=4096) for at in range(5000))
    crowd = TAPE.changed(F.WELCOME, limits=limits).changed(F.GUEST, regions=some)
    follower = crowd.follow(Follower(budget=Budget(1 << 20)))
    assert "the guest's description takes" in follower.trouble
    assert follower.summary.guest is None
    budget = Budget(1 << 20)
    empty = TAPE.record(F.STATE)
    sections = [replace(empty, instance=at, total_bytes=0, data=b"", last=True) for at in range(2000)]
    many = TAPE.changed(F.WELCOME, limits=limits)
    at = many.where(F.STATE)
    long = Tape([*many[:at], *told(*sections), *many[at:]]).renumbered()
    assert "execution state takes" in long.follow(Follower(budget=budget)).trouble


def test_limits_beyond_the_reader_s_own() -> None:
    limit = 1 << 40
    tape = TAPE.changed(F.WELCOME, limits={1: limit, 2: limit, 4: limit})
    huge = unchecked.frame(F.STATE, b"", body_bytes=(16 << 20) + 1, sequence=3)
    follower = Tape([*tape.until(F.ROUND), Unit(S, huge)]).follow()
    assert follower.fault is None
    assert "a longer frame" in follower.trouble
    follower = Tape([*TAPE.until(F.ROUND), Unit(S, huge)]).follow()
    assert follower.fault is not None
    spoilt = tape.until(F.ROUND).changed(F.ACCEPT, reserved_bytes=0)
    follower = Tape([*spoilt, Unit(S, huge)]).follow()
    assert follower.fault is not None  # what was wrong before stays so
    assert not follower.trouble


def test_a_connection_that_ends_before_it_is_one() -> None:
    """[PRE-2] [PRE-7] The beginning of the magic may be cut; anything else is no preface."""
    for start, clause in ((b"\x89STE", None), (b"HTT", "PRE-2")):
        follower = Tape([Unit(S, start)]).follow()
        assert (follower.fault and follower.fault.clause) == clause


def test_times_of_a_recording_without_a_clock_are_not_judged() -> None:
    """[PRG-1]"""
    tape = spliced(F.ROUND, told(PROGRESS) * 40).until(F.ROUND)
    assert tape.follow(Follower(clock=RecordClock.NONE)).fault is None


def test_what_is_seen_is_what_was_sent() -> None:
    seen = TAPE.seen(keep_bytes=1 << 20)
    assert [each.what.raw for each in seen] == [unit.raw for unit in TAPE]
    assert isinstance(seen[0].what, Preface)
    assert (seen[0].what.major, seen[0].what.draft) == (1, 1)
    offsets = [each.what.offset for each in seen if isinstance(each.what, Frame) and each.sender is S]
    assert offsets[:2] == [16, 16 + len(TAPE[1].raw)]


def test_grease_is_skipped() -> None:
    """[FRM-7]"""
    grease = Unit(S, unchecked.frame(0x7F01, b"anything"))
    at = TAPE.where(F.SEAL)
    follower = Tape([*TAPE[:at], grease, *TAPE[at:]]).renumbered().follow()
    assert follower.fault is None
    assert follower.summary.skipped == 1


def test_a_session_of_another_mode_cannot_be_followed() -> None:
    """[CON-10]"""
    hello = replace(TAPE.record(F.HELLO), mode=2, session=b"\1" * 16)
    raw = unchecked.frame(F.HELLO, unchecked.body(hello))
    follower = TAPE.replaced(F.HELLO, 0, raw).follow()
    assert follower.fault is not None
    assert (follower.fault.clause, follower.fault.code) == ("CON-10", E.UNSUPPORTED)


def test_a_destination_that_refuses_before_it_has_heard_anything() -> None:
    """[CON-8] It knows by TLS who is there; the source's HELLO was under way, or had not left."""
    refusal = Unit(D, unchecked.frame(F.REFUSE, unchecked.body(r.Refuse(E.NOT_AUTHORISED))))
    for tape in (Tape([TAPE[2], refusal]), Tape([TAPE[0], TAPE[2], refusal, TAPE[1]])):
        follower = tape.follow()
        assert follower.fault is None
        assert follower.outcome().ended is Ended.REFUSED
    late = Tape([TAPE[2], refusal, Unit(D, unchecked.frame(F.ABORT, bytes(25), sequence=1))]).follow()
    assert late.fault is not None
    assert late.fault.clause == "CON-67"


@pytest.mark.parametrize("by", [S, D])
def test_what_was_under_way_when_a_side_ended_the_session(by: Sender) -> None:
    """[CON-68] The other side's frames, and even damage to them, prove nothing against it."""
    at = TAPE.where(F.PAGES, 1)
    tape = Tape(TAPE[:at]).inserted(at, by, ABORT)
    other = D if by is S else S
    late = Unit(other, b"anything that is no frame but is long enough to be one")
    follower = Tape([*tape, late]).follow()
    assert follower.fault is None
    assert follower.outcome().ended is Ended.ABORTED
