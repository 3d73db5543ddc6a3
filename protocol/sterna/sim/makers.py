"""Where a world's machines come from."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Protocol

from sterna.core.carry import SourceCarry
from sterna.core.departure import Departure
from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.negotiate import BASE_FEATURES, FOLLOW_FEATURES
from sterna.core.policy import PolicySettings, Switchover
from sterna.core.source import SourceConfig, SourceMachine
from sterna.core.style import offer_for
from sterna.limits import Limits
from sterna.registry import Feature
from sterna.sim.holder import GUEST, GUEST_ID, REGIONS, CountingPages, Holder
from sterna.sim.kept import Kept, Left, Noted
from sterna.sim.machines import Driven, LiveMachine, Recollection
from sterna.wire.records import Runner


@dataclass(frozen=True, slots=True)
class Shape:
    """What machines are to be like.

    Attributes:
        store: whether hosts have a lease store, and so require it of each other.
        max_rounds: after so many, a source switches over.
        resume: whether sessions whose link is lost are taken up again.
        downtime_s: what it allows; the smaller, the more rounds there are.
        switchover: how a source is to switch over.
        unhashed: whether pages go without hashes.
    """

    store: bool = True
    max_rounds: int = 3
    resume: bool = False
    downtime_s: float = 0.3
    switchover: Switchover = "stop-and-copy"
    unhashed: bool = False


_RESUME_S: Final = 60  # for which a destination keeps what it has


class Makers(Protocol):
    """Makes machines."""

    @property
    def keeps(self) -> bool:
        """Whether sessions outlive connections, and processes."""
        ...

    @property
    def clocked(self) -> bool:
        """Whether time passes: whoever was refused tries again after a while."""
        ...

    def source(self, holder: Holder) -> Driven:
        """One that sends away what is in this holder."""
        ...

    def asker(self, host: str, epoch: int, runner: Runner) -> Driven:
        """A source that asks about a session that has shown this epoch and runner."""
        ...

    def destination(self, host: str) -> Driven:
        """One that takes in what comes, or answers."""
        ...

    def departed(self, holder: Holder, session: bytes, *, reuses: bool = False) -> Kept | Noted | None:
        """What a source process that has died has left of a session, in this holder [RES-19].

        `reuses`: and numbers its connections as that one did, as must never be.
        """
        ...

    def resumed(self, holder: Holder, kept: Kept | Left | Noted) -> Driven:
        """A source that takes up a session again."""
        ...


class LiveMakers:
    """Machines for one run, at the time that `clock` tells."""

    keeps: Final = True
    clocked: Final = True

    def __init__(self, shape: Shape, clock: Callable[[], float]) -> None:
        self._shape: Final = shape
        self._clock: Final = clock

    def source(self, holder: Holder, *, follows: bool = False) -> LiveMachine:
        """See `Makers`. `follows`: what is in the holder is what the machine was told."""
        config = source_config(self._shape, holder.host, holder.epoch, holder.runner)
        machine = SourceMachine(config, CountingPages(holder), self._clock())
        return LiveMachine(machine, still=holder if follows else None)

    def asker(self, host: str, epoch: int, runner: Runner) -> LiveMachine:
        """See `Makers`."""
        config = source_config(self._shape, host, epoch, runner)
        return LiveMachine(SourceMachine(config, CountingPages(Holder(host, b"")), self._clock()))

    def destination(self, host: str) -> LiveMachine:
        """See `Makers`."""
        return LiveMachine(DestinationMachine(destination_config(self._shape, host), self._clock()))

    def departed(self, holder: Holder, session: bytes, *, reuses: bool = False) -> Kept | None:
        """See `Makers`."""
        notes = holder.notes
        place = memoryview(notes if isinstance(notes, bytearray) else b"")
        found = _noted(place, session)
        if found is None:
            return None
        assert isinstance(notes, bytearray)
        departure = found if reuses else found.next_process(place)
        carry = departure.carry(CountingPages(holder), self._clock())
        return Kept(carry, bytearray(), holder.image, notes)

    def resumed(self, holder: Holder, kept: Kept | Left | Noted) -> LiveMachine:
        """See `Makers`."""
        assert isinstance(kept, Kept)
        assert isinstance(kept.carry, SourceCarry)
        config = source_config(self._shape, holder.host, holder.epoch, holder.runner)
        machine = SourceMachine.resumed(config, CountingPages(holder), kept.carry, self._clock())
        return LiveMachine(machine, kept.notes, kept.still)


def _noted(place: memoryview, session: bytes) -> Departure | None:
    """The notes of a session, None if there are none."""
    found = Departure.read(place, REGIONS)
    return found if found is not None and found.ticket.session == session else None


class RecallingMakers:
    """Machines that can be taken in every direction."""

    clocked: Final = False

    def __init__(self, shape: Shape) -> None:
        self.keeps: Final = shape.resume
        self._live: Final = LiveMakers(shape, lambda: 0.0)
        self.trees: Final[dict[Hashable, Recollection]] = {}

    @property
    def machines(self) -> int:
        """How many different ones there have been."""
        return sum(tree.number for tree in self.trees.values())

    def _of(self, name: Hashable, fresh: Callable[[], LiveMachine]) -> Driven:
        if name not in self.trees:
            self.trees[name] = Recollection(name, fresh)
        return self.trees[name].root

    def source(self, holder: Holder) -> Driven:
        """See `Makers`. What the guest writes before it is paused, the machine sees when it collects."""
        still = holder.copy()
        name = ("source", holder.host, holder.epoch, holder.runner, holder.count)
        return self._of(name, lambda: self._live.source(still.copy(), follows=True))

    def asker(self, host: str, epoch: int, runner: Runner) -> Driven:
        """See `Makers`."""
        return self._of(("asker", host, epoch, runner), lambda: self._live.asker(host, epoch, runner))

    def destination(self, host: str) -> Driven:
        """See `Makers`."""
        return self._of(("destination", host), lambda: self._live.destination(host))

    def departed(self, holder: Holder, session: bytes, *, reuses: bool = False) -> Noted | None:
        """See `Makers`."""
        notes = bytes(holder.notes or b"")
        found = _noted(memoryview(bytearray(notes)), session)
        return None if found is None else Noted(session, holder.image, notes, reuses)

    def resumed(self, holder: Holder, kept: Kept | Left | Noted) -> Driven:
        """See `Makers`. A guest that has moved executes nothing here any more."""
        still = holder.copy()
        name = ("resumed", holder.host, holder.epoch, holder.runner, holder.count, kept)
        return self._of(name, lambda: self._resumed(still, kept))

    def _resumed(self, still: Holder, kept: Kept | Left | Noted) -> LiveMachine:
        if isinstance(kept, Left):
            return self._live.resumed(still, kept.again())
        assert isinstance(kept, Noted)
        found = still.copy()
        found.notes = bytearray(kept.notes)
        again = self._live.departed(found, kept.session, reuses=kept.reuses)
        assert again is not None
        return self._live.resumed(found, again)


def source_config(shape: Shape, host: str, epoch: int, runner: Runner) -> SourceConfig:
    """How a source of a world is configured."""
    required = {Feature.LEASE_STORE: 0} if shape.store else {}
    more = {**required, **({Feature.RESUME: _RESUME_S} if shape.resume else {})}
    more |= {Feature.UNHASHED: 0} if shape.unhashed else {}
    return SourceConfig(
        agent=host,
        guest=GUEST,
        guest_id=GUEST_ID,
        epoch=epoch,
        runner=runner,
        policy=PolicySettings(
            allowed_downtime_s=shape.downtime_s,
            max_rounds=shape.max_rounds,
            on_exhausted="switch",
            switchover=shape.switchover,
        ),
        features=offer_for(shape.switchover, more, frozenset(required)),
    )


def destination_config(shape: Shape, host: str) -> DestinationConfig:
    """How a destination of a world is configured."""
    more = {Feature.LEASE_STORE} if shape.store else set()
    more |= {Feature.RESUME} if shape.resume else set()
    more |= {Feature.UNHASHED} if shape.unhashed else set()
    more |= FOLLOW_FEATURES if shape.switchover != "stop-and-copy" else set()
    limits = Limits(batch_runs=1)  # each group comes in a frame of its own
    return DestinationConfig(agent=host, features=BASE_FEATURES | more, limits=limits)
