"""The destination's machine against a scripted source."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from core_support import (
    ADMISSION,
    EPOCH,
    GUEST,
    HERE,
    IMAGE,
    PAGE,
    REGION,
    SECTION,
    SESSION,
    THERE,
    TOKEN,
    VERDICT,
    AskedRig,
    DestinationRig,
    code_of,
    discarded,
)

from sterna.core import events as e
from sterna.core import records
from sterna.core.events import Outcome
from sterna.core.negotiate import BASE_FEATURES, VERSION, offer
from sterna.core.records import SessionRecord, Side
from sterna.core.tables import DestinationState
from sterna.errors import GuestError, LocalProtocolError
from sterna.limits import Limits
from sterna.registry import (
    ERRORS,
    Encoding,
    ErrorCode,
    Feature,
    FrameType,
    Limit,
    Mode,
    Phase,
    RegionKind,
    Style,
    Transfer,
)
from sterna.wire import records as r
from sterna.wire.pages import make_runs
from sterna.wire.records import Region

D = DestinationState
WRONG = b"\xee" * 16
NO_HASHES = np.empty(0, np.uint64)


def refused(rig, code):
    """A REFUSE, and the way back."""
    last = rig.last()
    assert isinstance(last, r.Refuse)
    assert (last.code, last.text) == (code, ERRORS[code].text)
    discarded(rig, code)
    return last


# ---- opening ----


def test_a_session_is_admitted_by_the_host():
    """[CON-8] [CON-9] [NEG-11]"""
    rig = DestinationRig(agent="me", limits=Limits(regions=7))
    assert rig.drain() == []
    hello = rig.hello()
    rig.say(hello)
    assert rig.drain() == []
    admit = rig.take(e.Admit)
    assert admit.hello == hello
    rig.machine.complete(admit, ADMISSION, rig.now)
    welcome = rig.last()
    assert (welcome.session, welcome.token, welcome.version, welcome.agent) == (SESSION, TOKEN, VERSION, "me")
    assert {each.id: each.parameter for each in welcome.features} == {
        each.id: each.parameter for each in offer()
    }
    assert welcome.limits[Limit.REGIONS] == 7
    assert (welcome.generation, welcome.complete_round, welcome.held_frames) == (0, 0, 0)
    (opened,) = rig.events(e.SessionOpened)
    assert (opened.session, opened.peer_agent) == (SESSION, "rig")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"versions": (VERSION + 1, 9 << 16)}, ErrorCode.NO_COMMON_VERSION),  # [NEG-1] [VRS-3]
        ({"features": offer()[1:]}, ErrorCode.MISSING_FEATURE),  # [NEG-4] [MEM-17]
        ({"features": (*offer(), r.FeatureOffer(4711, required=True))}, ErrorCode.MISSING_FEATURE),  # [NEG-4]
        ({"mode": Mode.RESUME, "session": SESSION}, ErrorCode.UNSUPPORTED),  # [CON-10]
        ({"mode": Mode.STORED}, ErrorCode.UNSUPPORTED),  # [STO-7]
        ({"limits": {Limit.CONTROL_BYTES: 65535}}, ErrorCode.LIMIT_MISMATCH),  # [LIM-7]
        ({"limits": {Limit.BULK_BYTES: 0}}, ErrorCode.LIMIT_MISMATCH),  # [LIM-7]
    ],
    ids=str,
)
def test_a_hello_that_does_not_fit(changes, code):
    """[CON-11] Before the host has been asked."""
    rig = DestinationRig()
    rig.say(rig.hello(**changes))
    assert rig.wishes == [e.Discard]
    refused(rig, code)


@pytest.mark.parametrize(
    "changes", [{"versions": ()}, {"epoch": (1 << 64) - 1}, {"features": offer() * 2}], ids=str
)
def test_a_hello_that_breaks_a_rule(changes):
    """[CON-11] [CON-12] [HEL-2] [HEL-3] [HEL-8]"""
    rig = DestinationRig()
    rig.say(rig.hello(**changes))
    refused(rig, ErrorCode.BAD_VALUE)


def test_what_is_no_hello():
    """[HEL-1] [CON-11] An ABORT: nobody has asked for a session."""
    rig = DestinationRig()
    rig.say(GUEST)
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME
    assert isinstance(rig.heard[-1], r.Abort)
    discarded(rig, ErrorCode.UNEXPECTED_FRAME)


@pytest.mark.parametrize(
    "start", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x00\x00\x00\x00", b"nonsense"]
)
def test_another_protocol(start):
    """[PRE-2] [PRE-4] [PRE-5]"""
    rig = DestinationRig()
    rig.say_bytes(start)
    assert isinstance(rig.last(), r.Abort)
    rig.do(e.Discard)
    assert rig.machine.result.code in {
        ErrorCode.HTTP_ON_PLAIN,
        ErrorCode.TLS_ON_PLAIN,
        ErrorCode.BAD_MAGIC,
    }


def test_a_hello_that_is_repeated():
    """[CON-3] In whatever mode."""
    for mode in (Mode.OPEN, Mode.RESUME, Mode.VERDICT):
        for state in (D.ADMITTING, D.WELCOMED, D.STANDBY, D.LOADED):
            rig = DestinationRig().until(state)
            rig.say(rig.hello(mode=mode, session=SESSION if mode else bytes(16)))
            assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME, (mode, state)
            assert isinstance(rig.heard[-1], r.Abort)


class UnfitError(GuestError):
    """What a host may raise to say more than a code."""

    def __init__(self, code, items):
        super().__init__("unfit", code)
        self.items = items


@pytest.mark.parametrize("kind", [e.Admit, e.Reserve])
@pytest.mark.parametrize(
    "code", [ErrorCode.NOT_AUTHORISED, ErrorCode.BUSY, ErrorCode.FULL, ErrorCode.CPU_FEATURES]
)
def test_a_host_that_refuses(kind, code):
    """[CON-9] [CON-11] [CON-14] [CON-15] [FRM-14]"""
    rig = DestinationRig(retry_after_ms=4711).until(D.ADMITTING if kind is e.Admit else D.RESERVING)
    rig.break_(kind, GuestError("/secret/path is missing", code))
    refusal = refused(rig, code)
    assert refusal.retry_after_ms == (4711 if code in {ErrorCode.BUSY, ErrorCode.FULL} else 0)
    assert refusal.items == ()
    assert "secret" not in refusal.text


def test_a_refusal_lists_what_is_missing():
    """[CON-16] [REF-1] [TXT-3] [TXT-4] In words that fit, whatever the host says."""
    items = ["avx512f", "a\nb\x00\x9f\ud800c", "ü" * 200, 7, *(f"x{number}" for number in range(100))]
    rig = DestinationRig().until(D.RESERVING)
    rig.break_(e.Reserve, UnfitError(ErrorCode.CPU_FEATURES, items))
    listed = refused(rig, ErrorCode.CPU_FEATURES).items
    assert listed[:4] == ("avx512f", "abc", "ü" * 127, "7")
    assert len(listed) == 64
    rig = DestinationRig().until(D.RESERVING)
    rig.break_(e.Reserve, UnfitError(ErrorCode.CPU_FEATURES, "avx512f"))
    assert refused(rig, ErrorCode.CPU_FEATURES).items == ()


# ---- the guest ----


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(regions=0), ErrorCode.LIMIT_REGIONS),  # [GST-2]
        (Limits(memory_bytes=4 * PAGE - 1), ErrorCode.LIMIT_MEMORY),  # [GST-9]
        (Limits(state_bytes=4095), ErrorCode.LIMIT_STATE),  # [GST-10]
        (Limits(bulk_bytes=PAGE - 1), ErrorCode.PAGE_SIZE),  # [CON-15]
    ],
)
def test_a_guest_that_is_larger_than_announced(limits, code):
    """[CON-11] [CON-15] [LIM-4] Refused before anything is allocated."""
    rig = DestinationRig(limits=limits).until(D.WELCOMED)
    rig.say(GUEST)
    assert rig.wishes == [e.Discard]
    refused(rig, code)


@pytest.mark.parametrize(
    "regions",
    [
        (),  # [GST-1]
        (REGION, REGION),  # [GST-3]
        (replace(REGION, granule_log2=11),),  # [GST-4]
        (replace(REGION, size_bytes=PAGE + 1),),  # [GST-6]
        (REGION, replace(REGION, id=1, address=PAGE)),  # [GST-8]
    ],
    ids=len,
)
def test_a_guest_that_makes_no_sense(regions):
    """[CON-11] That is no guest that could be refused."""
    rig = DestinationRig().until(D.WELCOMED)
    rig.say(replace(GUEST, regions=regions))
    assert isinstance(rig.last(), r.Abort)
    discarded(rig, ErrorCode.BAD_REGION)


def test_a_second_guest():
    """[GST-13]"""
    for state in (D.RESERVING, D.STANDBY, D.RECEIVING, D.RUNNING):
        rig = DestinationRig().until(state)
        rig.say(GUEST)
        assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME
        assert isinstance(rig.heard[-1], r.Abort), state


def test_what_is_reserved_is_accepted():
    """[ACC-1] [CON-17]"""
    rig = DestinationRig(
        guest=replace(GUEST, regions=(REGION, r.Region(1, 1 << 40, PAGE, transfer=Transfer.SHARED)))
    )
    rig.until(D.RESERVING)
    assert rig.take(e.Reserve).guest == rig.guest
    rig.drain()
    assert r.Accept not in [type(each) for each in rig.heard]
    rig.machine.complete(rig.asked[-1], rig.sink(), rig.now)
    assert rig.last() == r.Accept(5 * PAGE)


@pytest.mark.parametrize("record", ["pages", "round"])
def test_pages_before_accept(record):
    """[PGS-1] [CON-3]"""
    rig = DestinationRig().until(D.RESERVING)
    rig.round = 1
    rig.pages() if record == "pages" else rig.begin()
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME
    assert e.Reserve not in [type(each) for each in rig.asked]
    assert rig.wishes == [e.Discard]


def test_pages_before_guest():
    """[PGS-1]"""
    rig = DestinationRig().until(D.WELCOMED)
    rig.round = 1
    rig.pages()
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME


# ---- misuse ----


@pytest.mark.parametrize(
    ("kind", "state", "answer"),
    [
        (e.Admit, D.ADMITTING, None),
        (e.Admit, D.ADMITTING, THERE),
        (e.Admit, D.ADMITTING, replace(ADMISSION, session=bytes(16))),
        (e.Admit, D.ADMITTING, replace(ADMISSION, token=b"short")),
        (e.Reserve, D.RESERVING, None),
        (e.Reserve, D.RESERVING, bytearray(4 * PAGE)),
        (e.Claim, D.CLAIMING, None),
        (e.Claim, D.CLAIMING, True),
    ],
)
def test_an_answer_of_the_wrong_type(kind, state, answer):
    """Nothing has changed, and the right answer can still be given."""
    rig = DestinationRig().until(state)
    request = rig.take(kind)
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match=kind.__name__):
            rig.machine.complete(request, answer, rig.now)
        assert rig.machine.state is state
    rig.machine.complete(request, rig.answer(request), rig.now)
    assert rig.machine.state is not state


# ---- rounds ----


def test_a_round():
    """[CON-20] [CON-30] [CON-31] [CON-32] [MEM-8]"""
    rig = DestinationRig().until(D.STANDBY)
    rig.begin()
    rig.now += 2.0
    rig.pages()
    assert rig.drain() == []
    rig.finish_round()
    assert rig.last() == r.RoundAck(1, 1, 4, PAGE)
    assert bytes(rig.memory[0]) == IMAGE
    (started,) = rig.events(e.RoundStarted)
    assert (started.round, started.pages, started.last) == (1, 4, False)


def test_rounds_are_told():
    rig = DestinationRig().until(D.FROZEN)
    told = [event for event in rig.events() if isinstance(event, (e.RoundStarted, e.RoundFinished))]
    assert [type(event) for event in told] == [e.RoundStarted, e.RoundFinished] * 2
    assert [event.last for event in told[::2]] == [False, True]
    assert [event.stats.pages for event in told[1::2]] == [4, 0]


@pytest.mark.parametrize("number", [0, 2, 7])
def test_a_round_out_of_order(number):
    """[CON-20] [RND-1]"""
    rig = DestinationRig().until(D.STANDBY)
    rig.say(r.Round(1, number, 4))
    assert code_of(rig) is (ErrorCode.BAD_ROUND if number else ErrorCode.BAD_VALUE)
    assert rig.heard[-1].phase == Phase.ROUNDS


def test_a_round_twice():
    """[CON-20] [CON-26]"""
    rig = DestinationRig().until(D.RECEIVING)
    rig.say(r.Round(1, 1, 4))
    assert code_of(rig) is ErrorCode.UNEXPECTED_FRAME
    rig = DestinationRig().until(D.RECEIVING)
    rig.pages()
    rig.finish_round()
    rig.say(r.Round(1, 1, 4))
    assert code_of(rig) is ErrorCode.BAD_ROUND


@pytest.mark.parametrize("state", [D.RECEIVING, D.BLACKOUT])
def test_pages_of_another_round(state):
    """[CON-21] [PGS-15]"""
    rig = DestinationRig().until(state)
    rig.round += 1
    rig.pages()
    assert code_of(rig) is ErrorCode.BAD_ROUND
    assert rig.heard[-1].frame == FrameType.PAGES


@pytest.mark.parametrize("name", ["round", "pages", "bulk_bytes", "last_sequences"])
@pytest.mark.parametrize("state", [D.RECEIVING, D.BLACKOUT])
def test_a_round_that_ends_otherwise(state, name):
    """[CON-21] [RND-3] [RND-4] [STR-8] [STR-9]"""
    rig = DestinationRig().until(state)
    rig.pages()
    wrong = ((0, 99),) if name == "last_sequences" else getattr(rig.end, name) + 1
    rig.say(replace(rig.end, **{name: wrong}))
    assert code_of(rig) is (ErrorCode.BAD_ROUND if name == "round" else ErrorCode.COUNT_MISMATCH)
    discarded(rig, ErrorCode(rig.heard[-1].code))


def test_what_a_round_means_to_send_binds_nobody():
    """[CON-29]"""
    rig = DestinationRig().until(D.STANDBY)
    rig.round = 1
    rig.say(r.Round(1, 1, (1 << 64) - 1))
    rig.say(r.RoundEnd(1, 1, 0, 0))
    assert rig.last() == r.RoundAck(1, 1, 0, 0)


def test_pages_that_differ_from_their_hash_are_rejected():
    """[CON-35] [MEM-3] [MEM-8] [RAK-4] The chunk's pages and no others are not held any more."""
    rig = DestinationRig().until(D.RECEIVING)
    rig.pages()
    rig.finish_round()
    held = rig.machine._digest.held_pages
    rig.begin()
    rig.pages([0, 2], [1, 2], damage=True)
    assert rig.machine._digest.held_pages == held - 1
    rig.finish_round()
    assert rig.last().rejected == (r.PageRange(0, 0, 1),)
    assert rig.last().pages == 2
    rig.begin()
    rig.pages([0], [1])
    rig.finish_round()
    assert rig.last().rejected == ()
    assert rig.machine._digest.held_pages == held


def test_in_the_blackout_nothing_may_differ():
    """[CON-47] [MEM-4] What was not verified is never run."""
    rig = DestinationRig().until(D.BLACKOUT)
    rig.pages(damage=True)
    assert code_of(rig) is ErrorCode.PAGE_HASH
    assert rig.heard[-1].phase == Phase.BLACKOUT
    discarded(rig, ErrorCode.PAGE_HASH)


class Spy:
    """A sink that tells what it was asked."""

    def __init__(self, sink):
        self.sink = sink
        self.calls = []

    def targets(self, table):
        self.calls.append("targets")
        return self.sink.targets(table)

    def came(self, table, size_bytes):
        self.calls.append(size_bytes)
        self.sink.came(table, size_bytes)

    def commit(self, table, *, hashed):
        self.calls.append("commit")
        return self.sink.commit(table, hashed=hashed)

    @property
    def early_pages(self):
        return self.sink.early_pages


def test_more_pages_than_the_guest_has_are_refused_before_they_are_taken():
    """[CON-27] [SEC-6]"""
    rig = DestinationRig().until(D.RESERVING)
    spy = Spy(rig.sink())
    rig.do(e.Reserve, spy)
    rig.begin()
    rig.pages()
    assert spy.calls == ["targets", "commit"]
    rig.pages([0], [1])
    assert code_of(rig) is ErrorCode.COUNT_MISMATCH
    assert spy.calls == ["targets", "commit"]


@pytest.mark.parametrize("hashed", [True, False])
def test_what_has_come_of_a_batch_is_told_meanwhile(hashed):
    """[MEM-3] So it can be hashed before it leaves the caches; not if there are no hashes [MEM-20]."""
    pages = 64
    rig = DestinationRig(guest=replace(GUEST, regions=(Region(0, 0, pages * PAGE),))).until(D.RESERVING)
    rig.image = bytearray(random.Random(1).randbytes(pages * PAGE))
    spy = Spy(rig.sink())
    rig.do(e.Reserve, spy)
    machine = rig.machine
    machine._digest.hashed = hashed
    rig.say(r.Round(1, 1, pages))
    batch = rig.batch([0], [pages])
    frame = memoryview(rig.encode(batch.table(1, 1), b"".join(batch.buffers)))
    head = len(frame) - pages * PAGE
    machine.receive_data(frame[: head + 1], rig.now)
    for begin, end in pairwise([1, 70_000, 150_000, pages * PAGE]):
        place = machine.get_buffer()
        assert len(place) == pages * PAGE - begin
        place[: end - begin] = frame[head + begin : head + end]
        machine.buffer_updated(end - begin, rig.now)
    assert spy.calls == ["targets", *([70_000, 150_000] if hashed else []), "commit"]
    assert rig.memory[0] == rig.image
    assert machine.result is None


def test_pages_of_an_attempt_that_is_over_come_nowhere():
    """[CON-24] Their bytes flow by, however they come, and nobody hashes them."""
    rig = DestinationRig().until(D.RESERVING)
    spy = Spy(rig.sink())
    rig.do(e.Reserve, spy)
    rig.say(r.Round(1, 1, 1))
    rig.image[:PAGE] = random.Random(1).randbytes(PAGE)
    batch = rig.batch([0], [1])
    frame = memoryview(rig.encode(batch.table(1, 1), b"".join(batch.buffers)))
    machine = rig.machine
    machine._attempt = 2
    machine.receive_data(frame[: 1 - PAGE], rig.now)
    machine.get_buffer()
    assert not machine.buffer_updated(0, rig.now)  # a read that has brought nothing
    machine.get_buffer()[:10] = frame[1 - PAGE : 11 - PAGE]
    machine.buffer_updated(10, rig.now)
    machine.receive_data(frame[11 - PAGE :], rig.now)
    assert spy.calls == []
    assert machine.result is None


def test_pages_whose_memory_is_being_written_are_held_by_nobody():
    """[MEM-8] A link that breaks between a table and its last byte leaves no entry that is not true."""
    rig = DestinationRig().until(D.RECEIVING)
    rig.pages()
    rig.finish_round()
    rig.begin()
    assert rig.machine._digest.stale_pages == 0
    batch = rig.batch([1], [2])
    whole = rig.encode(batch.table(1, 2), b"".join(batch.buffers))
    rig.say_bytes(whole[:-1])
    assert rig.machine._digest.stale(0).runs()[0].tolist() == [1]
    assert rig.machine._digest.stale_pages == 2
    rig.machine.connection_lost(None, rig.now)
    assert rig.machine._digest.stale_pages == 2


def test_memory_can_be_freed_as_soon_as_the_session_is_lost():
    """Nothing here still points into it, wherever the link broke; the sink is its owner's."""
    rig = DestinationRig().until(D.RESERVING)
    spy = Spy(rig.sink())
    rig.do(e.Reserve, spy)
    rig.begin()
    batch = rig.batch()
    whole = rig.encode(batch.table(1, 1), b"".join(batch.buffers))
    rig.say_bytes(whole[:-1])
    rig.machine.connection_lost(None, rig.now)
    spy.sink = None
    rig.memory[0].clear()  # refused while it is looked at


def test_a_zero_run_is_held_when_the_memory_reads_as_zeros():
    """[MEM-8] Also where a page with bytes has been."""
    rig = DestinationRig().until(D.RECEIVING)
    assert rig.machine._digest.held_pages == rig.machine._digest.zero_pages == 0
    rig.pages()
    assert (rig.machine._digest.held_pages, rig.machine._digest.zero_pages) == (2, 2)
    rig.finish_round()
    rig.begin()
    rig.image[:PAGE] = bytes(PAGE)
    rig.pages([0], [1])
    rig.finish_round()
    assert (rig.machine._digest.held_pages, rig.machine._digest.zero_pages) == (1, 3)
    assert bytes(rig.memory[0]) == bytes(rig.image)


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([(0, 5, Encoding.ZERO)], ErrorCode.OUTSIDE_REGION),  # [PGS-7]
        ([((1 << 52) - 1, 1, Encoding.ZERO)], ErrorCode.OUTSIDE_REGION),  # [PGS-7]
        ([(0, 2, Encoding.ZERO), (1, 1, Encoding.ZERO)], ErrorCode.OVERLAPPING_RUNS),  # [PGS-8]
        ([(2, 1, Encoding.ZERO), (0, 1, Encoding.ZERO)], ErrorCode.OVERLAPPING_RUNS),  # [PGS-8]
        ([(0, 1, Encoding.ABSENT)], ErrorCode.NOT_SELECTED),  # [PGS-9]
    ],
    ids=str,
)
@pytest.mark.parametrize("state", [D.RECEIVING, D.BLACKOUT])
def test_a_page_table_that_reaches_where_it_should_not(state, rows, code):
    """[SEC-9]"""
    rig = DestinationRig().until(state)
    rig.say(r.Pages(1, rig.round, 0, make_runs(rows, 12), NO_HASHES))
    assert code_of(rig) is code
    discarded(rig, code)


def test_zero_runs_that_were_not_selected():
    """[NEG-7] [PGS-9]"""
    rig = DestinationRig()
    rig.say(rig.hello(features=tuple(each for each in offer() if each.id != Feature.ENCODING_ZERO)))
    rig._done = 1
    rig.until(D.RECEIVING)
    rig.pages()
    assert code_of(rig) is ErrorCode.NOT_SELECTED


def test_pages_of_a_region_that_is_not_copied():
    """[PGS-3] [PGS-2]"""
    rom = r.Region(1, 1 << 40, PAGE, kind=RegionKind.ROM, transfer=Transfer.REGENERATE)
    for region, code in ((1, ErrorCode.BAD_VALUE), (2, ErrorCode.OUTSIDE_REGION)):
        rig = DestinationRig(guest=replace(GUEST, regions=(REGION, rom))).until(D.RECEIVING)
        rig.say(r.Pages(1, 1, region, make_runs([(0, 1, Encoding.ZERO)], 12), NO_HASHES))
        assert code_of(rig) is code


# ---- attempts ----

OF_ATTEMPTS = {
    "round": lambda attempt, number: r.Round(attempt, number, 4),
    "pages": lambda attempt, number: r.Pages(
        attempt, number, 0, make_runs([(0, 1, Encoding.ZERO)], 12), NO_HASHES
    ),
    "round_end": lambda attempt, number: r.RoundEnd(attempt, number, 0, 0),
    "switchover": lambda attempt, number: r.Switchover(attempt, Style.STOP_AND_COPY),
    "dirty_bitmap": lambda attempt, number: r.DirtyBitmap(attempt, 0, 0, 4, 0, b"\0"),
    "state": lambda attempt, number: r.State(attempt, 0, 0, 1, 1, 0, 0, 0, True, b""),
    "seal": lambda attempt, number: r.Seal(attempt, 3, WRONG, WRONG, 0, 0),
    "handover": lambda attempt, number: r.Handover(attempt, EPOCH),
}
STATES = [D.STANDBY, D.RECEIVING, D.PREPARING, D.READY, D.BLACKOUT, D.FROZEN, D.LOADING, D.LOADED]


def second_attempt(state):
    """A rig in the second attempt: the first one ended with NOT_READY."""
    rig = DestinationRig().until(D.PREPARING)
    rig.break_(e.Prepare, GuestError("busy", ErrorCode.NOT_READY))
    assert rig.last() == r.NotReady(1, ErrorCode.NOT_READY, ERRORS[ErrorCode.NOT_READY].text)
    rig.attempt = 2
    if state is D.STANDBY:
        return rig
    if state is D.RECEIVING:
        rig.begin()
        return rig
    rig.switchover_noted()
    while rig.machine.state is not state:
        match rig.machine.state:
            case D.PREPARING:
                rig.do(e.Prepare)
            case D.READY:
                rig.begin()
            case D.BLACKOUT:
                rig.finish_round()
            case D.FROZEN:
                rig.state(SECTION)
                rig.say(rig.seal())
            case D.LOADING:
                rig.do(e.LoadState)
        rig.drain()
    return rig


@pytest.mark.parametrize("name", OF_ATTEMPTS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_frames_of_an_older_attempt_are_ignored(state, name):
    """[CON-24] [CON-82] In every state; their bytes are not written to memory."""
    rig = second_attempt(state)
    before = bytes(rig.memory[0])
    for number in (1, 2):
        rig.say(OF_ATTEMPTS[name](1, number))
    if name == "pages":
        batch = rig.batch([0], [2])
        rig.say_bytes(rig.encode(batch.table(1, 1), bytes(2 * PAGE)))
    assert rig.machine.state is state
    assert rig.drain() == []
    assert bytes(rig.memory[0]) == before
    if state is D.LOADED:
        rig.say(r.Handover(2, EPOCH))
        assert rig.machine.state is D.RECORDING


@pytest.mark.parametrize("name", OF_ATTEMPTS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
@pytest.mark.parametrize("attempt", [0, 3])
def test_an_attempt_that_never_was(attempt, state, name):
    """[CON-22] [CON-23] [CON-82] Before anything else is looked at."""
    if name == "round" and attempt:
        attempt += 1  # the next one may be begun, see below
    rig = second_attempt(state)
    rig.say(OF_ATTEMPTS[name](attempt, 2))
    assert code_of(rig) is ErrorCode.BAD_ATTEMPT


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_an_attempt_that_is_taken_back(state):
    """[CON-58] [CON-59] [CON-60] At any moment before HANDOVER; what was begun for it counts no more."""
    rig = DestinationRig().until(state)
    begun = [rig.take() for _ in rig.wishes[:1]]
    held, before = rig.digest.value(), len(rig.heard)
    rig.attempt = 2
    rig.begin()
    assert rig.machine.state is D.RECEIVING
    for request in begun:
        rig.machine.complete(request, rig.answer(request), rig.now)
    rig.drain()
    assert rig.heard[before:] == []
    assert rig.machine._digest.value() == held
    rig.pages()
    rig.finish_round()
    assert rig.last() == r.RoundAck(2, rig.round, 4, rig.last().receive_rate_bytes_s)
    rig.switchover()
    rig.do(e.Persist)
    rig.do(e.Prepare)
    rig.begin()
    rig.finish_round()
    rig.state(SECTION)
    rig.say(rig.seal())
    rig.do(e.LoadState)
    assert rig.last() == r.Loaded(2, rig.digest.value())


def test_what_fails_of_an_attempt_that_was_taken_back_does_not_matter():
    """[CON-59]"""
    for state, kind in ((D.PREPARING, e.Prepare), (D.LOADING, e.LoadState)):
        rig = DestinationRig().until(state)
        request = rig.take(kind)
        rig.attempt = 2
        rig.begin()
        rig.machine.fail(request, GuestError("too late"), rig.now)
        assert (rig.machine.state, rig.drain()) == (D.RECEIVING, [])


def test_a_new_attempt_begins_with_the_next_round():
    """[CON-58] [CON-20]"""
    rig = DestinationRig().until(D.LOADED)
    rig.say(r.Round(2, rig.round + 2, 4))
    assert code_of(rig) is ErrorCode.BAD_ROUND


def test_after_handover_nothing_is_taken_back():
    """[CON-55] [ONE-30]"""
    rig = DestinationRig().until(D.RECORDING)
    rig.say(r.Round(2, rig.round + 1, 4))
    assert code_of(rig) is ErrorCode.BAD_ATTEMPT
    assert rig.machine.state is D.RECORDING


def test_not_ready_and_then_ready():
    """[CON-38] [CON-42] [CON-22] [SWI-3]"""
    rig = second_attempt(D.LOADED)
    answers = [record for record in rig.heard if isinstance(record, (r.Ready, r.NotReady))]
    assert [(type(record), record.attempt) for record in answers] == [(r.NotReady, 1), (r.Ready, 2)]
    rig.say(r.Handover(2, EPOCH))
    assert rig.machine.state is D.RECORDING


# ---- switchover ----


@pytest.mark.parametrize("style", [Style.BITMAP, Style.POST_COPY])
def test_a_style_that_was_not_selected(style):
    """[SWI-1] [NEG-7]"""
    rig = DestinationRig().until(D.STANDBY)
    rig.say(r.Switchover(1, style))
    assert code_of(rig) is ErrorCode.NOT_SELECTED
    assert rig.wishes == [e.Discard]


def test_a_switchover_without_a_round():
    """[CON-37]"""
    rig = DestinationRig().until(D.STANDBY)
    rig.switchover_noted()
    assert rig.take(e.Prepare).style is Style.STOP_AND_COPY
    rig.machine.complete(rig.asked[-1], None, rig.now)
    assert rig.last() == r.Ready(1)
    rig.begin()
    rig.pages()
    rig.finish_round()
    assert rig.machine.state is D.FROZEN
    rig.drain()
    assert not [each for each in rig.heard if isinstance(each, r.RoundAck)]  # [CON-46]


# ---- state and seal ----


@pytest.mark.parametrize(
    ("fragment", "code"),
    [
        (r.State(1, 0, 0, 1, 1, 0, 4097, 0, False, b"x"), ErrorCode.LIMIT_STATE),  # [STA-1]
        (r.State(1, 0, 0, 1, 1, 0, 10, 0, True, b"x"), ErrorCode.BAD_FRAGMENT),  # [STA-3]
        (r.State(1, 0, 0, 1, 1, 0, 10, 8, False, b"xxx"), ErrorCode.BAD_FRAGMENT),  # [STA-2]
        (r.State(1, 0, 0, 1, 1, 0, 10, 0, False, b""), ErrorCode.BAD_FRAGMENT),  # [STA-4]
        (r.State(1, 0, 0, 1, 1, 0, 10, 1, False, b"x"), ErrorCode.BAD_FRAGMENT),  # [STA-5]
        (r.State(1, 0, 1, 1, 1, 0, 1, 0, True, b"x"), ErrorCode.BAD_VALUE),  # [STA-9]
    ],
    ids=str,
)
def test_a_fragment_that_does_not_fit(fragment, code):
    rig = DestinationRig().until(D.BLACKOUT)
    rig.finish_round()
    rig.say(fragment)
    assert code_of(rig) is code
    discarded(rig, code)


def test_a_section_that_comes_twice():
    """[STA-8]"""
    rig = DestinationRig().until(D.BLACKOUT)
    rig.finish_round()
    rig.state(SECTION, SECTION)
    assert code_of(rig) is ErrorCode.BAD_FRAGMENT


def test_more_sections_than_announced():
    """[STA-7]"""
    rig = DestinationRig(limits=Limits(state_sections=1)).until(D.BLACKOUT)
    rig.finish_round()
    rig.state(SECTION, replace(SECTION, instance=1))
    assert code_of(rig) is ErrorCode.LIMIT_STATE


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"last_sequences": ((0, 99),)}, ErrorCode.COUNT_MISMATCH),  # [STR-8]
        ({"state_sections": 2}, ErrorCode.COUNT_MISMATCH),  # [SEA-3]
        ({"state_bytes": 8}, ErrorCode.COUNT_MISMATCH),  # [SEA-3]
        ({"digest": WRONG}, ErrorCode.DIGEST_MISMATCH),  # [MEM-15] [SEA-4]
        ({"algorithm": 2}, ErrorCode.BAD_VALUE),  # [SEA-1]
    ],
    ids=str,
)
def test_a_seal_that_does_not_fit(changes, code):
    """[CON-50]"""
    rig = DestinationRig().until(D.FROZEN)
    rig.state(SECTION)
    rig.say(rig.seal(**changes))
    assert code_of(rig) is code
    assert e.LoadState not in rig.wishes
    discarded(rig, code)


def test_a_seal_inside_of_a_section():
    """[SEA-3]"""
    rig = DestinationRig().until(D.FROZEN)
    rig.say(r.State(1, 0, 0, 1, 1, 0, 9, 0, False, b"x"))
    rig.say(rig.seal(state_sections=0, state_bytes=9))
    assert code_of(rig) is ErrorCode.COUNT_MISMATCH


def test_a_seal_over_pages_that_never_came():
    """[MEM-10] [MEM-11] Even if the digests agree on that."""
    rig = DestinationRig().until(D.STANDBY)
    rig.switchover_noted()
    rig.do(e.Prepare)
    rig.begin()
    rig.pages([0], [3])
    rig.finish_round()
    rig.state(SECTION)
    assert rig.digest.value() == rig.machine._digest.value()
    rig.say(rig.seal())
    assert code_of(rig) is ErrorCode.DIGEST_MISMATCH


def test_the_state_is_loaded_as_it_came():
    """[CON-48] [CON-52] [SEA-4] LOADED names what was computed here, once all is done that can fail."""
    rig = DestinationRig().until(D.LOADING)
    assert rig.take(e.LoadState).sections == (SECTION,)
    assert not [each for each in rig.drain() if isinstance(each, r.Loaded)]
    rig.machine.complete(rig.asked[-1], None, rig.now)
    assert rig.last() == r.Loaded(1, rig.machine.digest)
    assert rig.machine.digest == rig.digest.value()


@pytest.mark.parametrize("code", [ErrorCode.STATE_REJECTED, ErrorCode.UNKNOWN_STATE])
def test_a_state_that_the_guest_does_not_take(code):
    """[CON-51] [STA-6]"""
    rig = DestinationRig().until(D.LOADING)
    rig.break_(e.LoadState, GuestError("what is that?", code))
    assert code_of(rig) is code
    discarded(rig, code)


# ---- commit ----


def test_the_session_is_on_record_before_the_pause():
    """[ONE-5] Whoever asks later must find it; with it the store, if one was selected, has answered."""
    rig = DestinationRig().until(D.STANDBY)
    rig.switchover()
    record = rig.take(e.Persist).record
    assert record == SessionRecord(SESSION, EPOCH, Side.DESTINATION, TOKEN, "")
    assert (rig.wishes, rig.drain()) == ([], [])
    rig.machine.complete(rig.asked[-1], None, rig.now)
    assert rig.wishes == [e.Prepare]


@pytest.mark.parametrize("kind", [e.Persist, e.ProbeStore])
def test_no_switchover_without_record_and_store(kind):
    """[CON-38] The source hears NOT_READY, runs on, and may try again."""
    rig = with_store().until(D.STANDBY)
    rig.switchover()
    if kind is e.ProbeStore:
        rig.do(e.Persist)
    rig.break_(kind, GuestError("no", ErrorCode.RECORD_FAILED))
    assert rig.last() == r.NotReady(1, ErrorCode.RECORD_FAILED, ERRORS[ErrorCode.RECORD_FAILED].text)
    assert rig.machine.state is D.STANDBY
    assert rig.wishes == []


def with_store(**changes):
    """A rig whose session has a lease store."""
    more = {Feature.LEASE_STORE: 0}
    rig = DestinationRig(features=BASE_FEATURES | {Feature.LEASE_STORE})
    rig.script = (
        (D.ADMITTING, lambda each: each.say(each.hello(features=offer(more=more)))),
        *rig.script[1:],
    )
    return rig


def test_the_store_is_asked_before_ready():
    """[ONE-54] The newest slot is what HELLO has shown."""
    rig = with_store().until(D.STANDBY)
    rig.switchover_noted()
    probe = rig.take(e.ProbeStore)
    assert (probe.epoch, probe.runner) == (EPOCH, HERE)
    assert [each.record.store for each in rig.asked if isinstance(each, e.Persist)] == [True]  # [ONE-65]
    assert rig.wishes == []
    rig.machine.complete(probe, None, rig.now)
    rig.do(e.Prepare)
    assert rig.last() == r.Ready(1)


def test_a_guest_that_nobody_has_claimed_does_not_come_with_a_store():
    """[ONE-54] Without one it does."""
    rig = with_store()
    rig.say(rig.hello(epoch=0, features=offer(more={Feature.LEASE_STORE: 0})))
    refused(rig, ErrorCode.STALE_EPOCH)
    rig = DestinationRig()
    rig.say(rig.hello(epoch=0))
    assert rig.machine.state is D.ADMITTING


# ---- verdicts ----


def test_a_question_is_answered():
    """[ONE-15] [ONE-60] [CON-9] Whoever asks what, of a session that this connection does not have."""
    rig = AskedRig()
    rig.ask()
    assert rig.drain() == []
    question = rig.take(e.AnswerVerdict)
    assert (question.hello.session, question.hello.token) == (SESSION, TOKEN)
    rig.machine.complete(question, VERDICT, rig.now)
    assert rig.drain() == [VERDICT]
    result = rig.machine.result
    assert (result.outcome, result.code, result.verdict) == (Outcome.ANSWERED, None, VERDICT)
    assert rig.wishes == []
    rig.machine.connection_lost(None, rig.now)  # [CON-69] does not apply
    assert rig.machine.result is result


@pytest.mark.parametrize("code", [ErrorCode.BUSY, ErrorCode.NOT_AUTHORISED])
def test_a_question_that_is_refused(code):
    """[ONE-60] The records are another process's."""
    rig = AskedRig().until(D.ANSWERING)
    rig.break_(e.AnswerVerdict, GuestError("/secret/path is locked", code))
    refusal = rig.last()
    assert isinstance(refusal, r.Refuse)
    assert (refusal.code, refusal.text) == (code, ERRORS[code].text)
    assert rig.machine.result.outcome is Outcome.UNDECIDED
    assert rig.wishes == []


def test_a_question_in_another_version():
    """[NEG-1] [VRS-3]"""
    rig = AskedRig()
    rig.ask(versions=(VERSION + 1,))
    refused(rig, ErrorCode.NO_COMMON_VERSION)


def test_a_question_needs_no_features():
    """[ONE-15] Session, identity and token are all that it rests on."""
    rig = AskedRig()
    rig.ask(features=(r.FeatureOffer(4711, required=True),), epoch=0)
    assert rig.machine.state is D.ANSWERING


@pytest.mark.parametrize(
    "answer", [r.Verdict(0, EPOCH, complete=True, handed_back=True), r.Verdict(9, EPOCH)]
)
def test_a_verdict_that_no_frame_carries(answer):
    """[VER-1] The host's mistake: nothing is answered."""
    rig = AskedRig().until(D.ANSWERING)
    rig.do(e.AnswerVerdict, answer)
    assert isinstance(rig.last(), r.Abort)
    assert rig.machine.result.outcome is Outcome.UNDECIDED


def test_an_opening_that_comes_too_late():
    """[ONE-14] HANDOVER of this epoch has been received: who owns the guest is the answer."""
    rig = DestinationRig().until(D.ADMITTING)
    rig.do(e.Admit, VERDICT)
    assert rig.drain() == [VERDICT]
    result = rig.machine.result
    assert (result.outcome, result.verdict) == (Outcome.ANSWERED, VERDICT)
    assert rig.wishes == []


@pytest.mark.parametrize("epoch", [EPOCH, EPOCH + 2])
def test_a_release_of_another_epoch(epoch):
    """[CMP-4] The guest runs on here; whether the source keeps an image is not known."""
    rig = DestinationRig().until(D.RUNNING)
    rig.say(r.Release(epoch))
    assert code_of(rig) is ErrorCode.BAD_EPOCH
    assert rig.machine.result.outcome is Outcome.MOVED


def test_what_can_not_be_freed_does_not_run_either():
    rig = DestinationRig().until(D.STANDBY)
    rig.machine.connection_lost(None, rig.now)
    rig.break_(e.Discard)
    assert rig.machine.result.outcome is Outcome.ROLLED_BACK
    assert rig.machine.state is D.ENDED


def test_the_end_in_order():
    """[PNG-4] [CON-70]"""
    rig = DestinationRig().until(D.CLOSED)
    assert isinstance(rig.heard[-1], r.Bye)
    result = rig.machine.result
    assert (result.outcome, result.code, result.epoch) == (Outcome.COMPLETED, None, EPOCH + 1)
    assert result.digest == rig.machine.digest
    assert result.blackout_s is not None


def test_the_blackout_is_timed():
    """From READY to the guest's start."""
    rig = DestinationRig().until(D.READY)
    rig.now += 0.5
    rig.until(D.RUNNING)
    rig.now += 7.0
    rig.until(D.CLOSED)
    assert rig.machine.result.blackout_s == 0.5


def test_progress_tells_how_far_it_is():
    """[CON-76] [CON-80]"""
    rig = DestinationRig().until(D.RECEIVING)
    rig.pass_time(1.5)
    rig.pages([0, 3], [1, 1])
    rig.pass_time(1.5)
    first, *_, second = (each for each in rig.heard if isinstance(each, r.Progress))
    assert (first.phase, first.round, first.pages_total, first.pages_remaining) == (Phase.ROUNDS, 1, 4, 4)
    assert (second.pages_remaining, first.bulk_bytes, second.bulk_bytes) == (2, 0, PAGE)


@pytest.mark.parametrize("fails", [False, True])
def test_a_session_that_came_to_no_switchover_keeps_nobody_out(fails):
    """[ONE-56] [ONE-12] It was noted early, and nobody can have granted in it."""
    rig = DestinationRig().until(D.STANDBY)
    rig.say(r.Round(1, 1, 0), r.RoundEnd(1, 1, 0, 0))
    noted = rig.machine.poll_request()
    rig.machine.complete(noted, None, rig.now)
    assert noted.early
    rig.machine.connection_lost(None, rig.now)
    request = rig.machine.poll_request()
    assert (request.record, request.early) == (records.Released(noted.record.session), True)
    if fails:
        rig.machine.fail(request, GuestError("disk full"), rig.now)
    else:
        rig.machine.complete(request, None, rig.now)
    discarded(rig, ErrorCode.CONNECTION_LOST)


def test_a_session_that_came_to_switchover_is_kept():
    """[ONE-56] Its source may have granted, and not have been heard."""
    rig = DestinationRig().until(D.LOADED)
    rig.machine.connection_lost(None, rig.now)
    assert isinstance(rig.machine.poll_request(), e.Discard)
