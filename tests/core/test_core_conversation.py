"""Whole sessions: two machines, two guests, and the bytes between them.

The properties are the invariants of chapter 19, as far as two machines without a clock can show them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, pairwise

import pytest
from core_support import (
    EPOCH,
    HERE,
    PAGE,
    REGION,
    PlainSource,
    plain_pair,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.core import events as e
from sterna.core.destination import DestinationConfig
from sterna.core.events import Outcome
from sterna.core.negotiate import offer
from sterna.core.policy import Action, Decision, PolicySettings
from sterna.core.session import Grease
from sterna.core.tables import COMMITTED, TERMINAL, DestinationState, SourceState
from sterna.errors import GuestError, LocalProtocolError, TransportError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.limits import HEADER_BYTES, Limits
from sterna.memory.digest import MemoryDigest
from sterna.registry import (
    GREASE_FIRST,
    GREASE_LAST,
    Encoding,
    ErrorCode,
    Feature,
    FrameType,
    Owner,
    Phase,
    StateKind,
    Transfer,
)
from sterna.testing.pair import Pair, run_now, source_config_of
from sterna.wire import FrameReader, FrameReceived, PagesAnnounced, PagesReceived
from sterna.wire import records as r

S, D = SourceState, DestinationState
MIB = 1 << 20


# ---- looking at a session from outside ----


class Overheard:
    """The frames in a recorded stream of bytes."""

    def __init__(self, data: bytes, regions=(REGION,)) -> None:
        self.frames: list[tuple[FrameType, int, int]] = []  # type, first byte, end
        self.records: list[r.Record] = []
        reader = FrameReader()
        reader.set_limits(Limits())
        reader.set_regions({region.id: region for region in regions})
        at = 16
        reader.receive_data(data)
        while (event := reader.next_event()) is not None:
            match event:
                case PagesAnnounced(header):
                    if header.bulk_bytes:
                        reader.discard_bulk()
                    continue
                case FrameReceived(header, record) | PagesReceived(header, record):
                    self.records.append(record)
                case _:
                    continue
            end = at + 32 + header.body_bytes + header.bulk_bytes
            self.frames.append((FrameType(header.type), at, end))
            at = end

    def place(self, kind: FrameType) -> tuple[int, int]:
        """First byte and end of the first frame of a type."""
        return next((first, end) for found, first, end in self.frames if found == kind)


def record(pair: Pair) -> dict[str, bytes]:
    """Run a session; all bytes that each side was given."""
    heard = {"source": bytearray(), "destination": bytearray()}
    for name, machine in (("source", pair.source), ("destination", pair.destination)):

        def hear(data, now, name=name, receive=machine.receive_data):
            heard[name].extend(data)
            receive(data, now)

        machine.receive_data = hear
    pair.run()
    return {name: bytes(data) for name, data in heard.items()}


def completed(pair: Pair) -> None:
    """Both sides agree that the guest lives at the destination, and so it does."""
    here, there = pair.source.result, pair.destination.result
    assert here is not None, pair.source.state
    assert there is not None, pair.destination.state
    assert (here.outcome, there.outcome) == (Outcome.COMPLETED, Outcome.COMPLETED), (here, there)
    assert here.code is there.code is None
    assert here.epoch == there.epoch
    assert here.digest == there.digest != b""
    assert [stats.round for stats in here.rounds] == list(range(1, len(here.rounds) + 1))
    assert [stats.pages for stats in here.rounds] == [stats.pages for stats in there.rounds]
    assert here.bytes_sent == there.bytes_received
    assert there.bytes_sent + HEADER_BYTES == here.bytes_received  # its BYE had not left when it ended
    assert not pair.source_guest.running
    assert pair.source_guest.released
    assert pair.destination_guest.running


def same_memory(pair: Pair) -> None:
    """[MEM-16] What the destination began with is what the source was paused with."""
    copied = {
        region.id for region in pair.source_guest.description.regions if region.transfer is Transfer.COPY
    }
    assert pair.destination_guest.image.keys() == copied
    for number in copied:
        assert pair.destination_guest.image[number] == pair.source_guest.image[number]


def one_runner(pair: Pair) -> str:
    """[one-runner] Who runs the guest, and that each side says so: source, destination or nobody."""
    source, destination = pair.source_guest.running, pair.destination_guest.running
    assert not (source and destination), "the guest runs twice"
    here, there = pair.source.result, pair.destination.result
    assert here is not None
    assert there is not None
    if source:
        assert here.outcome is Outcome.ROLLED_BACK
        assert there.outcome is Outcome.ROLLED_BACK
        return "source"
    assert here.outcome is not Outcome.ROLLED_BACK
    if destination:
        assert there.outcome in {Outcome.COMPLETED, Outcome.MOVED}
        assert here.outcome in {Outcome.COMPLETED, Outcome.MOVED, Outcome.UNDECIDED}
        return "destination"
    assert here.outcome is Outcome.UNDECIDED
    return "nobody"


def as_before(guest: PlainSource) -> None:
    """[CON-62] [rollback] The guest runs on as if nothing had been."""
    assert guest.running
    assert not guest.tracked
    assert guest.share == 0.0
    assert guest.granted is None
    assert not guest.released


# ---- the way it should go ----


def simulated(
    parameters: WorkloadParameters,
    rate_bytes_s: float,
    *,
    step_s: float = 0.01,
    chunk: int | None = None,
    **changes,
) -> Pair:
    """A migration of a guest that writes while it runs, with a link of `chunk` bytes a step."""
    journal: list = []
    source = SimulatedSourceGuest(parameters, rate_bytes_s=rate_bytes_s)
    source.machine.journal = journal
    destination = SimulatedDestinationGuest(rate_bytes_s=rate_bytes_s, journal=journal)

    def between(pair: Pair) -> None:
        pair.now += step_s
        source.advance(step_s)
        destination.advance(step_s)

    config = source_config_of(source.description, epoch=EPOCH, runner=HERE, **changes)
    pair = Pair(source, destination, source_config=config, between=between)
    pair.run(chunk=chunk, steps=200_000)
    return pair


def no_fork(journal) -> None:
    """Counts rise, epochs do not fall, and an epoch has one runner."""
    assert all(before.count < after.count for before, after in pairwise(journal))
    assert all(before.epoch <= after.epoch for before, after in pairwise(journal))
    runners = {(entry.epoch, entry.runner) for entry in journal}
    assert len({epoch for epoch, _ in runners}) == len(runners)


@st.composite
def workloads(draw) -> WorkloadParameters:
    block = draw(st.sampled_from([1, 4, 16]))
    hot, cold = draw(st.integers(1, 12)) * block, draw(st.integers(0, 12)) * block
    zero = draw(st.integers(0, 40))
    every = draw(st.sampled_from([0, 2, 5])) if cold else 0
    return WorkloadParameters(draw(st.integers(0, 99)), hot + cold + zero, hot, every, block, zero)


@pytest.mark.slow
@settings(max_examples=40)
@given(
    workloads(),
    st.floats(0, 200 * MIB),
    st.none() | st.integers(500, 100_000),
    st.integers(4096, 64 * 1024),
)
def test_a_guest_arrives_whole(parameters, rate_bytes_s, chunk, batch_bytes):
    """[same-memory] [no-stale-page] [converges] Whatever it writes, however fast, over whatever link."""
    policy = PolicySettings(on_exhausted="switch", max_rounds=8)
    pair = simulated(parameters, rate_bytes_s, chunk=chunk, policy=policy, batch_bytes=batch_bytes)
    completed(pair)
    guest = pair.destination_guest
    assert guest.workload.errors == 0
    assert guest.workload.audit().errors == 0
    assert guest.machine.epoch == EPOCH + 1
    no_fork(guest.machine.journal)
    assert guest.advance(0.1) >= 0
    assert guest.workload.audit().errors == 0


REGIONS = st.lists(
    st.tuples(
        st.integers(1, 6),
        st.sampled_from([12, 13, 16]),
        st.sampled_from(
            [Transfer.COPY, Transfer.COPY, Transfer.SHARED, Transfer.REGENERATE, Transfer.OPAQUE]
        ),
    ),
    min_size=1,
    max_size=4,
)
SECTIONS = st.lists(
    st.builds(
        r.StateSection,
        kind=st.sampled_from([StateKind.OPAQUE, StateKind.WORKLOAD, 0x4711]),
        version=st.integers(0, 2),
        data=st.binary(max_size=50) | st.integers(0, 90_000).map(bytes),
        architecture=st.integers(0, 3),
        vcpu=st.sampled_from([0, r.NO_VCPU]),
        instance=st.integers(0, 2),
    ),
    max_size=4,
    unique_by=lambda s: (s.kind, s.version, s.architecture, s.vcpu, s.instance),
)


@pytest.mark.slow
@settings(max_examples=60)
@given(REGIONS, SECTIONS, st.data())
def test_any_regions_and_any_state(layout, sections, data):
    """[CON-17] [CON-48] [MEM-13] What is copied arrives, the rest does not travel; granules up to 64 KiB."""
    regions = [
        r.Region(7 * number, number << 40, pages << log2, log2, transfer=transfer)
        for number, (pages, log2, transfer) in enumerate(layout)
    ]
    guest = PlainSource(regions, sections=sections, state_bytes=1 << 20, seed=len(layout))

    def write(pair: Pair) -> None:
        for _ in range(data.draw(st.integers(0, 2)) if guest.running else 0):
            region = data.draw(st.sampled_from(regions))
            guest.write(region.id, data.draw(st.integers(0, region.pages - 1)), data.draw(st.integers(0, 9)))

    pair = plain_pair(guest, write, policy=PolicySettings(max_rounds=5, on_exhausted="switch"))
    pair.run()
    completed(pair)
    same_memory(pair)
    assert pair.destination_guest.sections == tuple(sections)
    assert pair.destination_guest.runs == [(EPOCH + 1, pair.destination._admission.runner)]


def session(**changes) -> Pair:
    """A small guest that writes in its first rounds; the same each time."""
    guest = PlainSource((replace(REGION, size_bytes=40 * PAGE),), seed=5)
    guest.bytes[0][8 * PAGE : 30 * PAGE] = bytes(22 * PAGE)
    writes = iter([(0, 1, 7), (0, 9, 0), (0, 33, 8), (0, 1, 9), (0, 2, 0)])

    def between(pair: Pair) -> None:
        collected = guest.calls.count("collect_dirty")
        if guest.running and collected + 1 > between.done and (write := next(writes, None)):
            between.done += 1
            guest.write(*write)

    between.done = 0
    policy = PolicySettings(allowed_downtime_s=0.001, max_rounds=3, on_exhausted="switch")
    return plain_pair(guest, between, policy=policy, batch_bytes=8 * PAGE, **changes)


@pytest.mark.slow
@settings(max_examples=30)
@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=30), st.sampled_from(["data", "one", "many"]))
def test_bytes_cut_in_any_way_mean_the_same(cuts, door):
    """[chunking] [FRM-13] Results, memory and every byte that is said are the same."""
    whole, cut = session(), session()
    heard = record(whole)
    completed(whole)

    sizes = cycle(cuts)
    told = {"source": bytearray(), "destination": bytearray()}
    for name, machine in (("source", cut.source), ("destination", cut.destination)):

        def pieces(data, now, name=name, machine=machine, receive=machine.receive_data):
            told[name].extend(data)
            view = memoryview(bytes(data))
            while view:
                count = min(next(sizes), len(view))
                if door == "data":
                    receive(view[:count], now)
                else:
                    places = [machine.get_buffer()] if door == "one" else machine.get_buffers()
                    count = min(count, sum(map(len, places)))
                    left = view[:count]
                    for place in places:
                        part = left[: len(place)]
                        place[: len(part)] = part
                        left = left[len(part) :]
                    machine.buffer_updated(count, now)
                view = view[count:]

        machine.receive_data = pieces
    cut.run()
    completed(cut)
    same_memory(cut)
    assert told == heard
    assert cut.source.result == whole.source.result
    assert cut.destination.result == whole.destination.result
    assert cut.events == whole.events


def test_two_sessions_of_the_same_guest_say_the_same():
    """No clock, no randomness: a session can be repeated byte for byte."""
    assert record(session()) == record(session())


def test_grease_changes_nothing():
    """[skips-unknown] [FRM-7]"""
    plain = session()
    plain.run()
    dice = tuple(Grease(after, GREASE_FIRST + after, bytes(after)) for after in range(0, 30, 3))
    config = DestinationConfig(grease=tuple(Grease(after, GREASE_LAST, b"?") for after in range(9)))
    pair = session(grease=dice)
    pair.destination = type(pair.destination)(config, 0.0)
    pair.run()
    completed(pair)
    same_memory(pair)
    assert [type(event) for event in pair.events["source"]] == [
        type(event) for event in plain.events["source"]
    ]
    assert pair.performed["destination"] != []
    assert pair.source.result.bytes_sent > plain.source.result.bytes_sent


def test_a_migration_without_a_round(monkeypatch):
    """[CON-37] Everything travels in the blackout."""
    decision = Decision(Action.SWITCHOVER, 0.0, 0.0, 1e9, 0.0, "at once")
    monkeypatch.setattr("sterna.core.choosing.decide_style", lambda *_, **__: decision)
    pair = plain_pair(PlainSource((replace(REGION, size_bytes=40 * PAGE),), seed=1))
    heard = record(pair)
    completed(pair)
    same_memory(pair)
    assert [stats.pages for stats in pair.source.result.rounds] == [40]
    kinds = [
        type(each) for each in Overheard(heard["destination"], pair.source_guest.description.regions).records
    ]
    assert kinds.index(r.Switchover) < kinds.index(r.Round)
    assert kinds.count(r.Round) == 1


def test_a_session_without_zero_runs():
    """[NEG-7] [PGS-9]"""
    features = tuple(each for each in offer() if each.id != Feature.ENCODING_ZERO)
    guest = PlainSource((replace(REGION, size_bytes=20 * PAGE),))
    pair = plain_pair(guest, features=features)
    heard = record(pair)
    completed(pair)
    same_memory(pair)
    tables = [
        each
        for each in Overheard(heard["destination"], guest.description.regions).records
        if isinstance(each, r.Pages)
    ]
    assert {int(code) for table in tables for code in table.runs["encoding"]} == {Encoding.RAW}


def test_a_session_with_no_feature_but_what_it_needs():
    """[NEG-11]"""
    features = tuple(each for each in offer() if each.required)
    pair = plain_pair(PlainSource(seed=1), features=features)
    pair.run()
    completed(pair)
    same_memory(pair)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(control_bytes=65536),
        Limits(bulk_bytes=PAGE),
        Limits(batch_runs=1),
        Limits(regions=1, memory_bytes=40 * PAGE, state_bytes=4096, state_sections=1, rejected_runs=0),
    ],
)
def test_a_destination_with_tight_limits(limits):
    """[LIM-6] The source keeps to them."""
    pair = session()
    pair.destination = type(pair.destination)(DestinationConfig(limits=limits), 0.0)
    pair.run()
    completed(pair)
    same_memory(pair)


def test_a_guest_that_writes_faster_than_the_link_is_slowed_down():
    """[CON-36] [converges] It arrives all the same, and runs at full speed there."""
    parameters = WorkloadParameters(seed=3, pages=512, hot_pages=256, block_pages=16)
    policy = PolicySettings(allowed_downtime_s=0.2, fixed_cost_s=0.01)
    pair = simulated(parameters, 4 * MIB, chunk=20_000, policy=policy)  # a link of 2 MB/s
    completed(pair)
    shares = [each.share for each in pair.performed["source"] if isinstance(each, e.Throttle)]
    assert shares
    assert shares == sorted(shares)
    assert pair.source.result.rounds[-1].throttle == shares[-1]
    assert pair.destination_guest.machine.throttle == 0.0
    assert pair.destination_guest.workload.audit().errors == 0


def test_a_guest_that_cannot_be_slowed_down_enough_stays():
    """[CON-36] [rollback]"""
    parameters = WorkloadParameters(seed=3, pages=512, hot_pages=256, block_pages=16)
    policy = PolicySettings(allowed_downtime_s=0.1, fixed_cost_s=0.01, max_throttle=0.2, max_rounds=6)
    pair = simulated(parameters, 40 * MIB, chunk=20_000, policy=policy)
    assert one_runner(pair) == "source"
    assert pair.source.result.code is ErrorCode.NOT_CONVERGING
    assert pair.source_guest.machine.throttle == 0.0
    assert pair.source_guest.workload.audit().errors == 0


# ---- not ready ----


def test_not_ready_and_then_ready():
    """[CON-38] [CON-42]"""
    guest = PlainSource(seed=2)
    pair = plain_pair(
        guest, lambda pair: guest.write(0, 2, 9) if guest.calls.count("collect_dirty") == 1 else None
    )
    pair.destination_guest.prepare_errors = [GuestError("busy")]
    pair.run()
    completed(pair)
    same_memory(pair)
    assert pair.destination_guest.calls.count("prepare") == 2
    assert guest.calls.count("pause") == 1


def test_never_ready():
    """[CON-43] [rollback]"""
    pair = plain_pair(PlainSource(seed=2))
    pair.destination_guest.prepare_errors = [GuestError("busy") for _ in range(9)]
    pair.run()
    assert one_runner(pair) == "source"
    as_before(pair.source_guest)
    assert pair.source.result.code is pair.destination.result.code is ErrorCode.NOT_READY
    assert "pause" not in pair.source_guest.calls
    assert pair.destination_guest.discarded


# ---- pages that change on their way ----


def damaging(pair: Pair, when: Callable[[Pair], bool], count: int = 1) -> list[int]:
    """Flip a byte in the middle of the first bulk parts that are on their way while `when` holds."""
    done: list[int] = []
    deliver = pair.deliver

    def damage(pipe, machine, size=None):
        if machine is pair.destination and len(pipe) > 3 * PAGE and len(done) < count and when(pair):
            pipe[len(pipe) // 2] ^= 0xFF
            done.append(len(pipe))
        return deliver(pipe, machine, size)

    pair.deliver = damage
    return done


def test_a_page_that_changed_on_its_way_is_sent_again():
    """[CON-35] [RAK-4] As a running guest would have done between hash and send."""
    pair = session()
    done = damaging(pair, lambda pair: pair.source_guest.running)
    pair.run()
    assert done
    completed(pair)
    same_memory(pair)
    assert sum(stats.rejected_pages for stats in pair.source.result.rounds) > 0
    assert [s.rejected_pages for s in pair.source.result.rounds] == [
        s.rejected_pages for s in pair.destination.result.rounds
    ]


def test_a_page_that_changed_while_the_guest_was_paused():
    """[CON-47] [rollback]"""
    guest = PlainSource((replace(REGION, size_bytes=40 * PAGE),), seed=5)
    pair = plain_pair(guest)
    for page in range(10):
        guest.dirty[0].set(page, 1)
    done = damaging(pair, lambda pair: not pair.source_guest.running)
    original = guest.collect_dirty

    async def collect():
        found = await original()
        if not guest.running:
            found[0].set(0, 10)
        return found

    guest.collect_dirty = collect
    pair.run()
    assert done
    assert one_runner(pair) == "source"
    as_before(guest)
    assert pair.source.result.code is pair.destination.result.code is ErrorCode.PAGE_HASH
    assert pair.source.result.by_peer


def test_a_page_that_the_tracker_lost_is_not_noticed_but_a_lost_frame_is():
    """[MEM-10] [MEM-15] What the digest proves, and what not: see sterna.memory.digest."""
    guest = PlainSource(seed=5)
    pair = plain_pair(guest)
    take = MemoryDigest.record
    skipped: list[int] = []

    def forgetful(self, table, rejected=()):
        if self is pair.destination._digest and not skipped:
            skipped.append(1)
            return
        take(self, table, rejected)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryDigest, "record", forgetful)
        pair.run()
    assert one_runner(pair) == "source"
    assert pair.source.result.code is ErrorCode.DIGEST_MISMATCH


# ---- faults ----

# A guest of zeros: its whole conversation is two kilobytes, so that every byte can be the last one.
TINY = (replace(REGION, size_bytes=2 * PAGE),)


def tiny(**changes) -> Pair:
    return plain_pair(PlainSource(TINY, **changes))


def run_until(pair: Pair, name: str, bytes_: int) -> None:
    """Run a session until one side has been given so many bytes, then cut the link."""
    machine = pair.source if name == "source" else pair.destination
    given = 0
    deliver = pair.deliver

    def limited(pipe, to, count=None):
        nonlocal given
        if to is not machine:
            return deliver(pipe, to, count)
        size = min(len(pipe), bytes_ - given)
        given += size
        return deliver(pipe, to, size) if size else False

    pair.deliver = limited
    pair.run()
    pair.cut(TransportError(ErrorCode.CONNECTION_LOST))
    while pair.step():
        pass


def expected_runner(name: str, bytes_: int, heard: dict[str, bytes]) -> tuple[str, str]:
    """Who runs the guest if the link is cut there, and what the source knows [11.10]."""
    handed = Overheard(heard["destination"], TINY).place(FrameType.HANDOVER)[1]
    running = Overheard(heard["source"], TINY).place(FrameType.RUNNING)[1]
    loaded = Overheard(heard["source"], TINY).place(FrameType.LOADED)[1]
    if name == "destination":
        sealed = Overheard(heard["destination"], TINY).place(FrameType.SEAL)[1]
        if bytes_ < sealed:
            return "source", "rolled_back"
        if bytes_ < handed:
            return "nobody", "undecided"  # HANDOVER is on its way and does not arrive
        return "destination", "known"
    if bytes_ < loaded:
        return "source", "rolled_back"
    if bytes_ < running:
        return "destination", "undecided"  # RUNNING is on its way and does not arrive
    return "destination", "known"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["source", "destination"])
def test_the_link_is_cut_after_every_byte(name):
    """[one-runner] [rollback] [ONE-20] [ONE-30] [ONE-49] [CON-62] [CON-69] In either direction."""
    heard = record(tiny())
    outcomes = set()
    for bytes_ in range(len(heard[name])):
        pair = tiny()
        run_until(pair, name, bytes_)
        who, knows = expected_runner(name, bytes_, heard)
        assert one_runner(pair) == who, bytes_
        outcome = pair.source.result.outcome
        outcomes.add(outcome)
        if who == "source":
            as_before(pair.source_guest)
            assert pair.destination_guest.discarded
        elif knows == "undecided":
            assert outcome is Outcome.UNDECIDED, bytes_
            assert not pair.source_guest.released
        else:
            assert outcome in {Outcome.MOVED, Outcome.COMPLETED}, bytes_
            assert pair.source_guest.released == (outcome is Outcome.COMPLETED)
        if who == "destination":
            assert pair.destination_guest.image == pair.source_guest.image
    possible = {Outcome.ROLLED_BACK, Outcome.UNDECIDED, Outcome.COMPLETED}
    assert outcomes == possible | ({Outcome.MOVED} if name == "source" else set())


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_the_link_is_cut_anywhere(data):
    """[one-runner] [rollback] Of a guest with content, in either direction."""
    whole = session()
    heard = record(whole)
    name = data.draw(st.sampled_from(["source", "destination"]))
    pair = session()
    run_until(pair, name, data.draw(st.integers(0, len(heard[name]))))
    who = one_runner(pair)
    if who == "source":
        as_before(pair.source_guest)
        assert pair.destination_guest.discarded
    elif who == "destination":
        same_memory(pair)


SOURCE_REQUESTS = [e.StartTracking, e.CollectDirty, e.Pause, e.SaveState, e.MarkGranted, e.Persist]
DESTINATION_REQUESTS = [e.Admit, e.Reserve, e.Prepare, e.LoadState]
COMMITS = [e.Claim, e.RunGuest]


@pytest.mark.parametrize("kind", [*SOURCE_REQUESTS, *DESTINATION_REQUESTS])
def test_a_request_that_fails_before_handover(kind):
    """[rollback] [CON-62] [CON-63] [ONE-18] [ONE-19]"""
    pair = tiny()
    pair.fail_on[kind] = GuestError("broken", ErrorCode.RECORD_FAILED)
    pair.run()
    assert one_runner(pair) == "source"
    as_before(pair.source_guest)
    assert pair.destination_guest.discarded
    expected = ErrorCode.NOT_READY if kind is e.Prepare else ErrorCode.RECORD_FAILED
    assert pair.source.result.code is pair.destination.result.code is expected
    # Of a destination that is never ready it is the source that has enough [CON-43].
    assert pair.source.result.by_peer == (kind in DESTINATION_REQUESTS and kind is not e.Prepare)
    assert pair.source.state in TERMINAL
    assert pair.destination.state in TERMINAL


@pytest.mark.parametrize("kind", COMMITS)
def test_a_request_that_fails_after_handover(kind):
    """[one-runner] [ONE-30] Nobody runs it, and both sides say so."""
    pair = tiny()
    pair.fail_on[kind] = GuestError("broken", ErrorCode.RECORD_FAILED)
    pair.run()
    assert one_runner(pair) == "nobody"
    assert pair.source.result.outcome is pair.destination.result.outcome is Outcome.UNDECIDED
    assert pair.source.result.code is pair.destination.result.code is ErrorCode.RECORD_FAILED
    assert pair.source_guest.granted == EPOCH + 1
    assert not pair.source_guest.released
    assert not pair.destination_guest.discarded


def cannot_write(pair, kind):
    """The destination's first record of this kind is not written."""
    carry_out = pair._destination
    written = []

    async def performing(request):
        if isinstance(request, e.Persist) and not request.early:
            written.append(request.record.kind)
            if request.record.kind == kind and written.count(kind) == 1:
                raise GuestError("disk full", ErrorCode.RECORD_FAILED)
        return await carry_out(request)

    pair._destination = performing
    pair.run()
    return written


@pytest.mark.parametrize("fails", [False, True])
def test_a_session_is_noted_before_it_must_be(fails):
    """If that fails it is not the end: the switchover asks for it again."""
    pair = tiny()
    carry_out, noted = pair._destination, []

    async def performing(request):
        if isinstance(request, e.Persist) and request.record.kind == "session":
            noted.append((pair.destination.phase, request.early))
            if fails and request.early:
                raise GuestError("disk full", ErrorCode.RECORD_FAILED)
        return await carry_out(request)

    pair._destination = performing
    pair.run()
    assert noted == [(Phase.ROUNDS, True), (Phase.PREPARE, False)]
    completed(pair)
    same_memory(pair)


def test_a_session_that_the_destination_cannot_record():
    """[CON-38] [CON-42] It is not ready, and then it is."""
    pair = tiny()
    assert cannot_write(pair, "session") == [
        "session",
        "session",
        "claiming",
        "start",
        "complete",
        "released",
    ]
    assert one_runner(pair) == "destination"
    same_memory(pair)


def test_a_claim_that_cannot_be_recorded():
    """[ONE-25] It is not made: the guest is left as it is, at both sides."""
    pair = tiny()
    assert cannot_write(pair, "claiming")[-1] == "claiming"
    assert one_runner(pair) == "nobody"
    assert e.Claim not in [type(each) for each in pair.performed["destination"]]
    assert pair.source.result.outcome is pair.destination.result.outcome is Outcome.UNDECIDED


@pytest.mark.parametrize("kind", ["start", "locks"])
def test_a_guest_that_is_handed_back(kind):
    """[ONE-26] [ONE-28] [ONE-35] [ONE-37] It never runs there, and the source learns that for certain."""
    pair = tiny()
    if kind == "locks":
        pair.fail_on[e.TakeStorage] = GuestError("the locks are held")
    written = cannot_write(pair, kind)
    assert written == ["session", "claiming", *(["start"] if kind == "start" else []), "handback"]
    assert one_runner(pair) == "nobody"
    assert "run" not in pair.destination_guest.calls
    assert pair.destination_guest.discarded
    assert pair.destination.result.outcome is Outcome.ROLLED_BACK
    verdict = pair.source.result.verdict
    assert (verdict.owner, verdict.handed_back, verdict.epoch) == (Owner.SOURCE, True, EPOCH + 1)
    assert not pair.source_guest.released


def test_a_completion_that_cannot_be_recorded():
    """[ONE-39] The guest runs there, and the source keeps its image."""
    pair = tiny()
    cannot_write(pair, "complete")
    assert one_runner(pair) == "destination"
    assert pair.source.result.outcome is pair.destination.result.outcome is Outcome.MOVED
    assert not pair.source_guest.released


def test_a_question_and_its_answer():
    """[ONE-15] [ONE-46] [ONE-60] Without records nothing is known of any session."""
    pair = tiny()
    pair.source.ask(bytes(range(1, 17)), bytes(32), pair.now)
    pair.run()
    assert pair.source.result.outcome is pair.destination.result.outcome is Outcome.ANSWERED
    assert pair.source.result.verdict == r.Verdict(Owner.UNDECIDED, EPOCH, HERE)
    assert pair.source_guest.running
    assert pair.source_guest.calls == pair.destination_guest.calls == []


def test_an_image_that_cannot_be_freed():
    """[CMP-5] The guest lives there all the same."""
    pair = tiny()
    pair.fail_on[e.ReleaseImage] = GuestError("stuck")
    pair.run()
    assert pair.source.result.outcome is pair.destination.result.outcome is Outcome.COMPLETED
    assert not pair.source_guest.released


def test_a_guest_that_cannot_be_set_running_again():
    """[SFX-7]"""
    pair = tiny()
    pair.fail_on[e.LoadState] = GuestError("no", ErrorCode.STATE_REJECTED)
    pair.fail_on[e.RollBack] = GuestError("no storage locks")
    pair.run()
    assert pair.source.result.outcome is Outcome.GUEST_FAILED
    assert not pair.source_guest.running
    assert not pair.destination_guest.running


def test_a_host_that_refuses():
    """[CON-9] [CON-16]"""
    pair = tiny()
    pair.fail_on[e.Admit] = GuestError("full", ErrorCode.FULL)
    pair.run()
    assert one_runner(pair) == "source"
    assert pair.source.result.retry_after_ms == 5000
    assert pair.source_guest.calls == ["stop_tracking", "throttle 0.00", "resume"]


@pytest.mark.parametrize("side", ["source", "destination"])
def test_cancelling_at_every_step(side):
    """[CON-71] [CON-72] [one-runner]"""
    late = False
    for stop in range(100):
        pair = tiny()
        pair.start()
        for _ in range(stop):
            pair.step()
        machine = getattr(pair, side)
        if machine.state in {S.CLOSED, D.CLOSED}:
            break
        if machine.state in COMMITTED:
            late = True
            with pytest.raises(LocalProtocolError, match="too_late"):
                machine.cancel(pair.now)
            pair.run()
            completed(pair)
            continue
        machine.cancel(pair.now)
        assert not late
        pair.run()
        who = one_runner(pair)
        if side == "source":
            assert who == "source"
            as_before(pair.source_guest)
        if who == "source":
            assert pair.source.result.code is pair.destination.result.code is ErrorCode.CANCELLED
    assert late


@pytest.mark.parametrize("frozen", ["source", "destination"])
def test_a_peer_that_freezes_at_every_step(frozen):
    """[CON-73] [CON-75] [one-runner] Noticed in seconds; what is decided does not depend on when."""
    for stop in range(100):
        pair = tiny()
        pair.start()
        for _ in range(stop):
            pair.step()
        name = "destination" if frozen == "source" else "source"
        awake = getattr(pair, name)
        if awake.result is not None:
            break
        started = pair.now
        pair.perform(name, awake)
        while awake.result is None and (at := awake.poll_timeout()) is not None:
            pair.now = max(at, pair.now)
            awake.handle_timeout(pair.now)
            pair.perform(name, awake)
            while buffers := awake.poll_transmit(pair.now):
                awake.transmitted(sum(map(len, buffers)), pair.now)
        assert awake.result is not None, awake.state
        assert pair.now - started <= 12.0
        # It wakes up, and finds the connection gone.
        pair.cut()
        while pair.step():
            pass
        one_runner(pair)


def test_both_sleep_and_wake_together():
    """[CON-75] Both hosts were suspended: nothing is lost."""
    pair = tiny()
    pair.start()
    for _ in range(3):
        pair.step()
    pair.now += 3600.0
    for machine in (pair.source, pair.destination):
        machine.handle_timeout(pair.now)
    pair.run()
    completed(pair)


def test_a_slow_host_is_waited_for():
    """[CON-76] [CON-78] Its heartbeats tell that it lives."""
    pair = tiny()
    pair.start()
    while pair.destination.state is not D.RESERVING:
        pair.step()
    held = pair.destination.poll_request()
    assert isinstance(held, e.Reserve)
    pair.advance(50.0)
    assert pair.source.result is None
    assert pair.destination.state is D.RESERVING
    pair.destination.complete(held, run_now(pair._destination(held)), pair.now)
    pair.run()
    completed(pair)


def test_nothing_happens_for_long_but_heartbeats():
    """[CON-76] [PRG-1] [CON-81] An idle session stays up, and what is told does not run backwards."""
    pair = tiny()
    pair.start()
    while pair.source.state is not S.COLLECTING:
        pair.step(perform=pair.source.state not in {S.ACKING, S.COLLECTING})
        if pair.source.state is S.ACKING:
            pair.deliver(pair.to_source, pair.source)
    real, pair.perform = pair.perform, lambda *_: False
    pair.advance(55.0)
    assert pair.source.result is pair.destination.result is None
    told = [event.record for event in pair.events["source"] if isinstance(event, e.PeerProgress)]
    assert 50 <= len(told) <= 56
    assert all(a.round <= b.round and a.bulk_bytes <= b.bulk_bytes for a, b in pairwise(told))
    pair.perform = real
    pair.run()
    completed(pair)


@pytest.mark.slow
@settings(max_examples=80)
@given(st.data())
def test_any_damage_ends_in_a_code_and_one_runner(data):
    """[coded-refusal] [one-runner] Bytes of either direction flipped, lost, doubled or replaced, anywhere."""
    whole = session()
    heard = record(whole)
    name = data.draw(st.sampled_from(["source", "destination"]))
    at = data.draw(st.integers(0, len(heard[name]) - 1))
    how = data.draw(st.sampled_from(["flip", "drop", "double", "insert"]))
    noise = data.draw(st.binary(min_size=1, max_size=40))
    pair = session()
    machine = getattr(pair, name)
    seen = 0
    receive = machine.receive_data

    def damaged(chunk, now):
        nonlocal seen
        here, seen = at - seen, seen + len(chunk)
        if 0 <= here < len(chunk):
            before, byte, after = chunk[:here], chunk[here], chunk[here + 1 :]
            middle = {
                "flip": bytes([byte ^ (noise[0] or 1)]),
                "drop": b"",
                "double": bytes([byte, byte]),
                "insert": noise + bytes([byte]),
            }[how]
            chunk = before + middle + after
        receive(chunk, now)

    machine.receive_data = damaged
    pair.run()
    pair.advance(400.0)
    who = one_runner(pair)
    for result in (pair.source.result, pair.destination.result):
        assert result.outcome is Outcome.COMPLETED or result.code is not None
    if who == "source":
        as_before(pair.source_guest)
    elif who == "destination":
        same_memory(pair)
