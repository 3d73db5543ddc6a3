"""A data connection whose keys are all but used up: the source replaces it at the next barrier [STR-12].

A barrier is when the destination has confirmed all that was sent, so nothing can be lost with the old
connection, and no version of a page can be overtaken by another. A barrier comes by itself with each
ROUND_ACK; in the middle of a long round, which a key might not outlast, the source brings it about. What of
the round has not been sent on that connection is left out of it, and is pending again; the other connections
go on to their ends, and then the round is over.

There is no barrier any more behind SWITCHOVER. A connection that wears out there is given up, and all others
with it: the session goes on with new ones, or ends [TLS-18]. If the guest is paused by then, it has stood
still for nothing. So the driver tells twice: long before, that a connection `wears`, which has it replaced at
the next barrier that comes by itself, and so before any SWITCHOVER; and when it is worn out. The control
connection cannot be replaced. It is given up at that barrier, where the session can be taken up again.
"""

from __future__ import annotations

from abc import abstractmethod

from sterna.core.events import OpenStreams
from sterna.core.opening import Opening
from sterna.core.tables import SourceInput, SourceState
from sterna.errors import SternaError, TransportError
from sterna.registry import ErrorCode

# A ROUND_ACK is to come, or has come, and neither ROUND nor SWITCHOVER has followed it.
_BEFORE_BARRIER = frozenset(
    {SourceState.ROUND, SourceState.ACKING, SourceState.COLLECTING, SourceState.REPLACING}
)


class Replacing(Opening):
    """The part of a source's machine that replaces data connections."""

    _worn: tuple[int, ...] = ()
    _wear: frozenset[int] = frozenset()

    def wears(self, stream: int = 0) -> None:
        """See `Session.wears`."""
        self._wear |= {stream}

    def wear_out(self, error: SternaError, now: float, stream: int = 0) -> None:
        """See `Session.wear_out`; a data connection has time until the next barrier."""
        lane = self._lanes.get(stream) if stream else None
        if lane is None or not lane.attached or self._state not in _BEFORE_BARRIER:
            super().wear_out(error, now, stream)
            return
        self._worn = (*self._worn, stream)
        if self._state is SourceState.ROUND:
            self._memory.leave_out(stream)

    def _replaces(self, now: float) -> bool:
        """At a barrier: whether a connection is to be replaced before the policy chooses what comes next."""
        if 0 in self._wear and self._can_resume:
            detail = "the connection is used up before long, and begun anew before the guest is paused"
            self.connection_lost(TransportError(ErrorCode.UNSUPPORTED, detail), now)
            return True
        self._worn = (*self._worn, *sorted(self._wear - {0, *self._worn}))
        self._wear = frozenset()  # one that wears before it has carried anything waits for the next barrier
        return self._replaces_next(now)

    def _replaces_next(self, now: float) -> bool:
        if not self._worn:
            return False
        stream, self._worn = self._worn[0], self._worn[1:]
        self._step(SourceInput.STREAM_WORN, now)
        self._ask(OpenStreams(1, first=stream))
        return True

    def _all_attached(self, now: float) -> None:
        replaced = self._state is SourceState.REPLACING
        super()._all_attached(now)
        if replaced and not self._replaces_next(now):
            self._choose(now)

    @abstractmethod
    def _choose(self, now: float) -> None:
        """Ask the policy what comes next, and begin it."""
