"""Recorded migrations to read and to spoil: the frames of a real one, in the order in which they passed."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from sterna.core.policy import PolicySettings
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.observe.follow import Follower, Seen
from sterna.observe.recording import How, RecordingWriter, Side
from sterna.registry import FrameType, Sender
from sterna.testing.pair import Pair, source_config_of
from sterna.wire import DEFAULT_BOUNDS, Bounds, Record, decode_body, unchecked
from sterna.wire.records import Guest

S, D = Sender.SOURCE, Sender.DESTINATION
OTHER = {S: D, D: S}
PARAMETERS = WorkloadParameters(seed=1, pages=64, hot_pages=16, block_pages=16)
HEADER = 32


@dataclass(frozen=True)
class Unit:
    """A preface or a whole frame, as its sender sent it."""

    sender: Sender
    raw: bytes

    @property
    def type(self) -> int:
        """Of a frame; 0x5389 of a preface."""
        return struct.unpack_from("<H", self.raw)[0]

    @property
    def sequence(self) -> int:
        return struct.unpack_from("<Q", self.raw, 8)[0]

    @property
    def body(self) -> bytes:
        (size,) = struct.unpack_from("<I", self.raw, 16)
        return self.raw[HEADER : HEADER + size]

    @property
    def bulk(self) -> bytes:
        return self.raw[HEADER + len(self.body) :]


class Tape(list[Unit]):
    """A session as a list of units. Alterations give a new tape; sequence numbers are made right again."""

    def where(self, frame: FrameType, nth: int = 0) -> int:
        """The place of the nth frame of a type; from behind if negative."""
        return [at for at, unit in enumerate(self) if unit.type == frame][nth]

    def record(self, frame: FrameType, nth: int = 0) -> Record:
        """What it says."""
        unit = self[self.where(frame, nth)]
        return decode_body(frame, unit.body, self.bounds if frame is not FrameType.GUEST else DEFAULT_BOUNDS)

    @property
    def bounds(self) -> Bounds:
        guest = self.record(FrameType.GUEST)
        assert isinstance(guest, Guest)
        return Bounds(regions={region.id: region for region in guest.regions})

    def without(self, frame: FrameType, nth: int = 0) -> Tape:
        at = self.where(frame, nth)
        return Tape([*self[:at], *self[at + 1 :]]).renumbered()

    def swapped(self, frame: FrameType, other: FrameType, nth: int = 0, other_nth: int = 0) -> Tape:
        a, b = self.where(frame, nth), self.where(other, other_nth)
        new = Tape(self)
        new[a], new[b] = self[b], self[a]
        return new.renumbered()

    def changed(self, frame: FrameType, nth: int = 0, **fields: object) -> Tape:
        """A frame says something else, its checksums are right."""
        unit = self[self.where(frame, nth)]
        body = unchecked.body(replace(self.record(frame, nth), **fields))
        return self.replaced(frame, nth, unchecked.frame(frame, body, unit.bulk, sequence=unit.sequence))

    def replaced(self, frame: FrameType, nth: int, raw: bytes) -> Tape:
        at = self.where(frame, nth)
        return Tape([*self[:at], Unit(self[at].sender, raw), *self[at + 1 :]])

    def patched(self, frame: FrameType, nth: int, offset: int, new: bytes, *, repair: bool = True) -> Tape:
        """Bytes of a frame are others, with the checksums made right."""
        raw = self[self.where(frame, nth)].raw
        return self.replaced(frame, nth, unchecked.patch(raw, offset, new, repair=repair))

    def inserted(self, at: int, sender: Sender, record: Record, bulk: bytes = b"") -> Tape:
        """One frame more, before the unit at `at`."""
        raw = unchecked.frame(record.type, unchecked.body(record), bulk)
        return Tape([*self[:at], Unit(sender, raw), *self[at:]]).renumbered()

    def renumbered(self) -> Tape:
        """With right sequence numbers, so that another clause has to find what is wrong."""
        numbers = {S: 0, D: 0}
        new = Tape()
        for unit in self:
            if unit.type == 0x5389:
                new.append(unit)
                continue
            sequence = struct.pack("<Q", numbers[unit.sender])
            new.append(replace(unit, raw=unchecked.patch(unit.raw, 8, sequence)))
            numbers[unit.sender] += 1
        return new

    def until(self, frame: FrameType, nth: int = 0) -> Tape:
        """The units before a frame."""
        return Tape(self[: self.where(frame, nth)])

    def follow(self, follower: Follower | None = None, *, end: How | None = How.PROPERLY) -> Follower:
        """What a follower makes of it."""
        follower = follower or Follower()
        for at, unit in enumerate(self):
            list(follower.feed(unit.sender, unit.raw, at * 1_000_000))
        if end is not None:
            for sender in (S, D):
                follower.end(sender, end, len(self) * 1_000_000)
        return follower

    def write(self, path: Path, side: Side = Side.BETWEEN, *, end: How | None = How.PROPERLY) -> Path:
        """A recording of it, a millisecond between two units."""
        with path.open("wb") as file:
            writer = RecordingWriter(file, side)
            self.write_to(writer, end=end)
            writer.close(len(self) * 1_000_000)
        return path

    def write_to(self, writer: RecordingWriter, *, end: How | None = How.PROPERLY) -> None:
        """One connection of a recording."""
        connection = writer.connect()
        for at, unit in enumerate(self):
            writer.passed(connection, unit.sender, unit.raw, at * 1_000_000)
        for sender in (S, D) if end is not None else ():
            writer.ended(connection, sender, end or How.LOST, len(self) * 1_000_000)

    def seen(self, **options: object) -> list[Seen]:
        follower = Follower(**options)
        return [seen for unit in self for seen in follower.feed(unit.sender, unit.raw)]


def units(sender: Sender, data: bytes) -> Iterator[Unit]:
    """The units of whole frames, a preface first if there is one."""
    at = 0
    while at < len(data):
        size = 16
        if data[at] != 0x89 or data[at + 1] != 0x53:
            body_bytes, bulk_bytes = struct.unpack_from("<II", data, at + 16)
            size = HEADER + body_bytes + bulk_bytes
        yield Unit(sender, data[at : at + size])
        at += size
    assert at == len(data)


# Four rounds and the blackout's, each of several batches, whatever the guest writes.
POLICY = PolicySettings(
    allowed_downtime_s=0.001, max_rounds=4, max_throttle=0, on_exhausted="switch", fixed_cost_s=0
)


def migration(
    *,
    damage: Iterable[int] = (),
    meddle: Callable[[Pair], None] = lambda _: None,
    prepare: Callable[[Pair], None] = lambda _: None,
    guest: SimulatedSourceGuest | None = None,
    **config: object,
) -> Tape:
    """A whole migration of the simulated guest, which writes while it moves.

    Args:
        damage: numbers of PAGES frames of which a byte of the last page is flipped on its way.
        meddle: called between two steps, after the bytes have been taken down.
        prepare: called before the first step.
        guest: what moves.
        config: of the source.
    """
    tape = Tape()
    tables = count()
    damaged = set(damage)

    def passing(unit: Unit) -> Unit:
        hit = unit.type == FrameType.PAGES and next(tables) in damaged
        return Unit(unit.sender, unit.raw[:-1] + bytes([unit.raw[-1] ^ 1])) if hit else unit

    def between(pair: Pair) -> None:
        for sender, pipe in ((S, pair.to_destination), (D, pair.to_source)):
            fresh = [passing(unit) for unit in units(sender, bytes(pipe))]
            tape.extend(fresh)
            pipe[:] = b"".join(unit.raw for unit in fresh)
        pair.source_guest.advance(0.02)
        pair.now += 0.02
        meddle(pair)

    guest = guest or SimulatedSourceGuest(PARAMETERS, rate_bytes_s=2_000_000)
    settings = {"policy": POLICY, "batch_bytes": 65536, **config}
    source_config = source_config_of(guest.description, **settings)
    pair = Pair(guest, SimulatedDestinationGuest(), source_config=source_config, between=between)
    prepare(pair)
    pair.run()
    return tape
