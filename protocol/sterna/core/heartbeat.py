"""PING, PONG and PROGRESS: what this side may say and has to, and what the peer may ask of it.

None of them changes what a session does [CON-6]. What has to be kept is little, and bounded whatever the peer
sends: the PINGs that are unanswered, the PONGs that have not left yet, and how many PROGRESS frames came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from sterna.errors import remote_error
from sterna.registry import ErrorCode, Feature, FrameType
from sterna.wire.records import Ping

# Answers owed to PINGs. A peer that pings and does not read would make us store them without end.
PONGS_OWED_MAX: Final = 16

# PROGRESS that was delayed on its way comes all at once, and the two clocks differ a little.
_PROGRESS_SLACK: Final = 16
_PROGRESS_CLOCK_FACTOR: Final = 1.1


class Heartbeat:
    """The bookkeeping of one session."""

    def __init__(self) -> None:
        self.rtt_s: float | None = None
        self._asked: dict[int, float] = {}
        self._last_id = 0
        self._owed: deque[int] = deque()
        self._progress_s: float | None = None
        self._told: float | None = None
        self._heard = 0
        self._since = 0.0

    def select(self, features: Mapping[int, int], now: float) -> None:
        """WELCOME has gone over. The parameter of PROGRESS is the least time between two, in milliseconds."""
        if Feature.PROGRESS in features:
            self._progress_s = features[Feature.PROGRESS] / 1000
        self._since = now

    # ---- what is said ----

    def ask(self, now: float) -> Ping:
        """The next PING, to be sent now."""
        self._last_id += 1
        self._asked[self._last_id] = now
        return Ping(self._last_id)

    def waits_for(self, number: int) -> bool:
        """Whether this PING is unanswered."""
        return number in self._asked

    @property
    def unanswered(self) -> int:
        """PINGs without their PONG."""
        return len(self._asked)

    def may_tell(self, now: float) -> bool:
        """Whether a PROGRESS may be sent now [PRG-1]."""
        if self._progress_s is None:
            return False
        return self._told is None or now - self._told >= self._progress_s

    def tell(self, now: float) -> None:
        """A PROGRESS is sent."""
        self._told = now

    def left(self, bytes_sent: int) -> None:
        """So many bytes have left in all: PONGs among them are owed no more."""
        while self._owed and self._owed[0] <= bytes_sent:
            self._owed.popleft()

    # ---- what is heard ----

    def owe(self, end: int) -> None:
        """A PING came, and its PONG is queued: `end` is the number of bytes up to the end of it."""
        self._owed.append(end)

    def check_owed(self) -> None:
        """Whether one more PING may be answered.

        Raises:
            RemoteProtocolError: LIMIT_RATE.
        """
        if len(self._owed) >= PONGS_OWED_MAX:
            detail = f"more than {PONGS_OWED_MAX} PINGs while it reads nothing"
            raise remote_error(ErrorCode.LIMIT_RATE, detail, clause="CON-79", frame=FrameType.PING)

    def answered(self, number: int, now: float) -> None:
        """A PONG came.

        Raises:
            RemoteProtocolError: UNSOLICITED.
        """
        if number not in self._asked:
            raise remote_error(
                ErrorCode.UNSOLICITED, f"PONG {number} without PING", clause="PNG-2", frame=FrameType.PONG
            )
        rtt_s = now - self._asked.pop(number)
        self.rtt_s = rtt_s if self.rtt_s is None else min(self.rtt_s, rtt_s)

    def heard_progress(self, now: float) -> None:
        """A PROGRESS came.

        Raises:
            RemoteProtocolError: NOT_SELECTED, or LIMIT_RATE for more than the time since WELCOME explains.
        """
        if self._progress_s is None:
            raise remote_error(ErrorCode.NOT_SELECTED, "PROGRESS", clause="PRG-1", frame=FrameType.PROGRESS)
        self._heard += 1
        surplus = self._heard - _PROGRESS_SLACK
        if surplus * self._progress_s > _PROGRESS_CLOCK_FACTOR * (now - self._since):
            detail = f"{self._heard} PROGRESS frames in {now - self._since:.1f} s"
            raise remote_error(ErrorCode.LIMIT_RATE, detail, clause="PRG-1", frame=FrameType.PROGRESS)
