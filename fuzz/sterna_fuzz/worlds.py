"""Two machines, two guests and the connection between them, moved one small step at a time.

What a driver does as one thing is several here: a side takes what its machine has to say, some of it leaves
(and only then are page bytes read, so a guest that writes meanwhile tears them), some of it arrives. A
request is taken, carried out and answered, and between these anything may happen. Every step can be followed
by a look at what must hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sterna.core.destination import DestinationConfig
from sterna.core.events import (
    Claim,
    Discard,
    Event,
    Pause,
    Persist,
    Prepare,
    Request,
    Reserve,
    RollBack,
    RunGuest,
)
from sterna.core.history import History
from sterna.core.negotiate import BASE_FEATURES, offer
from sterna.core.policy import PolicySettings
from sterna.core.records import Record
from sterna.core.session import Session
from sterna.core.source import SourceConfig
from sterna.core.tables import SourceState
from sterna.errors import GuestError, SternaError, TransportError
from sterna.guest.simulated import (
    JournalEntry,
    SimulatedDestinationGuest,
    SimulatedMachine,
    SimulatedSourceGuest,
)
from sterna.guest.workload import WorkloadParameters
from sterna.limits import Limits
from sterna.memory.pages import RegionPages
from sterna.memory.unpacking import Unpacking
from sterna.registry import ErrorCode, Feature, Sender
from sterna.testing.pair import Pair, run_now
from sterna.wire import Buffer
from sterna.wire.records import Runner
from sterna_fuzz.conversations import DESTINATION, EPOCH, SOURCE
from sterna_fuzz.guests import ScribblingGuest
from sterna_fuzz.monitor import Monitor
from sterna_fuzz.packers import ROOM_BYTES, WINDOW_LOG2, Harm, Packs

_EXPANSION: Final = 4096  # so that nothing that is to be packed is refused for being packed too well
_SCRIBBLED_MAX: Final = 8  # of so many pages an audit says why they are not as expected
_FLOW_S: Final = 0.0005  # how long a step of a healthy connection takes
STALL_S: Final = 9.0  # a connection that took nothing for longer may be given up
_IDLE_STEP_S: Final = 0.25
_PATIENCE_S: Final = 25.0  # the shortest deadline for a peer that waits for its host is 30 s
_WELCOME_S: Final = 9.0  # but for WELCOME: 10 s
_TIMEOUTS_MAX: Final = 10_000  # timers that may run out, one after the other, in one stretch of time


@dataclass(frozen=True, slots=True)
class Setting:
    """What a world is like.

    Attributes:
        pages, zero_pages, regions: of the guest.
        allowed_downtime_s, rounds, throttle, switch: of the policy; the last is what it does in the end.
        bulk_bytes: the destination's limit, which makes batches small.
        batch_bytes: what the source wants to send at once.
        precise: whether the tracker knows which pages were written.
        not_ready: how often preparing fails at first.
        claim: whether the destination wins its claim.
        packs: whether pages travel packed; then half of the guest, or eight pages, is of some that pack well.
        changes: and as changes of what was sent before.
        hashed: whether they have hashes; changes need them.
    """

    pages: int = 8
    zero_pages: int = 2
    regions: int = 1
    allowed_downtime_s: float = 0.3
    rounds: int = 4
    throttle: float = 0.5
    switch: bool = True
    bulk_bytes: int = 1 << 16
    batch_bytes: int = 1 << 16
    precise: bool = True
    not_ready: int = 0
    claim: bool = True
    packs: bool = False
    changes: bool = True
    hashed: bool = True


@dataclass(slots=True)
class Held:
    """A request that was taken. `answer` is there once it was carried out."""

    request: Request
    done: bool = False
    answer: object = None
    error: SternaError | None = None


@dataclass(slots=True)
class Side:
    """One end.

    Attributes:
        taken: buffers that the machine has given and that have not left.
        pipe: bytes that have left and not arrived at the other side.
        held: requests that wait for their answer, oldest first.
        connected: whether this side knows of no end of the connection.
        bulk: page bytes at the end of the unit that was taken last.
        left_bulk: likewise, of the unit that has left last, if all of it has.
    """

    name: str
    machine: Session
    monitor: Monitor
    taken: deque[memoryview] = field(default_factory=deque)
    pipe: bytearray = field(default_factory=bytearray)
    held: deque[Held] = field(default_factory=deque)
    connected: bool = True
    bulk: int = 0
    left_bulk: int = 0
    events: list[Event] = field(default_factory=list)


class World(Pair):
    """A pair in small steps.

    Attributes:
        image: memory of the guest at the pause; empty before.
        disturbed: whether anything has happened that may end a migration.
        damaged: whether page bytes were damaged on their way.
        spoilt: whether page bytes were sent that were packed as nothing may be.
        altered: whether page bytes may have changed of which there is no hash, so that nobody finds it.
        stuck: whether a roll-back was made to fail.
        quiet_s: for how long nothing has moved; longest_quiet_s: the most of it so far.
        idle_s: for how long hosts have not answered, in all.
        linked: whether bytes still arrive.
        records: by side, the kinds of the durable records that were written, in order.
        histories: by side, these records; what contradicts one of them is not written.
        claimed: whether the epoch was claimed for the destination.
    """

    def __init__(self, setting: Setting) -> None:
        sizes = _sizes(setting)
        zero_pages = min(setting.pages // 2, _SCRIBBLED_MAX) if setting.packs else setting.zero_pages
        hot = setting.pages - zero_pages
        parameters = WorkloadParameters(3, setting.pages, hot, block_pages=1, zero_pages=zero_pages)
        self.guest: Final = ScribblingGuest(parameters, region_pages=sizes, precise=setting.precise)
        for number in range(zero_pages if setting.packs else 0):
            self.guest.scribble(number, 1 + number)  # what the workload writes does not pack at all
        self.guest.machine.epoch = EPOCH
        self.room: Final = SimulatedDestinationGuest(journal=self.guest.machine.journal)
        limits = Limits(bulk_bytes=setting.bulk_bytes, expansion=_EXPANSION if setting.packs else 1)
        super().__init__(
            self.guest,
            self.room,
            source_config=_source_config(setting, self.guest),
            destination_config=DestinationConfig(
                agent="there", limits=limits, features=BASE_FEATURES | _more(setting).keys()
            ),
        )
        self.packs: Final = Packs(self.source, self._pages) if setting.packs else None
        self.image = b""
        self.count = 0
        self._hashed, self._not_ready, self._wins = setting.hashed, setting.not_ready, setting.claim
        self.records: dict[str, list[str]] = {SOURCE: [], DESTINATION: []}
        guest_id = self.guest.description.id
        self.histories = {SOURCE: History(guest_id), DESTINATION: History(guest_id)}
        self.claimed = False
        self.disturbed = self.damaged = self.spoilt = self.altered = self.stuck = False
        self._scribbles = 0
        self.quiet_s = self.idle_s = self.longest_quiet_s = 0.0
        now = self._clock
        self.sides: Final = {
            SOURCE: Side(SOURCE, self.source, Monitor(Sender.SOURCE, limits, now)),
            DESTINATION: Side(DESTINATION, self.destination, Monitor(Sender.DESTINATION, Limits(), now)),
        }
        here, there = self.sides[SOURCE].monitor, self.sides[DESTINATION].monitor
        here.peer, there.peer = there, here

    def _clock(self) -> float:
        return self.now

    # ---- the connection ----

    def take(self, name: str) -> bool:
        """The next unit that a side's machine has to say. Whether there was one."""
        side = self.sides[name]
        worked = name == SOURCE and self.packs is not None and self.packs.step()
        buffers = side.machine.poll_transmit(self.now)
        self._look_for_harm(buffers)
        side.taken.extend(memoryview(buffer) for buffer in buffers)
        if buffers:
            side.bulk = sum(len(buffer) for buffer in buffers[1:])
        self._events(side)
        return worked or bool(buffers)

    def _look_for_harm(self, buffers: Sequence[Buffer]) -> None:
        """Note what is said of what was packed otherwise than it should be."""
        for buffer in buffers if self.packs is not None else ():
            assert self.packs is not None
            harm = self.packs.harmed.get(bytes(buffer), Harm.NONE)
            if harm is Harm.REJECTED:
                self._damaged()
            self.spoilt |= harm is Harm.ENDS

    def leave(self, name: str, count: int | None = None) -> bool:
        """So many of the bytes that were taken leave, all by default. Whether there were any."""
        side, data = self.sides[name], bytearray()
        while side.taken and (count is None or len(data) < count):
            view = side.taken.popleft()
            room = len(view) if count is None else min(count - len(data), len(view))
            data += view[:room]
            if room < len(view):
                side.taken.appendleft(view[room:])
        if not data:
            return False
        side.left_bulk = 0 if side.taken else side.bulk
        if side.connected:
            side.monitor.hear(bytes(data))
            side.machine.transmitted(len(data), self.now)
            if self.linked:
                side.pipe += data
        return True

    def arrive(self, name: str, count: int | None = None, *, in_place: bool = False) -> bool:
        """So many of the bytes on their way reach a side. Whether there were any.

        Args:
            name: the side.
            count: how many; all by default.
            in_place: whether they are read into the buffer that the machine gives.
        """
        side, pipe = self.sides[name], self.sides[_other(name)].pipe
        data = bytes(pipe[:count])
        del pipe[: len(data)]
        if not data or not side.connected:
            return False
        while data:
            if in_place:
                buffer = side.machine.get_buffer()
                size = min(len(buffer), len(data))
                buffer[:size] = data[:size]
                side.machine.buffer_updated(size, self.now)
            else:
                size = len(data)
                side.machine.receive_data(data, self.now)
            data = data[size:]
            self._events(side)
        return True

    def corrupt(self, name: str, at: int) -> None:
        """A bit of what a side has sent is flipped on its way."""
        pipe = self.sides[name].pipe
        if pipe:
            pipe[at // 8 % len(pipe)] ^= 1 << at % 8
            self.disturbed = True
            self.altered |= not self._hashed

    def damage(self) -> None:
        """A bit of page bytes flips, if some have just left: pages are rejected, not the session.

        Where pages are packed the session may end, for that may be no frame any more. Once the guest is
        paused nothing explains that any more, and the session ends [CON-47]. Without hashes it is content.
        """
        side = self.sides[SOURCE]
        if self.carries_pages:
            side.pipe[-side.left_bulk] ^= 1
            self._damaged()

    def _damaged(self) -> None:
        """Page bytes are not those that they were."""
        self.damaged = True
        self.altered |= not self._hashed

    @property
    def carries_pages(self) -> bool:
        """Whether the last bytes on their way to the destination are those of pages."""
        side = self.sides[SOURCE]
        return bool(side.left_bulk) and len(side.pipe) >= side.left_bulk

    def lose(self, name: str, *, orderly: bool) -> None:
        """A side learns that the connection has ended; nothing arrives anywhere any more."""
        side = self.sides[name]
        self.linked = False
        self.disturbed = True
        for each in self.sides.values():
            each.pipe.clear()
        if side.connected:
            side.connected = False
            side.taken.clear()
            error = None if orderly else TransportError(ErrorCode.CONNECTION_LOST, "reset")
            side.machine.connection_lost(error, self.now)
        self._events(side)

    # ---- requests ----

    def ask(self, name: str) -> bool:
        """Take the next request of a side. Whether there was one."""
        side = self.sides[name]
        request = side.machine.poll_request()
        if request is not None:
            side.held.append(Held(request))
        return request is not None

    def carry_out(self, name: str) -> bool:
        """Do what the oldest request asks for, and keep the answer. Whether there was one to do."""
        held = next((each for each in self.sides[name].held if not each.done), None)
        if held is None:
            return False
        held.done = True
        try:
            work = self._source(held.request) if name == SOURCE else self._destination(held.request)
            held.answer = run_now(work)
        except SternaError as error:
            held.error = error
        return True

    def answer(self, name: str) -> bool:
        """Answer the oldest request, which is carried out if it was not. Whether there was one."""
        side = self.sides[name]
        if not side.held:
            return False
        if not side.held[0].done:
            self.carry_out(name)
        held = side.held.popleft()
        if held.error is not None:
            side.machine.fail(held.request, held.error, self.now)
        else:
            side.machine.complete(held.request, held.answer, self.now)
        self._events(side)
        return True

    def fail(self, name: str) -> bool:
        """Say that the oldest request has failed, carried out or not. Whether there was one."""
        side = self.sides[name]
        if not side.held:
            return False
        held = side.held.popleft()
        self.disturbed = True
        self.stuck = self.stuck or isinstance(held.request, RollBack)
        side.machine.fail(held.request, GuestError("fuzzed"), self.now)
        self._events(side)
        return True

    def _write(self, name: str, record: Record) -> None:
        """Make a record durable, if none that is there stands against it [ONE-27]."""
        self.histories[name] = self.histories[name].after(record)
        self.records[name].append(record.kind)

    async def _source(self, request: Request) -> object:
        answer = await super()._source(request)
        if isinstance(request, Persist):
            self._write(SOURCE, request.record)
        if isinstance(request, Pause):
            self.image, self.count = self.guest.machine.memory.tobytes(), self.guest.workload.count
        return answer

    async def _destination(self, request: Request) -> object:
        if isinstance(request, Discard) and self.room.description is None:
            return None
        match request:
            case Persist(record=record):
                self._write(DESTINATION, record)
            case Prepare() if self._not_ready:
                self._not_ready -= 1
                raise GuestError("not yet")
            case Claim(runner=runner):
                self.claimed = self._wins
                self.disturbed = self.disturbed or not self._wins
                return runner if self._wins else Runner("another", bytes(16))
            case RunGuest():
                self.check_image()
                assert self.claimed, "it is to run, and nobody has claimed it [ONE-25]"
                assert self.records[DESTINATION][-2:] == ["claiming", "start"], "without a record [ONE-28]"
            case Reserve() if self.packs is not None:
                pages = await super()._destination(request)
                assert isinstance(pages, RegionPages)
                return Unpacking(pages, WINDOW_LOG2)
            case _:
                pass
        return await super()._destination(request)

    # ---- guests and time ----

    def write(self, count: int) -> None:
        """Whichever guest runs writes so many pages, less where it is slowed down."""
        if self.packs is not None:
            self._scribbles += 1
            self.guest.scribble(self._scribbles, 1 + self._scribbles % 250)
        for machine in (self.guest.machine, self.room.machine):
            if machine is not None and machine.running:
                live(machine, count)

    def scribble(self, number: int, value: int) -> None:
        """The guest at the source writes to a page as it likes, zeros too."""
        self.guest.scribble(number, value)

    def pass_time(self, seconds: float) -> None:
        """Time passes, and timers act in it; nothing else happens."""
        end = self.now + seconds
        self.quiet_s += seconds
        self.longest_quiet_s = max(self.longest_quiet_s, self.quiet_s)
        self.disturbed = self.disturbed or self.quiet_s > 2.0
        for _ in range(_TIMEOUTS_MAX):
            due = [at for each in self.sides.values() if (at := each.machine.poll_timeout()) is not None]
            self.now = max(self.now, min([end, *due]))
            for side in self.sides.values():
                side.machine.handle_timeout(self.now)
                self._events(side)
                again = side.machine.poll_timeout()
                assert again is None or again > self.now, f"{side.name}: a timer that never passes"
            if self.now >= end:
                return
        raise AssertionError(f"{_TIMEOUTS_MAX} timeouts in {seconds} s")

    def flow(self, steps: int, *, answers: bool = True) -> bool:
        """A healthy connection and quick hosts, for so many steps. Whether anything moves still.

        `answers`: whether the hosts answer in them.
        """
        self.quiet_s = 0.0
        for _ in range(steps):
            if not self._step(answers=answers):
                return False
            self.now += _FLOW_S
        return True

    def _step(self, *, answers: bool = True) -> bool:
        """One step of both. At its end requests are held, buffers are taken, bytes are on their way."""
        moved = self.arrive(SOURCE) | self.arrive(DESTINATION)
        for name in (SOURCE, DESTINATION):
            moved |= (answers and self.answer(name)) | self.leave(name)
            moved |= self.ask(name) | self.take(name)
        return moved

    def idle(self, seconds: float) -> None:
        """Time passes on a healthy connection, while no host answers: heartbeats keep the session alive."""
        self.idle_s += seconds
        greets = self.source.state is SourceState.GREETING
        self.disturbed = self.disturbed or self.idle_s > (_WELCOME_S if greets else _PATIENCE_S)
        for _ in range(int(seconds / _IDLE_STEP_S)):
            self.quiet_s = 0.0
            self.pass_time(_IDLE_STEP_S)
            for _ in range(4):
                self._step(answers=False)

    def _events(self, side: Side) -> None:
        while (event := side.machine.poll_event()) is not None:
            side.events.append(event)
            if self.packs is not None and side.name == SOURCE:
                self.packs.hears(event)

    # ---- looking ----

    def check_image(self) -> None:
        """The guest that is about to run at the destination is the one that was paused [same-memory]."""
        machine = self.room.machine
        assert machine is not None, "no state was loaded"
        assert self.altered or machine.memory.tobytes() == self.image, "another memory than that of the pause"
        assert machine.workload.count == self.count, "another state than that of the pause"


def live(machine: SimulatedMachine, count: int) -> None:
    """A guest writes so many pages, less what its throttle takes away."""
    writes = round(count * (1 - machine.throttle))
    if writes:
        machine.workload.write(writes)
        machine.journal.append(JournalEntry(machine.workload.count, machine.epoch, machine.runner))


def _other(name: str) -> str:
    return DESTINATION if name == SOURCE else SOURCE


def _sizes(setting: Setting) -> tuple[int, ...]:
    """Pages of each region."""
    each = setting.pages // setting.regions
    return (*[each] * (setting.regions - 1), setting.pages - each * (setting.regions - 1))


def _more(setting: Setting) -> dict[Feature, int]:
    """The features by which pages travel packed, and without hashes."""
    more = {} if setting.hashed else {Feature.UNHASHED: 0}
    if setting.packs:
        more |= {Feature.ENCODING_ZSTD: WINDOW_LOG2}
        more |= {Feature.ENCODING_DELTA: ROOM_BYTES} if setting.changes else {}
    return more


def _source_config(setting: Setting, guest: SimulatedSourceGuest) -> SourceConfig:
    policy = PolicySettings(
        allowed_downtime_s=setting.allowed_downtime_s,
        max_rounds=setting.rounds,
        max_throttle=setting.throttle,
        patience=1,
        on_exhausted="switch" if setting.switch else "abort",
    )
    return SourceConfig(
        features=offer(more=_more(setting)),
        guest=guest.description.to_record(),
        guest_id=guest.description.id,
        agent="here",
        epoch=EPOCH,
        runner=Runner("here", bytes(range(32, 48))),
        policy=policy,
        batch_bytes=setting.batch_bytes,
    )
