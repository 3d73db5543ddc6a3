"""A whole migration in virtual time: both machines, a link, a guest that writes, hosts that take their time.

An event is a moment and what happens then; the next one is the earliest. Between two events nothing happens,
so an hour costs what its events cost. Everything follows from the settings and one seed.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final

from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.events import (
    Admission,
    Admit,
    Claim,
    CollectDirty,
    Decided,
    Pause,
    Request,
    Reserve,
    RollBack,
    RoundFinished,
    RunGuest,
    SaveState,
    Throttle,
)
from sterna.core.policy import Action, Decision, PolicySettings, RoundStats
from sterna.core.session import Session
from sterna.core.source import SourceConfig, SourceMachine
from sterna.errors import SternaError
from sterna.registry import Architecture, ErrorCode, StateKind
from sterna.sim.guest import PhantomGuest, Writes
from sterna.sim.link import Link, LinkSettings
from sterna.wire import Buffer
from sterna.wire.records import Guest, Runner, StateSection

_BATCH_BYTES: Final = 1 << 24
_EVENTS_MAX: Final = 5_000_000  # an end for what would otherwise have none
_ADMISSION: Final = Admission(bytes(range(1, 17)), bytes(range(32)), Runner("there", bytes(range(16))))


@dataclass(frozen=True, slots=True)
class Hosts:
    """What hosts need for what they are asked for.

    Attributes:
        request_s: for any request.
        page_s: for each page of a collect, besides.
        state_bytes: of CPU and devices.
    """

    request_s: float = 0.001
    page_s: float = 0.0
    state_bytes: int = 1 << 16


@dataclass(frozen=True, slots=True)
class Outline:
    """How a simulated migration went.

    Attributes:
        moved: whether the guest runs at the destination; otherwise it runs at the source.
        code: why it did not move, None if it did.
        rounds: of the running guest.
        decisions: of the policy, in order.
        downtime_s: from the pause to the first instruction; None if there was no pause.
        predicted_s: the downtime that the last decision predicted, for the memory that was dirty then.
        carried_bytes: of the direction to the destination.
        stale_pages: pages whose version at the destination is not that of the pause.
    """

    moved: bool
    code: ErrorCode | None
    rounds: tuple[RoundStats, ...]
    decisions: tuple[Decision, ...]
    seconds: float
    downtime_s: float | None
    predicted_s: float
    carried_bytes: int
    stale_pages: int


@dataclass(slots=True)
class _Side:
    machine: Session
    out: Link
    answer: Callable[[Request], object]
    work: deque[Request] = field(default_factory=deque)
    busy: bool = False
    waits: bool = False  # for room on the link


class Migration:
    """One migration. `run` lets it happen.

    Args:
        memory_bytes: of the guest.
        writes: what the guest writes.
        link: between the hosts.
        policy: of the source.
        hosts: how quick they are.
        filled: share of the memory that was ever written.
        seed: of the jitter.
    """

    def __init__(
        self,
        memory_bytes: int,
        writes: Writes,
        link: LinkSettings,
        policy: PolicySettings | None = None,
        *,
        hosts: Hosts | None = None,
        filled: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.now = 0.0
        self.guest: Final = PhantomGuest(memory_bytes, writes, filled=filled)
        self.guest.running = True
        self.room: Final = PhantomGuest(memory_bytes, writes, filled=0.0)
        self._hosts: Final = hosts or Hosts()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number: Final = count()
        self._decisions: list[Decision] = []
        self._rounds: list[RoundStats] = []
        self._paused_at: float | None = None
        self._ran_at: float | None = None
        self._lived_to = 0.0
        self._pause_image = self.guest.versions.copy()
        dice = random.Random(seed)
        description = Guest(
            "phantom", Architecture.SYNTHETIC, 1, self._hosts.state_bytes, self.guest.table.regions
        )
        config = SourceConfig(
            guest=description,
            guest_id=bytes(range(16)),
            policy=policy or PolicySettings(),
            batch_bytes=_BATCH_BYTES,
        )
        source = SourceMachine(config, self.guest, self.now)
        self.source: Final = source
        self.destination: Final = DestinationMachine(DestinationConfig(), self.now)
        here = _Side(source, Link(link, dice), self._of_source)
        there = _Side(self.destination, Link(link, dice), self._of_destination)
        self._sides: Final = (here, there)

    def run(self) -> Outline:
        """Everything up to the end of both sides.

        Raises:
            RuntimeError: it has no end.
        """
        self.source.start(self.now)
        for _ in range(_EVENTS_MAX):
            for side in self._sides:
                self._settle(side)
            if all(side.machine.result is not None for side in self._sides):
                return self._outline()
            self._next_event()
        raise RuntimeError(f"no end after {_EVENTS_MAX} events, {self.now} s")

    # ---- time ----

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._number), what))

    def _next_event(self) -> None:
        """Go to the next moment at which something happens: an event, or a timer of a machine."""
        timers = [at for side in self._sides if (at := side.machine.poll_timeout()) is not None]
        if not self._events and not timers:
            raise RuntimeError(f"nothing will ever happen again, {self.now} s")
        timer = min(timers, default=float("inf"))
        if self._events and self._events[0][0] <= timer:
            self.now, _, what = heapq.heappop(self._events)
            what()
            return
        self.now = max(self.now, timer)
        for side in self._sides:
            side.machine.handle_timeout(self.now)

    def _live(self) -> None:
        """Let the guests have had the time since the last look at them."""
        seconds, self._lived_to = self.now - self._lived_to, self.now
        self.guest.live(seconds)
        self.room.live(seconds)

    # ---- a side ----

    def _settle(self, side: _Side) -> None:
        """All that a side can do now."""
        machine = side.machine
        while (request := machine.poll_request()) is not None:
            side.work.append(request)
        if side.work and not side.busy:
            side.busy = True
            self._at(self.now + self._cost_s(side.work[0]), lambda: self._finish(side))
        while (event := machine.poll_event()) is not None:
            if side is self._sides[0]:
                self._note(event)
        self._send(side)

    def _note(self, event: object) -> None:
        if isinstance(event, Decided):
            self._decisions.append(event.decision)
        elif isinstance(event, RoundFinished) and self._paused_at is None:
            self._rounds.append(event.stats)

    def _cost_s(self, request: Request) -> float:
        pages = self.guest.region.pages if isinstance(request, CollectDirty) else 0
        return self._hosts.request_s + pages * self._hosts.page_s

    def _finish(self, side: _Side) -> None:
        """The oldest request of a side is done."""
        request = side.work.popleft()
        side.busy = False
        self._live()
        try:
            answer = side.answer(request)
        except SternaError as error:
            side.machine.fail(request, error, self.now)
        else:
            side.machine.complete(request, answer, self.now)

    def _send(self, side: _Side) -> None:
        """Hand over what the machine has to say, as long as the link has room for it."""
        if side.waits:
            return
        while True:
            room_at = side.out.room_at(self.now)
            if room_at > self.now:
                side.waits = True
                self._at(room_at, lambda: self._room(side))
                return
            self._live()  # page versions are read now
            buffers = side.machine.poll_transmit(self.now)
            if not buffers:
                return
            size = sum(len(buffer) for buffer in buffers)
            side.machine.transmitted(size, self.now)
            self._carry(side, buffers, size)

    def _room(self, side: _Side) -> None:
        side.waits = False

    def _carry(self, side: _Side, buffers: list[Buffer], size: int) -> None:
        """Header and body arrive as they are, with the first part; of page bytes only their number."""
        other = self._sides[1] if side is self._sides[0] else self._sides[0]
        head = bytes(buffers[0])
        for arrival, part in side.out.send(size, now=self.now):
            come = head[:part]
            head = head[len(come) :]
            self._at(arrival, partial(self._arrive, other, come, part - len(come)))

    def _arrive(self, side: _Side, head: bytes, rest: int) -> None:
        machine = side.machine
        if head:
            machine.receive_data(head, self.now)
        while rest:
            size = min(len(machine.get_buffer()), rest)
            machine.buffer_updated(size, self.now)
            rest -= size

    # ---- hosts ----

    def _of_source(self, request: Request) -> object:
        guest = self.guest
        match request:
            case CollectDirty():
                return guest.collect()
            case Throttle(share=share):
                guest.throttle = share
            case Pause():
                guest.running = False
                self._paused_at = self.now
                self._pause_image = guest.versions.copy()
            case SaveState():
                return (StateSection(StateKind.OPAQUE, 1, bytes(self._hosts.state_bytes)),)
            case RollBack():
                guest.throttle, guest.running = 0.0, True
            case _:
                pass
        return None

    def _of_destination(self, request: Request) -> object:
        match request:
            case Admit():
                return _ADMISSION
            case Reserve():
                return self.room
            case Claim(runner=runner):
                return runner
            case RunGuest():
                self._ran_at = self.now
            case _:
                pass
        return None

    def _outline(self) -> Outline:
        here = self.source.result
        assert here is not None
        moved = self._ran_at is not None
        downtime_s = None
        if self._ran_at is not None and self._paused_at is not None:
            downtime_s = self._ran_at - self._paused_at
        last = next((each for each in reversed(self._decisions) if each.action is Action.SWITCHOVER), None)
        stale = int((self.room.versions != self._pause_image).sum()) if moved else 0
        return Outline(
            moved,
            here.code,
            tuple(self._rounds),
            tuple(self._decisions),
            self.now,
            downtime_s,
            0.0 if last is None else last.predicted_downtime_s,
            self._sides[0].out.carried_bytes,
            stale,
        )
