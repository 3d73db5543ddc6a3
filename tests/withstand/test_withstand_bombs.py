"""Much for little: lengths that claim gigabytes, tables that cover terabytes, and floods of tiny frames.

Memory is measured, by what Python and numpy allocate while the attack is read. Nothing is allocated before
its length has been held to a limit; what is held afterwards is within the limits that were announced, and
what the destination has granted with ACCEPT. Work is measured in calls of functions, or in time against
another time of the same run: never against a clock alone.

Published bugs of this class: QEMU's VFIO migration buffered what it was sent without a bound; Silo read a
length and allocated it; Cloud Hypervisor allocated by the sizes in its stream; CVE-2017-16845 had a loop
without end behind it; CRI-O CVE-2024-8676, containerd CVE-2026-50195 and CVE-2026-53492 trusted an image.

[SEC-6] [SEC-7] [SEC-16] [HDR-7] [HDR-9] [LIM-4] [LIM-5] [PGS-21] [CON-27] [CON-29] [CON-79] [FRM-8] [RAK-5]
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from withstand_judge import judge, judge_accepted
from withstand_support import LIMITS, PAGE_BYTES, ROLES, Victim, at_home, receivers, sample

from sterna.core import account
from sterna.core import events as e
from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.events import Outcome
from sterna.core.heartbeat import PONGS_OWED_MAX
from sterna.core.rounds import IncomingRound
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import GuestError, RemoteProtocolError
from sterna.limits import BLANK_FACTOR, HANDSHAKE_BODY_BYTES, UNKNOWN_FRAMES_IN_A_ROW, Limits
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import Encoding, ErrorCode, FrameType, Phase
from sterna.testing.pair import ADMISSION
from sterna.wire import FrameReader, decode_body, make_runs, unchecked
from sterna.wire import records as r

F, C = FrameType, ErrorCode
KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
MIDDLE = {"source": SourceState.ACKING, "destination": DestinationState.RECEIVING}


def growth(act: Callable[[], object]) -> int:
    """The most memory that something holds while it goes on, in bytes."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def kept(act: Callable[[], object]) -> int:
    """The memory that is still held when something is over, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        act()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def calls(act: Callable[[], object]) -> int:
    """How many functions something calls, those of C among them."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(profile)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def cpu_s(act: Callable[[], object], times: int = 5) -> float:
    """The least CPU time that something has taken."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        act()
        taken.append(time.process_time() - began)
    return min(taken)


# ---- lengths that claim ----


@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize("frame", FrameType, ids=lambda frame: frame.name)
def test_nothing_is_allocated_for_a_length_above_the_limit(frame: FrameType, announced: bool) -> None:
    """[HDR-7] [HDR-9] [LIM-4] [SEC-7] A header claims 4 GiB, and costs its reader the exception."""
    for lengths in {"body_bytes": U32}, {"body_bytes": U32, "bulk_bytes": U32}, {"bulk_bytes": U32}:
        reader = FrameReader()
        if announced:
            reader.set_limits(Limits())
        reader.receive_data(unchecked.preface())
        reader.next_event()
        head = unchecked.frame(frame, **lengths)  # type: ignore[arg-type]

        def read(reader: FrameReader = reader, head: bytes = head) -> None:
            reader.receive_data(head)
            with pytest.raises(RemoteProtocolError):
                reader.next_event()

        assert growth(read) < 16 * KIB


@pytest.mark.parametrize("role", ROLES)
def test_a_length_at_the_limit_costs_its_length(role: str) -> None:
    """[bounded] A body that does not come is held once, and let go with the session."""
    for frame in FrameType:
        if role not in receivers(frame):
            continue
        victim = Victim(role).until(MIDDLE[role])
        victim.attack(victim.frame(frame, body_bytes=HANDSHAKE_BODY_BYTES))
        assert victim.growth_bytes < HANDSHAKE_BODY_BYTES + 32 * KIB
        victim.end()
        judge(victim, C.TRUNCATED, told=False)


def test_hello_may_claim_anything() -> None:
    """[LIM-2] [SEC-7] Limits, epochs and versions as large as they can be said: nothing is made of them."""
    hello = decode_body(F.HELLO, sample(F.HELLO))
    assert isinstance(hello, r.Hello)
    huge = replace(hello, limits=dict.fromkeys(range(1, 65), U64), epoch=U64 - 2)
    victim = at_home("destination", F.HELLO)
    victim.attack(victim.record(huge))
    judge_accepted(victim)
    assert victim.growth_bytes < 256 * KIB


def test_welcome_may_claim_anything() -> None:
    """[LIM-6] A destination that takes everything at once gets batches of this side's own size."""
    welcome = decode_body(F.WELCOME, sample(F.WELCOME))
    assert isinstance(welcome, r.Welcome)
    victim = at_home("source", F.WELCOME)
    victim.attack(victim.record(replace(welcome, limits=dict.fromkeys(range(1, 65), U64))))
    victim.next += 1
    victim.carry_on()
    assert victim.machine.result is not None
    assert victim.machine.result.outcome is Outcome.COMPLETED


# ---- memory that is asked for ----


class Machine:
    """A destination that announces the defaults, among them a TiB of memory, and grants what is asked."""

    def __init__(self, size_bytes: int) -> None:
        self.machine = DestinationMachine(DestinationConfig(), 0.0)
        self.sent = 0
        region = r.Region(0, 0, size_bytes)
        self.guest = r.Guest("large", 0, 1, 64 * MIB, (region,))
        self.table = RegionTable(self.guest.regions)
        hello = decode_body(F.HELLO, sample(F.HELLO))
        self.machine.receive_data(unchecked.preface(), 0.0)
        self.say(hello)
        self.answer(e.Admit, ADMISSION)

    def say(self, record: r.Record, bulk: bytes = b"") -> None:
        body = unchecked.body(record)
        self.machine.receive_data(unchecked.frame(record.type, body, bulk, sequence=self.sent), 0.0)
        self.sent += 1

    def answer(self, kind: type, answer: object) -> None:
        request = self.machine.poll_request()
        assert isinstance(request, kind)
        self.machine.complete(request, answer, 0.0)
        self.hear()

    def hear(self) -> int:
        """How much it has to say; all of it is taken."""
        count = 0
        while buffers := self.machine.poll_transmit(0.0):
            size = sum(map(len, buffers))
            self.machine.transmitted(size, 0.0)
            count += size
        while self.machine.poll_event() is not None:
            pass
        return count

    def granted(self) -> Machine:
        """In its first round; memory that nobody has touched is not there yet."""
        self.say(self.guest)
        self.memory = np.zeros(self.guest.regions[0].size_bytes, np.uint8)
        self.answer(e.Reserve, RegionPages(self.table, {0: self.memory.data}))
        self.say(r.Round(1, 1, U64))
        assert self.machine.state is DestinationState.RECEIVING
        return self


def test_a_terabyte_is_asked_for_and_refused() -> None:
    """[CON-14] [SEC-6] 2**28 pages at the limit: nothing is made for them before they are granted."""
    large = Machine(TIB)
    assert growth(lambda: large.say(large.guest)) < 64 * KIB
    request = large.machine.poll_request()
    assert isinstance(request, e.Reserve)
    failed = growth(lambda: large.machine.fail(request, GuestError("full", C.FULL), 0.0))
    assert failed < 128 * KIB
    assert large.machine.result is None
    large.answer(e.Discard, None)
    assert large.machine.result is not None
    assert large.machine.result.code is C.FULL


def test_one_page_more_than_announced() -> None:
    """[GST-9]"""
    large = Machine(TIB + PAGE_BYTES)
    assert growth(lambda: large.say(large.guest)) < 128 * KIB
    large.answer(e.Discard, None)
    assert large.machine.result is not None
    assert large.machine.result.code is C.LIMIT_MEMORY


def test_a_round_of_all_pages_that_there_are() -> None:
    """[CON-29] Nothing is made by its number."""
    victim = at_home("destination", F.ROUND)
    victim.attack(victim.record(r.Round(1, 1, U64)))
    assert victim.growth_bytes < 16 * KIB
    judge_accepted(victim)


def test_a_state_section_of_all_that_was_announced() -> None:
    """[STA-1] [SEC-6] It is held as it comes, not as it is stated."""
    large = Machine(MIB)
    large.granted()
    large.say(r.RoundEnd(1, 1, 0, 0))
    large.say(r.Switchover(1, 0))  # type: ignore[arg-type]
    large.answer(e.Persist, None)  # early, while pages came
    large.answer(e.Persist, None)
    large.answer(e.Prepare, None)
    large.say(r.Round(1, 2, 0))
    large.say(r.RoundEnd(1, 2, 0, 0))
    assert large.machine.state is DestinationState.FROZEN
    section = r.State(1, 0, r.NO_VCPU, 2, 1, 0, 64 * MIB, 0, False, b"x")
    assert growth(lambda: large.say(section)) < 32 * KIB


def zeros(first: int, count: int) -> r.Pages:
    return r.Pages(1, 1, 0, make_runs([(first, count, Encoding.ZERO)], 12), np.zeros(0, "<u8"))


def test_a_zero_run_of_a_terabyte() -> None:
    """[PGS-24] 24 bytes cover 4 GiB at once: refused, by the limit on pages without bytes."""
    large = Machine(8 << 30).granted()
    assert growth(lambda: large.say(zeros(0, 1 << 20))) < 128 * KIB
    large.answer(e.Discard, None)
    assert large.machine.result is not None
    assert large.machine.result.code is C.LIMIT_BULK


def test_zero_runs_at_the_limit_cost_less_than_a_batch() -> None:
    """[PGS-24] [SEC-16] In memory little, and in time no more than a frame that is full of bytes."""
    large = Machine(8 << 30).granted()
    count = Limits().bulk_bytes // PAGE_BYTES
    blank = BLANK_FACTOR * count
    assert growth(lambda: large.say(zeros(0, blank))) < 64 * KIB + large.table.pages // 8  # a bit a page
    bulk = np.random.default_rng(1).bytes(Limits().bulk_bytes)
    runs = make_runs([(0, count, Encoding.RAW)], 12)
    raw = r.Pages(1, 1, 0, runs, np.zeros(Limits().bulk_bytes // (64 * KIB), "<u8"))
    blanks, places = iter(range(blank, 6 * blank, blank)), iter(range(6 * blank, 7 * blank, count))

    def next_zeros() -> None:
        large.say(zeros(next(blanks), blank))

    def next_raw() -> None:
        runs["first"] = next(places)
        large.say(raw, bulk)

    zero_s, raw_s = cpu_s(next_zeros), cpu_s(next_raw)
    assert large.machine.result is None
    assert zero_s < raw_s
    print(f"a GiB of zeros: {zero_s * 1e3:.2f} ms; 16 MiB with bytes: {raw_s * 1e3:.2f} ms")


def test_pages_of_a_round_are_bounded_by_the_guests_memory() -> None:
    """[CON-27] Zero runs again and again: a round has no more pages than there are."""
    large = Machine(32 * MIB).granted()
    count = Limits().bulk_bytes // PAGE_BYTES
    large.say(zeros(0, count))
    large.say(zeros(0, count))
    assert large.machine.result is None
    large.say(zeros(0, 1))
    large.answer(e.Discard, None)
    assert large.machine.result is not None
    assert large.machine.result.code is C.COUNT_MISMATCH


def test_a_table_of_as_many_runs_as_announced() -> None:
    """[PGS-5] Its memory is its body's, some times over; calls do not grow with its runs."""

    def table(runs: int) -> r.Pages:
        rows = [(2 * n, 1, Encoding.ZERO) for n in range(runs)]
        return r.Pages(1, 1, 0, make_runs(rows, 12), np.zeros(0, "<u8"))

    most = Limits(bulk_bytes=64 * MIB).batch_runs
    short, long = table(200), table(min(most, Limits().bulk_bytes // PAGE_BYTES))
    large = Machine(256 * MIB).granted()
    few = calls(lambda: large.say(short))
    large.say(r.RoundEnd(1, 1, 200, 0, ((0, large.sent - 1),)))
    large.hear()
    large.say(r.Round(1, 2, 0))
    long = replace(long, round=2)
    body = len(unchecked.body(long))
    many = calls(lambda: large.say(long))
    assert large.machine.result is None
    assert many < few + 100
    large = Machine(256 * MIB).granted()
    held = growth(lambda: large.say(replace(long, round=1)))
    assert held < 8 * body + 256 * KIB


def test_an_answer_with_as_many_ranges_as_announced() -> None:
    """[RAK-2] [CON-32] Of a body of 1536 bytes; each range is looked at once."""
    ranges = tuple(r.PageRange(0, 2 * n, 1) for n in range(LIMITS.rejected_runs))
    victim = at_home("source", F.ROUND_ACK)
    victim.attack(victim.record(r.RoundAck(1, 1, 0, 0, ranges)))
    judge(victim, C.OUTSIDE_REGION, clause="FRM-18")
    assert victim.growth_bytes < 256 * KIB


# ---- floods ----


@pytest.mark.parametrize("role", ROLES)
def test_a_flood_of_frames_that_nobody_knows(role: str) -> None:
    """[FRM-8] GREASE is for honesty, not for keeping somebody busy."""
    victim = Victim(role).until(MIDDLE[role])
    for number in range(UNKNOWN_FRAMES_IN_A_ROW):
        victim.attack(victim.frame(0x7F00 + number % 256, b"grease"))
    assert victim.machine.result is None
    victim.attack(victim.frame(0x7F00))
    judge(victim, C.LIMIT_RATE, clause="FRM-8")
    assert victim.growth_bytes < 128 * KIB


@pytest.mark.parametrize("role", ROLES)
def test_a_flood_of_pings_from_a_peer_that_reads(role: str) -> None:
    """[CON-79] Each is answered, and nothing stays."""
    victim = Victim(role).until(MIDDLE[role]).settle()
    for number in range(2000):
        victim.hear(victim.record(r.Ping(number)))
        victim.settle()
    victim.attack(*(victim.record(r.Ping(number)) for number in [0]))
    assert victim.growth_bytes < 32 * KIB
    judge_accepted(victim)


@pytest.mark.parametrize("role", ROLES)
def test_a_flood_of_pings_from_a_peer_that_does_not_read(role: str) -> None:
    """[CON-79] In one read, with no chance to answer between them."""
    victim = Victim(role).until(MIDDLE[role]).settle()
    first = victim.machine._lanes.control.reader.next_sequence
    body = unchecked.body(r.Ping(1))
    flood = b"".join(unchecked.frame(F.PING, body, sequence=first + n) for n in range(500))
    victim.attack(flood)
    judge(victim, C.LIMIT_RATE, clause="CON-79")
    answers = [said for said in victim.spoken if said.frame == F.PONG]
    assert len(answers) <= PONGS_OWED_MAX + 1
    assert victim.growth_bytes < 160 * KIB


@pytest.mark.parametrize("role", ROLES)
def test_a_flood_of_progress(role: str) -> None:
    """[PRG-1] More than the selected interval explains."""
    victim = Victim(role).until(MIDDLE[role])
    told = r.Progress(Phase.ROUNDS, 1, 4, 2, 4096, 1, 1, 1)
    for _ in range(1000):
        victim.attack(victim.record(told))
        if victim.machine.result is not None:
            break
    judge(victim, C.LIMIT_RATE, clause="PRG-1")


def test_a_flood_of_empty_fragments() -> None:
    """[STA-4] Those that would say nothing are refused, and an empty section is one of the few."""
    victim = Victim("destination").until(DestinationState.FROZEN, F.STATE)
    victim.attack(victim.record(r.State(1, 0, r.NO_VCPU, 2, 1, 0, 9, 0, False, b"")))
    judge(victim, C.BAD_FRAGMENT, clause="STA-4")


def test_a_flood_of_empty_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """[SEC-6] A source may send rounds for ever; what is remembered of them is bounded."""
    monkeypatch.setattr(account, "ROUNDS_KEPT", 50)  # of 1024, which would take a second
    large = Machine(MIB).granted()

    def rounds(first: int, count: int) -> None:
        for number in range(first, first + count):
            large.say(r.RoundEnd(1, number, 0, 0))
            large.hear()
            large.say(r.Round(1, number + 1, 0))

    rounds(1, 100)
    assert kept(lambda: rounds(101, 400)) < 64 * KIB
    assert large.machine.result is None
    large.machine.connection_lost(None, 0.0)
    large.answer(e.Persist, None)
    large.answer(e.Discard, None)
    assert large.machine.result is not None
    assert large.machine.result.outcome is Outcome.ROLLED_BACK
    assert large.machine.result.rounds[-1].round == 500


def test_an_empty_round_costs_nothing_by_the_size_of_the_guest() -> None:
    """[SEC-16] 128 bytes of a peer must not make this side look at all pages of a large guest."""

    def a_round(large: Machine) -> Callable[[], None]:
        numbers = iter(range(1, 100))

        def act() -> None:
            number = next(numbers)
            large.say(r.RoundEnd(1, number, 0, 0))
            large.hear()
            large.say(r.Round(1, number + 1, 0))

        return act

    small_s, large_s = (cpu_s(a_round(Machine(size).granted()), 20) for size in (MIB, 16 << 30))
    print(f"an empty round: {small_s * 1e6:.0f} us with 1 MiB, {large_s * 1e6:.0f} us with 16 GiB")
    assert large_s < 5 * small_s


def test_a_round_and_a_table_cost_nothing_by_a_terabyte() -> None:
    """[SEC-16] The same for the largest guest that is announced: neither time nor memory."""
    taken = []
    for size_bytes in MIB, TIB:
        table = RegionTable((r.Region(0, 0, size_bytes),))
        end = r.RoundEnd(1, 1, 1, 0, ((0, 1),))

        def a_round(table: RegionTable = table, end: r.RoundEnd = end) -> None:
            incoming = IncomingRound(1, table, 0.0, last=False)
            incoming.announce(zeros(0, 1))
            incoming.take(zeros(0, 1), [], 1)
            incoming.check_end(end)
            assert incoming.rejected(Limits(), end) == ()
            assert incoming.stats(1.0).rejected_pages == 0

        assert growth(a_round) < 16 * KIB
        taken.append(cpu_s(a_round, 20))
    print(f"a round of a page: {taken[0] * 1e6:.0f} us with 1 MiB, {taken[1] * 1e6:.0f} us with 1 TiB")
    assert taken[1] < 5 * taken[0]


def test_endless_attempts() -> None:
    """[CON-43] SWITCHOVER as often as a peer likes, to a host that is never ready."""
    large = Machine(MIB).granted()
    large.say(r.RoundEnd(1, 1, 0, 0))
    large.answer(e.Persist, None)  # early, while pages came

    def attempts(first: int) -> None:
        for attempt in range(first, first + 500):
            large.say(r.Switchover(attempt, 0))  # type: ignore[arg-type]
            large.answer(e.Persist, None)
            request = large.machine.poll_request()
            assert isinstance(request, e.Prepare)
            large.machine.fail(request, GuestError("busy"), 0.0)
            large.hear()

    attempts(1)
    assert kept(lambda: attempts(501)) < 32 * KIB
    assert large.machine.result is None
