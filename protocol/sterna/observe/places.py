"""Where a side may stand, seen from outside.

An observer sees the frames of both sides and none of their local events: that the guest was paused, that a
record is durable. So it knows a set of states in which a side may be, rather than the state. The tables of
sterna.core.tables are the one truth about both:

- a frame that arrives moves the side along that frame's rows;
- a frame that it sends moves it along a row of a local event that sends this frame (`Row.sends`), or is one
  that the side still owes from its last row: ROUND_ACK after ROUND_END, BYE after RELEASE;
- local events that send nothing may have happened at any time.

Rows of failures are left out. What a failure looks like from outside is ABORT, REFUSE or an end, after which
nobody's place matters any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sterna.core.tables import (
    DESTINATION,
    SOURCE,
    DestinationInput,
    DestinationState,
    Input,
    Row,
    SourceInput,
    SourceState,
    State,
    Table,
)
from sterna.registry import FrameType, Sender

_FAILURES: Final = frozenset(
    {
        SourceInput.LOST,
        SourceInput.LINK_LOST,
        DestinationInput.LOST,
        DestinationInput.LINK_LOST,
        DestinationInput.START_FAILED,
    }
)

# A frame that comes as an input of its own, by what is in it.
_VARIANTS: Final[Mapping[FrameType, Sequence[Input]]] = {
    FrameType.HELLO: (DestinationInput.HELLO_RESUME, DestinationInput.HELLO_VERDICT),
    FrameType.VERDICT: (SourceInput.COMPLETE_TOLD,),
}
# And the ROUND of a next attempt, which the judge tells from others by its number.
_ARRIVING: Final = frozenset(each for variants in _VARIANTS.values() for each in variants) | {
    DestinationInput.NEW_ATTEMPT
}
_NEW_ROUND: Final = SOURCE[SourceState.DECIDING, SourceInput.ROUND_CHOSEN]


def _local(*tables: Table) -> Mapping[State, Sequence[Row]]:
    """The rows of events that are no frames, and failures left out."""
    rows: defaultdict[State, list[Row]] = defaultdict(list)
    for table in tables:
        for (state, what), row in table.items():
            local = not isinstance(what, FrameType) and what not in _ARRIVING
            if local and what not in _FAILURES:
                rows[state].append(row)
    return dict(rows)


_LOCAL: Final = _local(SOURCE, DESTINATION)


@dataclass(frozen=True, slots=True)
class _Place:
    """A state, and the frames that the side has still to send before it moves on."""

    state: State
    owes: tuple[tuple[FrameType, bool], ...] = ()

    @property
    def free(self) -> bool:
        """Whether everything was sent that had to be: what is repeated may also have been left out."""
        return all(repeated for _, repeated in self.owes)

    def sending(self, frame: FrameType) -> _Place | None:
        """The place after the side has sent this frame as one that it owed; None if it owed no such one."""
        for at, (owed, repeated) in enumerate(self.owes):
            if owed is frame:
                return _Place(self.state, self.owes[at if repeated else at + 1 :])
            if not repeated:
                return None
        return None


class Places:
    """The places in which one side may be."""

    def __init__(self, side: Sender) -> None:
        """At the start of a session; `side` is SOURCE or DESTINATION."""
        self._table: Final[Table] = SOURCE if side is Sender.SOURCE else DESTINATION
        idle = SourceState.IDLE if side is Sender.SOURCE else DestinationState.IDLE
        self._places = frozenset({_Place(idle)})

    @property
    def states(self) -> frozenset[State]:
        """The states in which the side may be now."""
        return frozenset(place.state for place in self._reachable())

    @property
    def name(self) -> str:
        """Where the side was when it last sent or received a frame, in the words of the table."""
        return " or ".join(sorted({place.state.value for place in self._places}))

    def sends(self, frame: FrameType) -> bool:
        """The side has sent this frame. False, and nothing changes, if it cannot have been its turn."""
        return self._move(self._sending(frame))

    def hears(self, frame: FrameType) -> bool:
        """This frame has arrived at the side. False, and nothing changes, if its state does not allow it."""
        return self._move(_Place(row.next, row.sends) for row in self._rows_of(frame))

    def voids(self) -> bool:
        """A ROUND of the next attempt has arrived [CON-59]. False, and nothing changes, if it may not."""
        keys = [(place.state, DestinationInput.NEW_ATTEMPT) for place in self._reachable() if place.free]
        rows = [self._table[key] for key in keys if key in self._table]
        return self._move(_Place(row.next) for row in rows)

    def takes_back(self) -> None:
        """The side has sent that ROUND, wherever it was [CON-58]."""
        self._places = frozenset({_Place(_NEW_ROUND.next, _NEW_ROUND.sends[1:])})

    def _move(self, places: Iterable[_Place]) -> bool:
        moved = frozenset(places)
        self._places = moved or self._places
        return bool(moved)

    def _rows_of(self, frame: FrameType) -> Iterable[Row]:
        """The rows of a frame that arrives."""
        inputs: Sequence[Input] = (frame, *_VARIANTS.get(frame, ()))
        states = [place.state for place in self._reachable() if place.free]
        found = (self._table.get((state, what)) for state in states for what in inputs)
        return [row for row in found if row is not None]

    def _sending(self, frame: FrameType) -> Iterable[_Place]:
        """The places to which sending this frame leads."""
        for place in self._reachable():
            owed = place.sending(frame)
            if owed is not None:
                yield owed
            if not place.free:
                continue
            for row in self._local_rows(place.state):
                sent = _Place(row.next, row.sends).sending(frame)
                if sent is not None:
                    yield sent

    def _reachable(self) -> frozenset[_Place]:
        """The places, and those to which local events lead that nobody sees."""
        found = set(self._places)
        new = list(found)
        while new:
            place = new.pop()
            if not place.free:
                continue
            for row in self._local_rows(place.state):
                after = _Place(row.next, row.sends)
                if after.free and after not in found:
                    found.add(after)
                    new.append(after)
        return frozenset(found)

    def _local_rows(self, state: State) -> Iterable[Row]:
        """What may happen to the side besides frames."""
        return _LOCAL.get(state, ())
