"""Every waiting time of a session, as data. No safety rule depends on any of them [CON-20].

A state that waits for the peer has a deadline; one that waits for its own host has none, because there it is
the peer that waits. Beside these stand three clocks that always run: the heartbeat (say something), silence
(hear something; any byte counts) and stall (what was handed to the connection must leave).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sterna.core.tables import DestinationState, SourceState, State


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds. The defaults notice a dead peer within seconds and forgive a slow one."""

    handshake_s: float = 10.0
    describe_s: float = 60.0  # the destination may have to free and populate memory
    round_s: float = 60.0  # between two frames of a round that the sender still owes
    prepare_s: float = 30.0
    blackout_s: float = 30.0
    commit_s: float = 30.0
    after_s: float = 30.0
    close_s: float = 5.0
    heartbeat_s: float = 1.0
    silence_s: float = 5.0
    stall_s: float = 10.0


WAITS: Final[Mapping[State, str]] = {
    SourceState.GREETING: "handshake_s",
    SourceState.DESCRIBING: "describe_s",
    SourceState.ACKING: "round_s",
    SourceState.PREPARING: "prepare_s",
    SourceState.SEALED: "blackout_s",
    SourceState.HANDED_OVER: "commit_s",
    SourceState.MOVED: "after_s",
    SourceState.CLOSING: "close_s",
    DestinationState.IDLE: "handshake_s",
    DestinationState.WELCOMED: "handshake_s",
    DestinationState.STANDBY: "round_s",
    DestinationState.RECEIVING: "round_s",
    DestinationState.READY: "blackout_s",
    DestinationState.BLACKOUT: "blackout_s",
    DestinationState.FROZEN: "blackout_s",
    DestinationState.LOADED: "blackout_s",
    DestinationState.RUNNING: "after_s",
    DestinationState.RELEASED: "close_s",
}
