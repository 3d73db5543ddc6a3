"""What a scripted peer can be told to do: steps, the place where an act sets in, a manner of speaking.

Also what comes of it: the `Account` of a conversation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from sterna.limits import Limits
from sterna.registry import ErrorCode, FrameType
from sterna.wire import Abort, Record, Refuse, unchecked

if TYPE_CHECKING:
    from sterna_interop.peer import Peer


@dataclass(frozen=True, slots=True)
class Say:
    """Say a frame. Its body need obey no rule: see `unchecked.body`."""

    record: Record
    bulk: bytes = b""
    stream: int = 0

    def encode(self, sequence: int) -> bytes:
        """The frame under its number."""
        body = unchecked.body(self.record)
        return unchecked.frame(self.record.type, body, self.bulk, sequence=sequence, stream=self.stream)


@dataclass(frozen=True, slots=True)
class Raw:
    """Send bytes, which are made when the number of the next frame is known, and count as so many frames."""

    build: Callable[[int], bytes]
    frames: int = 1
    interval_s: float | None = None  # not at once, but one byte in so many seconds
    is_last: bool = False  # nothing may come between this and the end

    def encode(self, sequence: int) -> bytes:
        """The bytes."""
        return self.build(sequence)


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for a while, or until the endpoint has ended the session, but what the other tasks do."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Call:
    """Do something beside this connection. It may raise what the conversation may."""

    run: Callable[[Peer], Awaitable[None]]


class End(Enum):
    """Say no more: after a proper end, after none, or without any end, not even a PING."""

    PROPER = "proper"
    RESET = "reset"
    SILENCE = "silence"


class Ear(Enum):
    """Stop hearing: what the endpoint sends from now on is left in the connection."""

    DEAF = "deaf"


Step: TypeAlias = Say | Raw | Wait | Call | End | Ear


@dataclass(frozen=True, slots=True)
class Place:
    """The nth frame of a type that the peer says or hears, 0 for every one. Without a type: the preface."""

    frame: FrameType | None
    nth: int = 1
    heard: bool = False


@dataclass(frozen=True, slots=True)
class Moment:
    """What an act knows: the honest step (nothing where a frame was heard), and the record it is about."""

    honest: tuple[Step, ...]
    record: Record | None
    peer: Peer


Act: TypeAlias = Callable[[Moment], Iterable[Step]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a peer speaks, from the first byte to the last.

    Attributes:
        piece_bytes: bytes in one send; None for a frame at once.
        grease: a frame that is to be skipped before every frame after WELCOME [FRM-9].
        pings: a PING before every frame after WELCOME.
        limits: what the peer announces.
        heartbeat_s: silence after which it says PING.
    """

    piece_bytes: int | None = None
    grease: bool = False
    pings: bool = False
    limits: Limits = field(default_factory=lambda: Limits(memory_bytes=1 << 26, bulk_bytes=1 << 20))
    heartbeat_s: float = 0.25


class Breach(Exception):  # noqa: N818 - it is the endpoint's
    """The endpoint broke the specification: a sentence, with the clause."""


class Over(Exception):  # noqa: N818 - an end, not an error
    """The conversation cannot go on: the endpoint has ended it, or the peer's act has."""


@dataclass(slots=True)
class Account:
    """What came of a conversation.

    Attributes:
        said, heard: frames in order, by name; skipped ones are `skipped`.
        answer: how the endpoint ended the session, if it said so.
        end: how its bytes ended: `proper`, `reset`, `ours` if we ended them, or nothing if they have not.
        acted: the act's place was reached.
        last_act: number of the last frame that the act has said.
        breach: what the endpoint did that the specification forbids.
        completed: the whole conversation was had, BYE of both sides included.
        features: that WELCOME selects, an act on it aside.
        untried: why nothing of what the case is about has happened, in words, if nothing has.
    """

    said: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    answer: Abort | Refuse | None = None
    end: str = ""
    acted: bool = False
    last_act: int = 0
    breach: str = ""
    completed: bool = False
    features: frozenset[int] = frozenset()
    untried: str = ""

    def has_heard(self, frame: FrameType) -> bool:
        """Whether the endpoint has sent such a frame."""
        return frame.name in self.heard


def code_of(answer: Abort | Refuse | None) -> ErrorCode | None:
    """The code of an ABORT or REFUSE; `internal` for one that is not registered [ABT-3] [REF-3]."""
    if answer is None:
        return None
    return next((code for code in ErrorCode if code == answer.code), ErrorCode.INTERNAL)
