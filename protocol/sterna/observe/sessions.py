"""All sessions of a recording, each followed on its own while they pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from sterna.observe.budget import Budget
from sterna.observe.follow import Follower, Seen
from sterna.observe.recording import (
    DirectionEnded,
    Passed,
    RecordClock,
    RecordingClosed,
    RecordingItem,
    Side,
)


@dataclass(frozen=True, slots=True)
class Happened:
    """A preface or a frame of one connection."""

    connection: int
    seen: Seen


@dataclass(frozen=True, slots=True)
class Stopped:
    """A session in which something is wrong, found between two frames; or one that cannot be judged on."""

    connection: int
    follower: Follower


@dataclass(frozen=True, slots=True)
class Over:
    """A connection has ended, or the recording has: what became of its session."""

    connection: int
    follower: Follower


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The recorder gave up, for the reason in `text`: what follows was not recorded."""

    text: str


Step: TypeAlias = Happened | Stopped | Over | GaveUp


class Sessions:
    """Follows the sessions of a recording.

    Holds one follower for each open connection, whose memory comes out of one budget.
    """

    def __init__(
        self,
        side: Side,
        clock: RecordClock,
        *,
        keep_bytes: int = 0,
        budget: Budget | None = None,
        alone: bool = False,
    ) -> None:
        """Begin; the arguments are those of `Follower`."""
        self._side = side
        self._clock = clock
        self._keep_bytes = keep_bytes
        self._budget = budget or Budget()
        self._alone = alone
        self._open: dict[int, Follower] = {}

    def follow(self, items: Iterable[RecordingItem]) -> Iterator[Step]:
        """What happens, item by item; `Over` for each connection, at the latest when the items end.

        An exception of `items` passes through; `end` gives the rest then.
        """
        for item in items:
            match item:
                case Passed():
                    yield from self._passed(item)
                case DirectionEnded():
                    yield from self._ended(item)
                case RecordingClosed(gave_up=True, text=text):
                    yield GaveUp(text)
                case _:
                    pass
        yield from self.end()

    def end(self) -> Iterator[Over]:
        """The recording has ended: what became of the connections that are open."""
        while self._open:
            number, follower = self._open.popitem()
            follower.close()
            yield Over(number, follower)

    def _follower(self, connection: int) -> Follower:
        follower = self._open.get(connection)
        if follower is None:
            follower = self._open[connection] = Follower(
                side=self._side,
                clock=self._clock,
                keep_bytes=self._keep_bytes,
                budget=self._budget,
                alone=self._alone,
                find=self._find,
            )
        return follower

    def _find(self, session: bytes) -> Follower | None:
        """The follower of a session, for a data connection of it."""
        for follower in self._open.values():
            welcome = follower.summary.welcome
            if welcome is not None and welcome.session == session:
                return follower
        return None

    def _stopped(self, told: Follower, running: list[tuple[int, Follower]]) -> Iterator[Stopped]:
        """What was found out about frames of other connections that had to wait."""
        for number, follower in running:
            if follower is not told and follower.stopped:
                yield Stopped(number, follower)

    def _running(self, follower: Follower) -> list[tuple[int, Follower]]:
        """The connections of its session that are judged."""
        session = follower.session or follower
        return [
            (number, each)
            for number, each in self._open.items()
            if not each.stopped and (each is session or each.session is session)
        ]

    def _passed(self, item: Passed) -> Iterator[Step]:
        follower = self._follower(item.connection)
        before, running = follower.stopped, self._running(follower)
        told = False
        for seen in follower.feed(item.sender, item.data, item.time_ns):
            told |= seen.fault is not None
            yield Happened(item.connection, seen)
        if follower.stopped and not before and not told:
            yield Stopped(item.connection, follower)
        yield from self._stopped(follower, running or self._running(follower))

    def _ended(self, item: DirectionEnded) -> Iterator[Step]:
        follower = self._follower(item.connection)
        before = follower.stopped
        follower.end(item.sender, item.how, item.time_ns)
        if follower.stopped and not before:
            yield Stopped(item.connection, follower)
        if follower.ended:
            del self._open[item.connection]
            follower.close()
            yield Over(item.connection, follower)
