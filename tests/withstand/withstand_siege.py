"""The same attacks against what embedders run: trio endpoints, over a link in memory, in virtual time.

A `Siege` has what the judge looks at, as a `Victim` has it. Its peer is a script that says the recorded
frames when the endpoint is where it waited for them, and then does something else.
"""

from __future__ import annotations

import functools
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from trio.testing import MockClock
from withstand_support import (
    DEVICES,
    EPOCH,
    HERE,
    LIMITS,
    PAGE_BYTES,
    Said,
    SourceGuest,
    Victim,
    recording,
    scan,
    split,
)

from sterna.core import events as e
from sterna.core.events import Result
from sterna.core.policy import PolicySettings
from sterna.core.session import Session
from sterna.core.tables import SourceState, State
from sterna.errors import TransportError
from sterna.guest.simulated import SimulatedDestinationGuest
from sterna.net.destination import Destination
from sterna.net.memory import memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.registry import FrameType
from sterna.wire import unchecked

# How long an endpoint is waited for in virtual time, whatever happens to it: the longest deadline, one more
# look a heartbeat later, the last words, and the wait for the peer to close.
BOUND_S = 60.0 + 1.0 + 10.0 + 10.0
_TICK_S = 0.001
_STEPS = 2000  # of the event loop, until an endpoint is where it is expected


@functools.cache
def arrivals(role: str) -> tuple[State, ...]:
    """Where a machine waits when each recorded frame arrives."""
    victim = Victim(role)
    if role == "source":
        victim.until(SourceState.GREETING)
    found = []
    for said in recording()[role]:
        found.append(victim.settle().machine.state)
        victim.hear(victim.again(said))
    return tuple(found)


class Siege:
    """An endpoint, its guest, and the peer's end of its connection.

    Attributes:
        peer: the end from which it is attacked.
        told: every byte that it has said and that the peer has read.
        heard: every byte that was sent to it.
        seconds: how long it took, in virtual time, from the attack on.
        growth_bytes: the most memory that the process held more at any moment from then on; what the link
            and the script hold is part of it.
    """

    def __init__(self, role: str, **link: object) -> None:
        self.role = role
        self.limits = LIMITS
        self.near, self.peer = memory_transport_pair(**link)  # type: ignore[arg-type]
        self.guest = SourceGuest()
        self.guest.machine.runner, self.guest.machine.epoch = HERE, EPOCH
        self.room = SimulatedDestinationGuest(
            cpu_features=DEVICES["cpu_features"],  # type: ignore[arg-type]
            rate_bytes_s=PAGE_BYTES,
            journal=self.guest.machine.journal,
        )
        self.finished: list[e.Finished] = []
        self.told = bytearray()
        self.heard = bytearray()
        self.asked: list[type] = []
        self.records: list[str] = []
        self.seconds = 0.0
        self.growth_bytes = 0
        self.listens = True
        self.measured = False
        self._said = 0
        options = Options(
            limits=LIMITS,
            clock=trio.current_time,
            grease=False,
            policy=PolicySettings(),
            on_event=self._on_event,
        )
        self.endpoint: Source | Destination = (
            Source(self.guest, self.near, epoch=EPOCH, runner=HERE, options=options)
            if role == "source"
            else Destination(lambda _: self.room, self.near, options=options)
        )

        carry_out = self.endpoint._perform

        async def perform(request: e.Request) -> object:
            self.asked.append(type(request))
            if isinstance(request, e.Persist):
                self.records.append(request.record.kind)
            return await carry_out(request)

        self.endpoint._perform = perform  # type: ignore[method-assign]

    def _on_event(self, event: e.Event) -> None:
        if isinstance(event, e.Finished):
            self.finished.append(event)

    # What the judge asks for, as of a Victim.

    @property
    def machine(self) -> Session:
        """The endpoint's own."""
        assert self.endpoint._pump is not None
        return self.endpoint._pump.machine

    @property
    def spoken(self) -> list[Said]:
        """The frames that the peer has read."""
        return split(bytes(self.told))

    handed_over = Victim.handed_over
    recorded = property(lambda self: recording())

    # The peer.

    async def say(self, data: bytes) -> None:
        """Bytes, with a preface before the first."""
        if not self.heard:
            data = unchecked.preface() + data
        self.heard += data
        try:
            await self.peer.send([data])
        except (TransportError, trio.ClosedResourceError):
            await trio.sleep_forever()  # there is nobody left to say anything to

    async def until(self, number: int) -> None:
        """Say the recorded frames before this one, each when it is waited for; wait until this one is."""
        for at, state in enumerate(arrivals(self.role)[: number + 1]):
            for _ in range(_STEPS):
                if self.endpoint._pump is not None and self.machine.state is state:
                    break
                await trio.lowlevel.checkpoint()
            else:
                raise AssertionError(f"{self.machine.state} instead of {state}")
            if at < number:
                await self.say(self.again(recording()[self.role][at]))
                self._said += 1
        await trio.sleep(_TICK_S)

    def again(self, said: Said) -> bytes:
        """A recorded frame as the peer's next."""
        return unchecked.frame(said.frame, said.body, said.bulk, sequence=self._said)

    def frame(self, kind: int, body: bytes = b"", bulk: bytes = b"", **header: int) -> bytes:
        """The peer's next frame, of any content; the number is right, and counts, unless given."""
        if "sequence" not in header:
            header["sequence"] = self._said
            self._said += 1
        return unchecked.frame(kind, body, bulk, **header)  # type: ignore[arg-type]

    def pongs(self) -> bytes:
        """Answers to all PINGs that have had none."""
        asked = [said.body for said in self.spoken if said.frame == FrameType.PING]
        answered = sum(said.frame == FrameType.PONG for said in scan(bytes(self.heard)))
        return b"".join(self.frame(FrameType.PONG, number) for number in asked[answered:])

    async def _listen(self) -> None:
        buffer = memoryview(bytearray(64 * 1024))
        with suppress(TransportError, trio.ClosedResourceError):
            while count := await self.peer.receive_into(buffer):
                self.told += buffer[:count]

    async def _run(self) -> None:
        await self.endpoint.run()
        self._ended.set()

    async def run(self, number: int, attack: Callable[[Siege], Awaitable[None]]) -> None:
        """Honest up to a recorded frame, which is left out; then the attack, until the endpoint has ended."""
        self._ended = trio.Event()
        async with trio.open_nursery() as others:
            if self.listens:
                others.start_soon(self._listen)
            others.start_soon(self._run)
            await self.until(number)
            began = trio.current_time()
            if self.measured:
                tracemalloc.start()
            try:
                others.start_soon(attack, self)
                with trio.fail_after(BOUND_S):
                    await self._ended.wait()
                self.growth_bytes = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            self.seconds = trio.current_time() - began
            await trio.sleep(_TICK_S)  # what is on its way still arrives
            others.cancel_scope.cancel()


def besiege(
    role: str,
    number: int,
    attack: Callable[[Siege], Awaitable[None]],
    *,
    listens: bool = True,
    measured: bool = False,
    **link: object,
) -> tuple[Siege, Result]:
    """Bring an endpoint to where it waits for a recorded frame, and do something else; how it ended."""
    sieges: list[Siege] = []

    async def main() -> None:
        siege = Siege(role, **link)
        sieges.append(siege)
        siege.listens, siege.measured = listens, measured
        await siege.run(number, attack)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    (siege,) = sieges
    assert siege.endpoint.result is not None
    assert siege.near.closed
    return siege, siege.endpoint.result
