"""How everything in this folder attacks: a recorded migration, and victims that it leads anywhere.

An honest migration of a small self-auditing guest is recorded once. A `Victim` is one real machine with its
own real (simulated) guest; its peer is whoever holds it: the recording up to any state in which a machine can
be found, then the attack, measured. What came of it is for `withstand_judge` to say.

Nothing here has a clock or randomness: the same bytes give the same end.
"""

from __future__ import annotations

import functools
import struct
import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from sterna.core import events as e
from sterna.core.destination import DestinationConfig
from sterna.core.events import Outcome
from sterna.core.session import Session
from sterna.core.tables import DESTINATION, SOURCE, DestinationState, SourceState, State
from sterna.errors import SternaError, TransportError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import PAGE_BYTES, WorkloadParameters
from sterna.limits import HEADER_BYTES, PREFACE_BYTES, Limits
from sterna.memory.bitmap import PageBitmap
from sterna.registry import FRAMES, ErrorCode, FrameType, Phase, Sender
from sterna.registry import BitmapEncoding as Bits
from sterna.registry import Owner as Side
from sterna.testing.pair import Pair, run_now, source_config_of
from sterna.wire import records as r
from sterna.wire import unchecked
from sterna.wire.integrity import crc32

EPOCH: Final = 5
HERE: Final = r.Runner("source.test", b"\x11" * 16)
THERE: Final = r.Runner("destination.test", bytes(range(16)))
ROLES: Final = ("source", "destination")
SEED: Final = 7

# What victims announce: as little as the protocol allows, so that "no more than announced" is a narrow bound.
LIMITS: Final = Limits(
    control_bytes=64 * 1024,
    bulk_bytes=64 * 1024,
    regions=4,
    memory_bytes=1 << 20,
    state_bytes=64 * 1024,
    state_sections=16,
    batch_runs=256,
    rejected_runs=64,
)

# Two content pages, one of them hot, and two of zeros: every kind of run, and a few KiB of page bytes.
PARAMETERS: Final = WorkloadParameters(
    seed=SEED, pages=4, hot_pages=1, cold_every=2, block_pages=1, zero_pages=2
)

# One content page and one of zeros, for what is done after every single byte.
SMALL: Final = WorkloadParameters(seed=SEED, pages=2, hot_pages=1, block_pages=1, zero_pages=1)
DEVICES: Final = {
    "cpu_features": ("avx",),
    "nics": (r.Nic("eth0", b"\x02abcde"),),
    "disks": (r.Disk("root", "uuid", 1 << 30),),
}

_HEADER: Final = struct.Struct("<HHHHQIIII")


class SourceGuest(SimulatedSourceGuest):
    """Writes a page whenever its writes are collected while it runs: what it does depends on no time.

    The small one does not: its whole migration is a page and little more.
    """

    def __init__(self, parameters: WorkloadParameters = PARAMETERS) -> None:
        most = parameters.pages - 1
        super().__init__(parameters, rate_bytes_s=PAGE_BYTES, region_pages=(most, 1) if most else ())
        self.description = replace(self.description, **DEVICES)  # type: ignore[misc]

    async def collect_dirty(self) -> Mapping[int, PageBitmap]:
        if self.workload.parameters != SMALL:
            self.advance(1.0)
        return await super().collect_dirty()


# ---- the recording ----


@dataclass(frozen=True, slots=True)
class Said:
    """A frame as it went over: its bytes, without the preface even if it was the first."""

    frame: int
    raw: bytes

    @property
    def body_bytes(self) -> int:
        """Length of its body."""
        return int(_HEADER.unpack_from(self.raw)[5])

    @property
    def body(self) -> bytes:
        """Its body."""
        return self.raw[HEADER_BYTES : HEADER_BYTES + self.body_bytes]

    @property
    def bulk(self) -> bytes:
        """Its bulk part."""
        return self.raw[HEADER_BYTES + self.body_bytes :]


def scan(stream: bytes) -> Iterator[Said]:
    """The whole frames of one direction by their lengths alone, whatever else is wrong with them."""
    at = PREFACE_BYTES
    while len(stream) - at >= HEADER_BYTES:
        kind, *_, body, bulk, _, _ = _HEADER.unpack_from(stream, at)
        end = at + HEADER_BYTES + body + bulk
        if end > len(stream):
            return
        yield Said(kind, stream[at:end])
        at = end


def split(stream: bytes) -> list[Said]:
    """The whole frames of one direction, with the right checksums and numbers."""
    assert stream[:PREFACE_BYTES] == unchecked.preface()[: len(stream)]
    found = list(scan(stream))
    for number, said in enumerate(found):
        _, flags, connection, reserved, sequence, _, _, body_crc, crc = _HEADER.unpack_from(said.raw)
        assert (flags, reserved, sequence) == (0, 0, number)
        assert connection in {0, 1}  # 1 behind ATTACH alone
        assert (body_crc, crc) == (crc32(said.body), crc32(said.raw[: HEADER_BYTES - 4]))
    return found


def pair(limits: Limits = LIMITS, parameters: WorkloadParameters = PARAMETERS) -> Pair:
    """Both machines and both guests of the migration that all attacks begin with."""
    guest = SourceGuest(parameters)
    guest.machine.runner, guest.machine.epoch = HERE, EPOCH
    journal, avx = guest.machine.journal, DEVICES["cpu_features"]
    room = SimulatedDestinationGuest(cpu_features=avx, rate_bytes_s=PAGE_BYTES, journal=journal)
    config = source_config_of(guest.description, epoch=EPOCH, runner=HERE, limits=limits)
    return Pair(guest, room, source_config=config, destination_config=DestinationConfig(limits=limits))


@functools.cache
def recording(
    limits: Limits = LIMITS, parameters: WorkloadParameters = PARAMETERS
) -> dict[str, tuple[Said, ...]]:
    """What each side hears in an honest migration, by the side's name."""
    both, heard = pair(limits, parameters), {role: bytearray() for role in ROLES}
    deliver = both.deliver

    def hear(pipe: bytearray, machine: Session, count: int | None = None) -> bool:
        heard["source" if machine is both.source else "destination"].extend(pipe)
        return deliver(pipe, machine, count)

    both.deliver = hear  # type: ignore[method-assign]
    both.run()
    assert both.source.result is not None
    assert both.source.result.outcome is Outcome.COMPLETED, both.source.result
    return {role: tuple(split(bytes(data))) for role, data in heard.items()}


# ---- the victim ----


class Victim:
    """One machine, its guest, and a driver that does one thing at a time.

    Attributes:
        machine: under attack.
        told: every byte that it has said.
        next: the frame of the recording that comes next.
        heard: every byte that it was given.
        asked: the classes of all requests that it has made.
        records: the kinds of all records that it has asked for.
        growth_bytes: the most memory that it held more at any moment of the attacks than before them.
    """

    def __init__(
        self, role: str, *, limits: Limits = LIMITS, parameters: WorkloadParameters = PARAMETERS
    ) -> None:
        self.role = role
        self.limits = limits
        self.both = pair(limits, parameters)
        self.guest: SourceGuest = self.both.source_guest  # type: ignore[assignment]
        self.room: SimulatedDestinationGuest = self.both.destination_guest  # type: ignore[assignment]
        self.machine: Session = self.both.source if role == "source" else self.both.destination
        self.recorded = recording(limits, parameters)
        self.told = bytearray()
        self.next = 0
        self.heard = bytearray()
        self.growth_bytes = 0
        self.finished: list[e.Finished] = []
        self.events: list[e.Event] = []
        self.asked: list[type] = []
        self.records: list[str] = []
        self._taken: list[e.Request] = []
        self._prefaced = False
        self._moves = self._live()

    # -- the driver --

    @property
    def now(self) -> float:
        return self.both.now

    def _live(self) -> Iterator[None]:
        """The honest life of this side, one small step after the other."""
        if self.role == "source":
            self.both.start()
            yield
        for said in self.recorded[self.role]:
            while not self._lags() and self._move():
                yield
            self.hear(said.raw)
            self.next += 1
            yield

    def _lags(self) -> bool:
        """Behind each second round its tracker is slow, so that ROUND_ACK comes first."""
        awaited = self.machine.state is SourceState.ACKING and self.coming == FrameType.ROUND_ACK
        rounds = self.asked.count(e.CollectDirty)
        return awaited and rounds % 2 == 0 and not self.machine.has_unsent

    def _move(self) -> bool:
        """Send one thing or carry out one request. Whether there was one."""
        self._take()
        if buffers := self.machine.poll_transmit(self.now):
            data = b"".join(map(bytes, buffers))
            self.machine.transmitted(len(data), self.now)
            self.told += data
            return True
        if not self._taken:
            return False
        request = self._taken.pop(0)
        perform = self.both._source if self.role == "source" else self.both._destination
        try:
            answer = run_now(perform(request))
        except SternaError as failure:
            self.machine.fail(request, failure, self.now)
        else:
            self.machine.complete(request, answer, self.now)
        self._take()
        return True

    def _take(self) -> None:
        while (request := self.machine.poll_request()) is not None:
            self._taken.append(request)
            self.asked.append(type(request))
            if isinstance(request, e.Persist):
                self.records.append(request.record.kind)
        while (event := self.machine.poll_event()) is not None:
            self.events.append(event)
            if isinstance(event, e.Finished):
                self.finished.append(event)

    def settle(self) -> Victim:
        """Let it do all that it wants to do now."""
        while self._move():
            pass
        return self

    def until(self, state: State, frame: int | None = None) -> Victim:
        """Live honestly until it is in a state, and a frame of this type would be the next to come."""
        while not (self.machine.state is state and frame in {None, self.coming}):
            next(self._moves)
        return self

    def live(self) -> Victim:
        """Live honestly to the end."""
        for _ in self._moves:
            pass
        return self.settle()

    @property
    def coming(self) -> int | None:
        """Type of the recorded frame that comes next."""
        rest = self.recorded[self.role][self.next :]
        return rest[0].frame if rest else None

    # -- the peer --

    def hear(self, data: bytes) -> None:
        """Bytes from the peer; a preface goes before the first."""
        if not self._prefaced:
            self._prefaced = True
            data = unchecked.preface() + data
        self.heard += data
        self.machine.receive_data(data, self.now)
        self._take()

    def attack(self, *pieces: bytes) -> Victim:
        """Bytes that nobody honest would send, and all that this side does about them, measured."""
        tracemalloc.start()
        try:
            for piece in pieces:
                self.hear(piece)
                self.settle()
            self.growth_bytes = max(self.growth_bytes, tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        return self

    def end(self, code: ErrorCode | None = None) -> Victim:
        """The connection ends: properly, or with an error."""
        self.machine.connection_lost(None if code is None else TransportError(code), self.now)
        return self.settle()

    def starve(self, bound_s: float = 200.0) -> Victim:
        """Nothing comes any more, and time passes until that ends the session."""
        end = self.now + bound_s
        while self.machine.result is None and (at := self.machine.poll_timeout()) is not None and at <= end:
            self.both.now = max(at, self.now)
            self.machine.handle_timeout(self.now)
            self.settle()
        return self

    def frame(self, kind: int, body: bytes = b"", bulk: bytes = b"", **header: int) -> bytes:
        """The peer's next frame, of any content; the sequence number is right unless given."""
        header.setdefault("sequence", self.machine._lanes.control.reader.next_sequence)
        if kind == FrameType.ATTACH and self.machine.state is DestinationState.IDLE:
            header.setdefault("stream", 1)
        return unchecked.frame(kind, body, bulk, **header)  # type: ignore[arg-type]

    def record(self, record: r.Record, bulk: bytes = b"", counts: Mapping[str, int] | None = None) -> bytes:
        """The peer's next frame, of any values."""
        return self.frame(record.type, unchecked.body(record, counts), bulk)

    def carry_on(self) -> Victim:
        """The rest of the honest conversation, whatever was said instead of its next frame; then silence."""
        for said in self.recorded[self.role][self.next + 1 :]:
            if self.machine.result is not None:
                break
            self.attack(self.again(said))
        return self.starve()

    def again(self, said: Said) -> bytes:
        """The peer's next frame, with the content of a recorded one."""
        return self.frame(said.frame, said.body, said.bulk)

    @property
    def spoken(self) -> list[Said]:
        """The frames that it has said so far."""
        return split(bytes(self.told))

    @property
    def handed_over(self) -> bool:
        """Whether permission to run has gone over: said by a source, heard by a destination."""
        if self.role == "source":
            return any(said.frame == FrameType.HANDOVER for said in self.spoken)
        permission = next(said for said in self.recorded[self.role] if said.frame == FrameType.HANDOVER)
        return bytes(permission.body) in bytes(self.heard) and any(
            (said.frame, said.body) == (permission.frame, permission.body) for said in scan(bytes(self.heard))
        )


# ---- states and frames ----


@functools.cache
def itinerary(role: str) -> tuple[tuple[State, int | None], ...]:
    """Every state in which a machine can be found, with the recorded frame that would come next; in order."""
    victim, found = Victim(role), {}
    found[victim.machine.state, victim.coming] = None
    for _ in victim._moves:
        found[victim.machine.state, victim.coming] = None
    victim.settle()
    assert victim.machine.result is not None
    assert victim.machine.result.outcome is Outcome.COMPLETED
    return tuple(found)


@functools.cache
def states(role: str) -> tuple[State, ...]:
    """The states of the itinerary, each once."""
    return tuple(dict.fromkeys(state for state, _ in itinerary(role)))


# Of other conversations than the recorded one: questions, hand-backs, lost sessions, pages that come later.
UNVISITED: Final[frozenset[State]] = frozenset(
    {
        SourceState.ASKING, SourceState.RESUMING, SourceState.COMPARING,
        SourceState.ATTACHING, SourceState.REATTACHING, SourceState.REPLACING,
        DestinationState.JOINING,
        SourceState.APART, SourceState.RETURNING, SourceState.CATCHING_UP,
        DestinationState.ANSWERING, DestinationState.HANDING_BACK, DestinationState.RESUMING,
        DestinationState.RESUMED, DestinationState.FETCHING,
    }
)  # fmt: skip


def receivers(frame: FrameType) -> tuple[str, ...]:
    """The roles that a frame may be sent to."""
    by_sender: dict[Sender, tuple[str, ...]] = {
        Sender.SOURCE: ("destination",),
        Sender.DESTINATION: ("source",),
        Sender.BOTH: ROLES,
    }
    return by_sender[FRAMES[frame].sender]


# Where a frame is met that the recording has not at that side: both know the region table by then.
ELSEWHERE: Final[dict[str, State]] = {
    "source": SourceState.ACKING,
    "destination": DestinationState.RECEIVING,
}


def at_home(role: str, frame: FrameType) -> Victim:
    """A victim in a state whose table has this frame: where the recording has it too, if it has it."""
    table = SOURCE if role == "source" else DESTINATION
    known = [(state, coming) for state, coming in itinerary(role) if (state, frame) in table]
    for state, coming in sorted(known, key=lambda one: one[1] != frame):
        return Victim(role).until(state, coming)
    return Victim(role).until(ELSEWHERE[role])


_RUNS: Final = struct.pack("<QQQQ", 0, 1, 2, 1)

# A frame of every type that breaks no rule of its own, with at least one item in each list.
SAMPLES: Final[dict[FrameType, r.Record]] = {
    record.type: record
    for record in (
        r.Refuse(ErrorCode.FULL, 5000, ("memory",), "no room"),
        r.Attach(b"s" * 16, b"t" * 32, 0, 1),
        r.Attached(0, 1, 7),
        r.Held(1, 0, False, 0, 3, Bits.PLAIN, b"\x05"),
        r.RoundAck(1, 1, 3, 0, (r.PageRange(0, 0, 1),)),
        r.NotReady(1, ErrorCode.NOT_READY, "later"),
        r.DirtyBitmap(1, 0, 0, 3, Bits.RUNS, _RUNS),
        r.HandBack(EPOCH + 1, THERE),
        r.PageRequest(0, 1, 2),
        r.Ping(1),
        r.Pong(1),
        r.Progress(Phase.ROUNDS, 1, 4, 2, 4096, 1, 1, 1),
        r.Abort(ErrorCode.CANCELLED, Phase.ROUNDS, text="enough"),
        r.Verdict(Side.DESTINATION, EPOCH + 1, THERE, complete=True, digest=b"d" * 16),
        r.End(9),
    )
}


def sample(frame: FrameType) -> bytes:
    """The body of an honest frame: the recording's first of this type, or else a sample."""
    for role in ROLES:
        for said in recording()[role]:
            if said.frame == frame and frame not in SAMPLES:
                return said.body
    return unchecked.body(SAMPLES[frame])


def sample_bulk(frame: FrameType) -> bytes:
    """The bulk part that belongs to `sample`."""
    for said in recording()["destination"]:
        if said.frame == frame:
            return said.bulk
    return b""
