"""Many sessions into one destination process, whose processor is what they share, in virtual time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import trio
from trio.abc import Instrument
from trio.testing import MockClock

from sterna.core.deadlines import Deadlines
from sterna.core.events import Result
from sterna.core.policy import PolicySettings
from sterna.guest.embedded import EmbeddedGuest
from sterna.net.destination import Destination
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source

PATIENT = PolicySettings(allowed_downtime_s=60.0)
FOREVER = Deadlines(heartbeat_s=1.0, silence_s=1e6, stall_s=1e6, round_s=1e6, prepare_s=1e6)


class Processor:
    """What takes in all that comes takes time for it, and meanwhile does nothing else.

    Args:
        clock: which goes on while it works.
        rate_bytes_s: how much of what comes it takes in.
    """

    def __init__(self, clock: MockClock, rate_bytes_s: float) -> None:
        self._clock = clock
        self._rate_bytes_s = rate_bytes_s

    def takes_in(self, transport: MemoryTransport) -> None:
        """From now on it is what works where something comes here."""
        receive = transport._receive_into

        async def received(view: memoryview) -> int:
            count = await receive(view)
            self._clock.jump(count / self._rate_bytes_s)
            return count

        transport._receive_into = received  # type: ignore[method-assign]


class Turns(Instrument):
    """How many turns each task had together with all those that it is a parent of.

    `of` counts by the name of the outermost task that was given one in `Many`.
    """

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count it."""
        while task.parent_nursery is not None:
            if task.name.startswith("destination "):
                self.of[task.name] += 1
                return
            task = task.parent_nursery.parent_task


@dataclass
class Session:
    """One of many.

    Attributes:
        results: of the source and of the destination, once they have ended.
        ended_s: when the destination had.
    """

    number: int
    size_bytes: int
    options: dict[str, object] = field(default_factory=dict)  # of the source
    link: dict[str, object] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    ended_s: float = 0.0

    def __post_init__(self) -> None:
        content = np.random.default_rng(self.number).bytes(self.size_bytes)
        guest_id = self.number.to_bytes(16, "big")
        self.here = EmbeddedGuest(bytearray(content), guest_id=guest_id)
        self.there = EmbeddedGuest(bytearray(self.size_bytes), guest_id=guest_id)
        self.near, self.far = memory_transport_pair(**self.link)  # type: ignore[arg-type]
        common = {"clock": trio.current_time, "policy": PATIENT}
        self.source = Source(self.here, self.near, options=Options(**common | self.options))  # type: ignore[arg-type]
        self.destination = Destination(
            lambda _: self.there, self.far, options=Options(clock=trio.current_time)
        )

    @property
    def name(self) -> str:
        """Of the destination's task."""
        return f"destination {self.number}"

    @property
    def came_bytes(self) -> int:
        """What the destination has taken in."""
        return self.far.bytes_received

    @property
    def held_bytes(self) -> int:
        """What the destination has to say and cannot."""
        return sum(lane.outbox.unsent_bytes for lane in self.destination._machine._lanes)

    @property
    def moved(self) -> bool:
        """Whether both sides say so, and all of the memory is there."""
        outcomes = {result.outcome.value for result in self.results.values()}
        return outcomes == {"completed"} and self.here.memory(1) == self.there.memory(1)

    async def send(self) -> None:
        """The source's part."""
        self.results["source"] = await self.source.run()

    async def take_in(self) -> None:
        """The destination's."""
        self.results["destination"] = await self.destination.run()
        self.ended_s = trio.current_time()


def start(sessions: list[Session], nursery: trio.Nursery) -> None:
    """All at once."""
    for session in sessions:
        nursery.start_soon(session.take_in, name=session.name)
        nursery.start_soon(session.send)


async def until_came(sessions: list[Session], count: int) -> None:
    """Until one of them has taken in so much."""
    while max(session.came_bytes for session in sessions) < count:
        await trio.lowlevel.checkpoint()


def shares(sessions: list[Session], since: list[int] | None = None) -> list[float]:
    """What each has taken in, by the mean of all of them; `since`: without what they had by then."""
    came = [session.came_bytes for session in sessions]
    gained = [now - before for now, before in zip(came, since or [0] * len(came), strict=True)]
    mean = sum(gained) / len(gained)
    return [each / mean for each in gained]
