"""Every waiting time of a session, as data. No safety rule depends on any of them [CON-73].

A state that waits for the peer has a deadline; one that waits for its own host has none, because there it is
the peer that waits. Beside these stand three clocks that always run: the heartbeat (say something), silence
(hear something; any byte counts) and stall (what was handed to the connection must leave).

A clock that has run out is looked at once more, a heartbeat later, before it ends the session: this process
may have slept, and what the peer has sent meanwhile waits in the socket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from sterna.core.tables import DestinationState, SourceState, State
from sterna.errors import LocalProtocolError, TransportError
from sterna.registry import ErrorCode


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds. The defaults notice a dead peer within seconds and forgive a slow one.

    Attributes:
        handshake_s: from one frame to the next up to GUEST, and for data connections.
        describe_s: GUEST to ACCEPT: the destination may have to free and populate memory.
        round_s: between two frames of a round that the peer still owes, and from one round to the next.
        prepare_s: SWITCHOVER to READY.
        blackout_s: READY to HANDOVER, each frame of it.
        commit_s: HANDOVER to RUNNING.
        after_s: RUNNING to COMPLETE, COMPLETE to RELEASE.
        close_s: for the peer's BYE, or to let ABORT leave.
        heartbeat_s: who has had nothing to say for so long says that it is there [CON-76].
        silence_s: who has heard nothing for so long ends the session [CON-75].
        stall_s: likewise who could send nothing, although there is something [CON-77].

    Raises:
        LocalProtocolError: BAD_VALUE for one that is not above 0, or not finite.
    """

    handshake_s: float = 10.0
    describe_s: float = 60.0
    round_s: float = 60.0
    prepare_s: float = 30.0
    blackout_s: float = 30.0
    commit_s: float = 30.0
    after_s: float = 30.0
    close_s: float = 5.0
    heartbeat_s: float = 1.0
    silence_s: float = 5.0
    stall_s: float = 10.0

    def __post_init__(self) -> None:
        for each in fields(self):
            seconds = getattr(self, each.name)
            if not 0 < seconds < math.inf:
                raise LocalProtocolError(ErrorCode.BAD_VALUE, f"deadlines: {each.name} is {seconds}")


WAITS: Final[Mapping[State, str]] = {
    SourceState.GREETING: "handshake_s",
    SourceState.ASKING: "handshake_s",
    SourceState.DESCRIBING: "describe_s",
    SourceState.ATTACHING: "handshake_s",
    SourceState.REATTACHING: "handshake_s",
    SourceState.REPLACING: "handshake_s",
    SourceState.ACKING: "round_s",
    SourceState.PREPARING: "prepare_s",
    SourceState.SEALED: "blackout_s",
    SourceState.HANDED_OVER: "commit_s",
    SourceState.MOVED: "after_s",
    SourceState.CLOSING: "close_s",
    SourceState.RESUMING: "handshake_s",
    SourceState.RETURNING: "handshake_s",
    SourceState.COMPARING: "round_s",  # between two HELD
    SourceState.CATCHING_UP: "round_s",
    DestinationState.IDLE: "handshake_s",
    DestinationState.WELCOMED: "handshake_s",
    DestinationState.STANDBY: "round_s",
    DestinationState.RECEIVING: "round_s",
    DestinationState.READY: "blackout_s",
    DestinationState.BLACKOUT: "blackout_s",
    DestinationState.FROZEN: "blackout_s",
    DestinationState.LOADED: "blackout_s",
    DestinationState.FETCHING: "after_s",  # between two PAGES
    DestinationState.RUNNING: "after_s",
    DestinationState.RELEASED: "close_s",
    DestinationState.RESUMED: "round_s",
}


class Watch:
    """The clocks of a session.

    Attributes:
        deadlines: how long everything may take.
        entered: when the present state was entered.
        heard: when the last byte came.
        said: when something was last sent.
        left: when the connection last took a byte, or was given one while it had none.
    """

    def __init__(self, deadlines: Deadlines, now: float) -> None:
        self.deadlines: Final = deadlines
        self.entered = self.heard = self.said = self.left = now
        self._suspects: dict[ErrorCode, tuple[float, float]] = {}

    def alarms(
        self, state: State, *, greeted: bool, listening: bool, in_flight: bool
    ) -> list[tuple[ErrorCode, float]]:
        """What will end the session, and when it has run out, if nothing happens before.

        Args:
            state: the machine's.
            greeted: WELCOME has gone over, so the peer has to show that it lives.
            listening: the session is not over for this side.
            in_flight: the connection has been given bytes that it has not taken.
        """
        times: list[tuple[ErrorCode, float]] = []
        if in_flight:
            times.append((ErrorCode.PEER_STALLED, self.left + self.deadlines.stall_s))
        if listening and greeted:
            times.append((ErrorCode.PEER_SILENT, self.heard + self.deadlines.silence_s))
        if listening and state in WAITS:
            times.append((ErrorCode.PHASE_DEADLINE, self.entered + getattr(self.deadlines, WAITS[state])))
        return times

    def next_look(self, code: ErrorCode, at: float) -> float:
        """When to look at an alarm that runs out at this time."""
        first, again = self._suspects.get(code, (math.inf, 0.0))
        return again if first == at else at

    def confirms(self, code: ErrorCode, at: float, now: float) -> bool:
        """Look at an alarm: whether it has run out, and had run out at an earlier look already."""
        if now < self.next_look(code, at):
            return False
        if self._suspects.get(code, (math.inf, 0.0))[0] == at:
            return True
        self._suspects[code] = at, now + self.deadlines.heartbeat_s
        return False

    def error(self, code: ErrorCode, state: State, now: float) -> TransportError:
        """What an alarm means."""
        match code:
            case ErrorCode.PEER_STALLED:
                detail = f"no byte left for {now - self.left:.1f} s"
            case ErrorCode.PEER_SILENT:
                detail = f"nothing heard for {now - self.heard:.1f} s"
            case _:
                detail = f"{state.value} for {now - self.entered:.1f} s"
        return TransportError(code, detail)
