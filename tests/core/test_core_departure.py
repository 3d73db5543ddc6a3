"""A source process that dies once its guest was handed over, and the one that serves on, without a loop."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from arrival import completed
from core_support import EPOCH, HERE

from departure_support import departure
from sterna.core import events as e
from sterna.core.carry import SourceCarry
from sterna.core.departure import GENERATIONS_A_PROCESS, Departure
from sterna.core.events import Outcome
from sterna.core.policy import PolicySettings
from sterna.core.source import SourceMachine
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import GuestError, LocalProtocolError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.memory.regions import RegionTable
from sterna.registry import VERSION_DRAFT, VERSION_MAJOR, ErrorCode, Feature, Owner, Style
from sterna.testing.pair import RUNNER, Pair, resuming_pair, run_now
from sterna.wire import encode_frame, encode_preface
from sterna.wire.records import Attached, Region, Verdict

MIB = 1 << 20
PARAMETERS = WorkloadParameters(seed=7, pages=1024, hot_pages=256, cold_every=4, block_pages=8, zero_pages=64)


class HeldGuest(SimulatedSourceGuest):
    """One whose image and notes outlive the endpoint."""

    kept = bytearray()

    async def notes(self, size_bytes: int | None = None) -> memoryview:
        if size_bytes is not None:
            self.kept = bytearray(size_bytes)
        return memoryview(self.kept)


def migration(switchover: str, streams: int = 0, **given: object) -> Pair:
    """Guests that write while they run; `given` as for `resuming_pair`."""
    source = HeldGuest(PARAMETERS, rate_bytes_s=400.0 * MIB)
    destination = SimulatedDestinationGuest(rate_bytes_s=400.0 * MIB)

    def between(pair: Pair) -> None:
        pair.now += 0.01
        source.advance(0.01)
        destination.advance(0.01)

    policy = PolicySettings(switchover=switchover, max_rounds=3, on_exhausted="switch")
    return resuming_pair(
        source,
        destination,
        streams=streams,
        between=between,
        epoch=EPOCH,
        runner=HERE,
        policy=policy,
        **given,
    )


def found(pair: Pair) -> Departure | None:
    """What the next process finds."""
    place = run_now(pair.source_guest.notes())
    departure = Departure.read(place, RegionTable(pair.source_guest.description.regions))
    return None if departure is None else departure.next_process(place)


def die(pair: Pair) -> SourceCarry:
    """The source's process is gone; the destination has lost the link, and a new process is there."""
    departure = found(pair)
    assert departure is not None
    carry = departure.carry(pair._pages, pair.now)
    assert carry.account.resumable  # whatever becomes of the next connection
    pair.source = SourceMachine.resumed(pair._configs[0], pair._pages, carry, pair.now)
    pair.linked = False
    pair.to_source.clear()
    pair.lanes.clear()
    pair.destination.connection_lost(None, pair.now)
    pair.perform("destination", pair.destination)
    pair.kept = pair.destination.carry
    pair.destination = type(pair.destination)(pair._configs[1], pair.now)
    pair.to_destination.clear()
    pair.linked = True
    pair.start()
    return carry


def until(pair: Pair, state: DestinationState) -> None:
    pair.start()
    while pair.destination.state is not state:
        assert pair.step(chunk=100_000)


@pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])
@pytest.mark.parametrize("streams", [0, 2])
def test_the_next_process_serves_on(switchover, streams):
    """[RES-19] [RES-13] [ONE-38] Twice; what is installed is not sent again, and what was never sent is."""
    pair = migration(switchover, streams)
    until(pair, DestinationState.FETCHING)
    left, sent = [], []
    for _ in range(2):
        for _ in range(20):
            assert pair.step(chunk=20_000)
        left.append(sum(each.count() for each in run_now(pair.destination_guest.missing()).values()))
        carry = die(pair)
        assert carry.serving is not None
        sent.append(carry.serving.groups.pages - carry.serving.pages_left)
    assert left[0] > left[1] > 0
    assert 0 < sent[0] <= sent[1]
    pair.run(chunk=100_000, steps=200_000)
    completed(pair)
    after = pair.source.result.after
    assert after.pushed + after.demanded == after.stale - sent[1]  # by this process the first time
    assert after.stale == pair.destination.result.after.stale
    assert pair.destination.result.resumed == 2


@pytest.mark.parametrize("switchover", ["stop-and-copy", "bitmap"])
def test_what_nobody_needs_any_more_is_freed_by_what_the_destination_repeats(switchover):
    """[RES-19] [RES-17] [ONE-39] With the digest that is on its notes, or that its entries give."""
    pair = migration(switchover)
    pair.fail_on[e.ReleaseImage] = GuestError("the process dies")
    pair.run(chunk=100_000, steps=200_000)
    pair.fail_on.clear()
    digest = pair.destination.result.digest
    departure = found(pair)
    assert departure is not None
    assert (departure.image.style is Style.STOP_AND_COPY) == (switchover == "stop-and-copy")
    assert len(pair.source_guest.kept) < 2048 or switchover == "bitmap"
    for told, state in ((bytes(16), SourceState.DEPARTED), (digest, SourceState.RELEASING)):
        carry = departure.carry(pair._pages, pair.now)
        assert (carry.serving is None) == (switchover == "stop-and-copy")
        pair.source = SourceMachine.resumed(pair._configs[0], pair._pages, carry, pair.now)
        pair.source.start(pair.now)
        verdict = Verdict(Owner.DESTINATION, EPOCH + 1, RUNNER, complete=True, digest=told)
        said = encode_preface(VERSION_MAJOR, VERSION_DRAFT), *encode_frame(verdict, 0)
        pair.source.receive_data(b"".join(map(bytes, said)), pair.now)
        assert pair.source.state is state, pair.source.result


def test_notes_are_none_before_the_image_is_sealed():
    """[RES-19] Whoever dies before leaves a guest that runs on."""
    pair = migration("post-copy")
    until(pair, DestinationState.STANDBY)
    while not pair.source_guest.kept:
        assert pair.step(chunk=1000)
    assert found(pair) is None
    pair.source_guest.kept = bytearray()
    assert found(pair) is None


def test_connections_are_numbered_beyond_those_of_any_earlier_process():
    """[RES-19] [RES-1] [STR-5]"""
    pair = migration("post-copy", streams=1)
    until(pair, DestinationState.FETCHING)
    generations = []
    for _ in range(3):
        departure = found(pair)
        carry = departure.carry(pair._pages, pair.now)
        assert carry.marks[1].generation == departure.ticket.generation
        generations.append(departure.ticket.next_hello().generation)
    assert generations == [each * GENERATIONS_A_PROCESS + 1 for each in (1, 2, 3)]


@pytest.mark.parametrize("at", [16, 20, 32, -1])
def test_notes_that_make_no_sense_are_refused(at):
    """A mistake in them is one coded error, or shows at the destination as another digest."""
    pair = migration("post-copy")
    until(pair, DestinationState.FETCHING)
    table = RegionTable(pair.source_guest.description.regions)
    kept = bytes(pair.source_guest.kept)
    if at < 0:
        with pytest.raises(GuestError):
            Departure.read(memoryview(kept), RegionTable([Region(0, 0, 1 << 30)]))
        return
    damaged = bytearray(kept)
    damaged[at] ^= 0xFF
    with pytest.raises(GuestError):
        Departure.read(memoryview(damaged), table)


@pytest.mark.parametrize(
    ("place", "value"), [(2, 0xFFFFFFFF), (3, 2)], ids=["no number is left", "more connections than selected"]
)
def test_notes_of_a_session_that_cannot_be_resumed_are_refused(place, value):
    """[RES-19] Before anything is made for so many connections."""
    pair = migration("post-copy", streams=1)
    until(pair, DestinationState.FETCHING)
    damaged = bytearray(pair.source_guest.kept)
    struct.pack_into("<I", damaged, 4 * place, value)
    with pytest.raises(GuestError, match="no session that can be resumed"):
        Departure.read(memoryview(damaged), RegionTable(pair.source_guest.description.regions))


def test_notes_of_a_session_without_resumption_are_refused():
    """They would be foreign: nobody makes notes of such a session."""
    table = RegionTable([Region(0, 0, 1 << 16)])
    noted = departure(table, Style.STOP_AND_COPY)
    welcome = noted.ticket.welcome
    others = tuple(each for each in welcome.features if each.id != Feature.RESUME)
    noted = replace(noted, ticket=replace(noted.ticket, welcome=replace(welcome, features=others)))
    place = memoryview(bytearray(noted.size_bytes))
    noted.write(place)
    with pytest.raises(GuestError, match="no session that can be resumed"):
        Departure.read(place, table)


@pytest.mark.parametrize("last", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_destination_leaves_room_for_what_follows(last):
    """[RES-19] [ATT-6] Nobody knows what has been sent before; but behind the last number there is none."""
    pair = migration("post-copy", streams=1)
    until(pair, DestinationState.FETCHING)
    die(pair)
    while not pair.source._lanes.data:
        assert pair.step(chunk=1000)
    (lane,) = pair.source._lanes.data
    said = encode_preface(), *encode_frame(Attached(0, lane.generation, last), 0, stream=1)
    pair.source.receive_data(b"".join(map(bytes, said)), pair.now, 1)
    assert lane.attached == (last < 1 << 63)
    if lane.attached:
        while pair.source.poll_transmit(pair.now, 1):
            pass  # pages
        assert lane.outbox.writer.next_sequence > last + 1
    else:
        assert pair.source.poll_transmit(pair.now, 1) == []
        assert pair.source._account.error.code is ErrorCode.BAD_VALUE


@pytest.mark.parametrize("room", [memoryview(bytes(1 << 20)), memoryview(bytearray(8)), b"room"])
def test_room_for_notes_is_what_was_asked_for(room):
    pair = migration("bitmap")
    pair.start()
    while not any(isinstance(each, e.KeepNotes) for each in pair.performed["source"]):
        assert pair.step(chunk=100_000)
    request = next(each for each in pair.performed["source"] if isinstance(each, e.KeepNotes))
    with pytest.raises(LocalProtocolError) as caught:
        e.check_answer(request, room)
    assert caught.value.code is ErrorCode.INTERNAL


def test_without_room_for_notes_there_is_no_handover():
    """[RES-19] [CON-62] The guest runs on here."""
    pair = migration("bitmap")
    pair.fail_on[e.KeepNotes] = GuestError("no memory", ErrorCode.FULL)
    pair.run(chunk=100_000)
    assert pair.source.result.outcome is Outcome.ROLLED_BACK
    assert pair.source_guest.running
