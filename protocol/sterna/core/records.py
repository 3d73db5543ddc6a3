"""Durable records: what a host notes before it does what depends on it.

The rules of chapter 11 rest on notes that outlive the process that made them. Each is one of the classes
here; together, in the order in which they were made, they are a guest's history on this host, on whichever
side of a migration it was. Names in capitals are those of spec/protocol.md; spec/records.md has them all.

===========  ===========================================================================================
SESSION      a session exists: who the peer is, where, and the token (ONE-56, ONE-61)
RUNNER       a runner of a source, or of a guest's first host, made for one claim (ONE-5, ONE-52)
GRANTED      source: HANDOVER may leave (ONE-18)
VOIDED       source: it did not, says the controller that would have sent it (ONE-19)
DECIDED      source: the session is decided, in whose favour (ONE-53)
RESOLVED     source: an operator has decided it (ONE-59)
CLAIMING     destination: a claim may be sent (ONE-25)
START        destination: the guest's first instruction may be executed (ONE-27, ONE-28)
HANDBACK     destination: it never will be, under this epoch (ONE-27, ONE-35)
COMPLETE     destination: every page is there and verified (ONE-39)
RELEASED     destination: the source has freed its image (ONE-39, ONE-56); source: it may (ONE-42)
===========  ===========================================================================================

SESSION holds the token that lets somebody ask for the session: files of records are for their owner alone,
and a token is never in a text (SEC-5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Final, TypeAlias

from sterna.registry import Owner
from sterna.wire.records import NO_ID, Runner


class Side(Enum):
    """On which side of a session this host was."""

    SOURCE = "source"
    DESTINATION = "destination"


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session.

    Attributes:
        session: its id.
        epoch: n, the epoch that HELLO showed.
        side: which this host is.
        token: of the session, 32 bytes.
        peer: the other host's identity.
        address: where to ask the destination; at the destination empty.
        store: whether `lease_store` was selected: whoever decides it later goes by that [ONE-65].
    """

    kind: ClassVar[str] = "session"
    session: bytes
    epoch: int
    side: Side
    token: bytes = field(repr=False)
    peer: str
    address: str = ""
    store: bool = False


@dataclass(frozen=True, slots=True)
class RunnerRecord:
    """A runner that this host may claim `epoch` with, as a source or as a guest's first host.

    Attributes:
        session: for which; zeros for the first host's.
        image: what the runner is made for, the id that the holder of the image has given it.
    """

    kind: ClassVar[str] = "runner"
    session: bytes
    epoch: int
    runner: Runner
    image: bytes


@dataclass(frozen=True, slots=True)
class Granted:
    """`epoch`, n + 1, is granted to the destination. `follows`: pages of the guest do [ONE-42]."""

    kind: ClassVar[str] = "granted"
    session: bytes
    epoch: int
    follows: bool = False


@dataclass(frozen=True, slots=True)
class Voided:
    """The grant of `epoch` is void: the controller that would have passed HANDOVER on has not."""

    kind: ClassVar[str] = "voided"
    session: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class Decided:
    """The source has learned how the session ended.

    Attributes:
        owner: who owns the guest.
        epoch: under which it runs, or under which the source claims it next.
    """

    kind: ClassVar[str] = "decided"
    session: bytes
    epoch: int
    owner: Owner


@dataclass(frozen=True, slots=True)
class Resolved:
    """An operator has decided a session of a source.

    Attributes:
        epoch: n + 1.
        fenced: the host that the operator vouches for, in the operator's words; empty where none was asked.
        operator: who has decided it.
    """

    kind: ClassVar[str] = "resolved"
    session: bytes
    epoch: int
    owner: Owner
    fenced: str = ""
    operator: str = ""


@dataclass(frozen=True, slots=True)
class Claiming:
    """A claim of `epoch` by `runner` may be sent.

    Attributes:
        image: what the runner is made for.
        digest: what COMPLETE will name, if every page of the image is here; else empty.
    """

    kind: ClassVar[str] = "claiming"
    session: bytes
    epoch: int
    runner: Runner
    image: bytes
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class Start:
    """The guest may be run under `epoch`.

    Attributes:
        operator: who has decided that; empty for an endpoint.
        fenced: the host that the operator vouches for, in the operator's words [ONE-59]; else empty.
    """

    kind: ClassVar[str] = "start"
    epoch: int
    operator: str = ""
    fenced: str = ""


@dataclass(frozen=True, slots=True)
class HandBack:
    """The guest never runs here under `epoch`. `operator` and `fenced` as above."""

    kind: ClassVar[str] = "handback"
    epoch: int
    operator: str = ""
    fenced: str = ""


@dataclass(frozen=True, slots=True)
class Complete:
    """Every page of the pause image is there, and verified: `digest` says so to the source."""

    kind: ClassVar[str] = "complete"
    session: bytes
    epoch: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Released:
    """RELEASE has come, or an operator has dropped the session: nobody will ask for it any more.

    At a source: of the pages that followed the guest none is needed any more.
    """

    kind: ClassVar[str] = "released"
    session: bytes


Record: TypeAlias = (
    SessionRecord | RunnerRecord | Granted | Voided | Decided | Resolved
    | Claiming | Start | HandBack | Complete | Released
)  # fmt: skip

KINDS: Final[tuple[type[Record], ...]] = (
    SessionRecord, RunnerRecord, Granted, Voided, Decided, Resolved, Claiming, Start, HandBack, Complete,
    Released,
)  # fmt: skip

NO_SESSION: Final = NO_ID
