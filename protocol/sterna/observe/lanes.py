"""A session's data connections, as an observer sees them: what comes too early waits here, as it does there.

Connections know no order among each other. PAGES that have passed before their ROUND wait for it [STR-13],
and ROUND_END, with all that the source says behind it, for the pages that it counts [RND-4]. What is found
out about a frame that had to wait is told to whoever shows its connection.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from sterna.core.conduct import wrong
from sterna.observe.budget import Share
from sterna.observe.direction import Frame
from sterna.registry import ErrorCode, Sender
from sterna.wire.records import Attach, Attached, Pages, Round, RoundEnd, Welcome

Blame: TypeAlias = Callable[[Exception], None]

# What is kept of a frame that waits, besides its body.
_KEPT_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Waiting:
    """A frame whose time has not come. `blame` is told what is wrong with it, if something is."""

    sender: Sender
    frame: Frame
    now: float
    blame: Blame


class Lanes:
    """The data connections of one session.

    Attributes:
        count: that ACCEPT asks for.
        early: PAGES of a ROUND that is still to come, in the order in which they passed.
        put_off: ROUND_END, and what followed it on the control connection.
    """

    def __init__(self, count: int, share: Share) -> None:
        self.count: Final = count
        self.early: deque[Waiting] = deque()
        self.put_off: deque[Waiting] = deque()
        self._share: Final = share
        self._generations: dict[int, int] = {}
        self._attached: set[int] = set()
        self._sequences: dict[int, int] = {}

    def attach(self, record: Attach, stream: int, welcome: Welcome) -> None:
        """ATTACH.

        Raises:
            RemoteProtocolError: BAD_HEADER, BAD_VALUE or BAD_TOKEN.
        """
        if record.index + 1 != stream:
            raise wrong(ErrorCode.BAD_HEADER, f"index {record.index} on stream {stream}", "HDR-5", record)
        if not hmac.compare_digest(record.token, welcome.token):
            raise wrong(ErrorCode.BAD_TOKEN, "not the token of WELCOME", "ATT-3", record)
        if record.index >= self.count:
            detail = f"index {record.index} of {self.count} data connections"
            raise wrong(ErrorCode.BAD_VALUE, detail, "ATT-2", record)
        if record.generation <= self._generations.get(record.index, -1):
            raise wrong(ErrorCode.BAD_TOKEN, f"generation {record.generation} again", "STR-5", record)
        self._generations[record.index] = record.generation

    def attached(self, record: Attached, stream: int) -> None:
        """ATTACHED.

        Raises:
            RemoteProtocolError: BAD_VALUE.
        """
        known = self._generations.get(stream - 1)
        passed = self._sequences.get(stream, 0)
        if (record.index, record.generation) != (stream - 1, known) or record.last_sequence > passed:
            raise wrong(ErrorCode.BAD_VALUE, "not what ATTACH says, or was sent", "ATT-6", record)
        self._attached.add(record.index)

    @property
    def all_attached(self) -> bool:
        """Whether the first ROUND may come [STR-2]."""
        return len(self._attached) == self.count

    def passed(self, frame: Frame) -> None:
        """A frame of the source has passed on a data connection."""
        self._sequences[frame.header.stream] = frame.header.sequence

    def lacks(self, record: RoundEnd) -> bool:
        """Whether a connection has not come as far as it is stated."""
        return any(
            0 < stream <= self.count and self._sequences.get(stream, 0) < sequence
            for stream, sequence in record.last_sequences
        )

    def keep(self, where: deque[Waiting], waiting: Waiting) -> None:
        """Let a frame wait.

        Raises:
            TooMuchError: too much waits already.
        """
        self._share.take(waiting.frame.header.body_bytes + _KEPT_BYTES, "frames that came early")
        where.append(waiting)

    def due(self, attempt: int, number: int) -> list[Waiting]:
        """The PAGES that waited for this round."""
        due = [each for each in self.early if not is_ahead(each.frame.record, attempt, number)]
        self.early = deque(each for each in self.early if is_ahead(each.frame.record, attempt, number))
        return due


def is_ahead(record: object, attempt: int, number: int) -> bool:
    """Whether PAGES are of a round after this one."""
    assert isinstance(record, Pages | Round)
    return record.attempt > attempt or (record.attempt == attempt and record.round > number)
