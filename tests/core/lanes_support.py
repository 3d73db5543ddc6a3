"""Sessions with data connections, for the tests that do something on one of them."""

from __future__ import annotations

from core_support import EPOCH, HERE, PAGE, PlainDestination, PlainSource

from sterna.core.events import Outcome
from sterna.core.lanes import Lane
from sterna.core.outbox import Outbox
from sterna.core.sending import Job
from sterna.core.tables import SourceState, State
from sterna.memory.pages import EncodedBatch
from sterna.testing.pair import ADMISSION, Pair, resuming_pair
from sterna.wire import FrameReader, FrameReceived, unchecked
from sterna.wire import records as r

REGIONS = (r.Region(1, 0, 24 * PAGE), r.Region(2, 1 << 30, 8 * PAGE))
SESSION, TOKEN = ADMISSION.session, ADMISSION.token


def pair_of(streams: int, **changes: object) -> Pair:
    """Some memory, sent page by page."""
    source = PlainSource(REGIONS, seed=5)
    changes = {"batch_bytes": PAGE, "epoch": EPOCH, "runner": HERE, **changes}
    return resuming_pair(source, PlainDestination(), streams=streams, **changes)


def run_to(pair: Pair, *states: State) -> Pair:
    """Go on, a little at a time, until a side is in one of these states; the control connection is first.

    A source that is to be found collecting is slow to do so: usually that is over before ROUND_ACK is there.
    """
    if pair.source.state is SourceState.IDLE:
        pair.start()
    for _ in range(20_000):
        for name, machine in (("source", pair.source), ("destination", pair.destination)):
            if machine.state is not SourceState.ACKING or SourceState.COLLECTING not in states:
                pair.perform(name, machine)
            pair._events_of(name, machine)
            for stream in (0, *pair.lanes):
                if {pair.source.state, pair.destination.state} & set(states):
                    return pair
                pair.send(name, stream, 1)
                pair.receive("destination" if name == "source" else "source", stream, 512)
    raise AssertionError(f"{states} not reached: {pair.source.state}, {pair.destination.state}")


def check_moved(pair: Pair) -> None:
    """Both sides agree, and the memory is the same."""
    here, there = pair.source.result, pair.destination.result
    assert here is not None, (pair.source.state, pair.destination.state)
    assert there is not None, (pair.source.state, pair.destination.state)
    assert (here.outcome, there.outcome) == (Outcome.COMPLETED, Outcome.COMPLETED), (here, there)
    assert here.digest == there.digest != b""
    assert pair.destination_guest.image == pair.source_guest.image


def encoded(pair: Pair, job: Job) -> EncodedBatch:
    """A job, done."""
    return pair._pages.encode(job.region, job.starts, job.counts, zeros=job.zeros)


def work(pair: Pair) -> None:
    """Do a job for every connection that has one."""
    for stream in pair.source.streams:
        if (job := pair.source.next_job(stream)) is not None:
            pair.source.job_done(job, encoded(pair, job))


def encode(record: r.Record, stream: int, sequence: int, bulk: bytes = b"") -> bytes:
    """A frame that need obey no rule."""
    return unchecked.frame(record.type, unchecked.body(record), bulk, stream=stream, sequence=sequence)


def door(stream: int, rest: bytes = b"") -> Lane:
    """A connection on which ATTACH has come, and perhaps more."""
    reader = FrameReader(stream=None)
    attach = r.Attach(SESSION, TOKEN, stream - 1, 0)
    reader.receive_data(unchecked.preface() + encode(attach, stream, 0) + rest)
    for _ in range(2):  # the preface, and ATTACH
        reader.next_event()
    lane = Lane(0, 0.0, reader=reader, outbox=Outbox())
    lane.outbox.take()
    return lane


def said_on(pair: Pair, stream: int) -> list[r.Record]:
    """What the destination has queued on a data connection, behind its preface."""
    reader = FrameReader(stream=stream)
    reader.receive_data(unchecked.preface())
    reader.next_event()
    records = []
    while buffers := pair.destination.poll_transmit(pair.now, stream):
        data = b"".join(map(bytes, buffers))
        pair.destination.transmitted(len(data), pair.now, stream)
        reader.receive_data(data)
        while isinstance(event := reader.next_event(), FrameReceived):
            records.append(event.record)
    return records
