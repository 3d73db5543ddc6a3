"""What an endpoint case is: the endpoint under test on one side, a script of ours on the other.

A case is a row of data and a coroutine. The data say which clauses it is about, what the shim is told
and which ends are right; the coroutine `play` is the peer of the endpoint, over a `Line` that is up already
(the shim has dialled and shown its token, TLS is done if the case wants it). It sends what the case is about
and looks at what the endpoint says::

    async def play(line: Line, told: Params) -> None:
        await line.send(unchecked.preface(magic=b"not a preface"))
        ...
        raise Unexpected("ABORT bad_magic", "WELCOME")

When `play` returns, the runner ends the line properly (unless that has been done) and waits until the shim
has ended, at most until `timeout_s`. Then exit code and `result.json` are compared with `expect`. So a case
can fail in two ways: by what the endpoint says on the wire (`Unexpected`), and by what became of its guest.
What is legal on the wire, but not what the specification recommends, is `NotStrict`. With an endpoint that
does without the optional feature that the case is about nothing was tried, which is `NotTried`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import trio

from sterna.errors import TransportError
from sterna.net.transport import Transport
from sterna_interop.contract import GuestState, Order, Outcome, Params, Report, Role
from sterna_interop.guest import GuestSpec

RECEIVE_BYTES: Final = 64 * 1024


class Unexpected(Exception):  # noqa: N818 (the field's word for it)
    """The endpoint said something else than the specification asks for."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(expected, actual)
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return f"expected {self.expected}, got {self.actual}"


class NotStrict(Unexpected):
    """The endpoint did not do what the specification asks for with SHOULD, or suggests: legal, and told."""


class NotTried(Exception):  # noqa: N818 (it is no failure)
    """The whole conversation was had without the optional feature that the case is about: which, in words."""


class Level(StrEnum):
    """How much a clause asks for."""

    MUST = "MUST"
    SHOULD = "SHOULD"


class Severity(StrEnum):
    """What it would cost if an endpoint got this wrong."""

    DATA_LOSS = "data-loss"
    SPLIT_BRAIN = "split-brain"
    DOS = "dos"
    INTEROP = "interop"
    COSMETIC = "cosmetic"


class Wire(StrEnum):
    """What lies between the shim and `play`. The endpoint is told to speak TLS in all but `PLAIN`."""

    PLAIN = "plain"
    TLS = "tls"  # mutual TLS is done when `play` begins
    NAKED = "naked"  # `play` gets the TCP connection and speaks no TLS on it
    STRANGER = "stranger"  # TLS, but the kit shows another identity than the endpoint was told to expect
    OTHER_ALPN = "other_alpn"  # TLS, but the kit does not offer the protocol's ALPN id


class Line:
    """The connection between `play` and the endpoint."""

    def __init__(
        self,
        transport: Transport,
        on_bytes: Callable[[bool, bytes], None] | None = None,
        another: Another | None = None,
    ) -> None:
        """What passes, and what to do with it.

        Args:
            transport: of the connection.
            on_bytes: is told everything that passes; its first argument is True for what we send.
            another: makes `another`; None where a case has but one connection.
        """
        self.transport = transport
        self._another = another
        self.sent = 0
        self.received = 0
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._on_bytes = on_bytes or (lambda _ours, _data: None)

    async def send(self, *parts: bytes) -> None:
        """Send all of it.

        Raises:
            TransportError: the endpoint has ended the connection.
        """
        data = b"".join(parts)
        self._on_bytes(True, data)
        await self.transport.send([data])
        self.sent += len(data)

    async def receive(self) -> bytes:
        """The next bytes, however many there are; none at a proper end (FIN, or close_notify under TLS).

        Raises:
            TransportError: the connection was lost, or ended without its closing exchange.
        """
        count = await self.transport.receive_into(self._buffer)
        data = bytes(self._buffer[:count])
        self.received += count
        self._on_bytes(False, data)
        return data

    async def another(self, wire: Wire | None = None) -> Line:
        """A further connection to the same endpoint; what lies between is that of the case, if not given.

        Raises:
            TransportError: there is none, or its TLS handshake failed.
            trio.TooSlowError: it has not come in time.
        """
        assert self._another is not None
        return await self._another(wire)

    async def until_end(self) -> bytes:
        """What comes until the connection ends, in whatever way; more than 64 KiB are dropped."""
        kept = bytearray()
        while True:
            try:
                data = await self.receive()
            except (TransportError, trio.ClosedResourceError):
                return bytes(kept)
            if not data:
                return bytes(kept)
            kept += data[: max(0, RECEIVE_BYTES - len(kept))]

    async def end(self) -> None:
        """End the connection properly, from our side first; what still comes is thrown away."""
        await self.transport.close()

    def cut(self) -> None:
        """Lose the connection: the endpoint sees a reset."""
        self.transport.abort()


@dataclass(frozen=True, slots=True)
class Ends:
    """Ends of the endpoint that a case takes for right. An empty set means that it does not matter.

    Attributes:
        codes: names of error codes; "" stands for none.
        by_peer: whether the code came from the peer; None if it does not matter.
        memory: the guest's memory must be the whole image, wherever the endpoint says that it has one.
    """

    outcomes: frozenset[Outcome] = frozenset()
    codes: frozenset[str] = frozenset()
    guests: frozenset[GuestState] = frozenset()
    by_peer: bool | None = None
    memory: bool = True

    def mismatch(self, report: Report) -> Unexpected | None:
        """What differs first, None if the report is one of these ends."""
        rows: Sequence[tuple[str, str, frozenset[str]]] = (
            ("outcome", report.outcome, frozenset(self.outcomes)),
            ("guest", report.guest, frozenset(self.guests)),
            ("code", report.code or "", self.codes),
        )
        for name, actual, allowed in rows:
            if allowed and actual not in allowed:
                wanted = " or ".join(sorted(one or "none" for one in allowed))
                return Unexpected(f"{name} {wanted}", f"{name} {actual or 'none'}")
        if self.by_peer is not None and report.by_peer != self.by_peer:
            return Unexpected(f"by_peer {self.by_peer}", f"by_peer {report.by_peer}")
        return None


def rolled_back(*codes: str, role: Role, by_peer: bool | None = False) -> Ends:
    """A session that failed before HANDOVER: the guest runs at the source, nothing is at the destination."""
    guest = GuestState.RUNNING if role is Role.SOURCE else GuestState.NONE
    return Ends(frozenset({Outcome.ROLLED_BACK}), frozenset(codes), frozenset({guest}), by_peer)


def completed(role: Role) -> Ends:
    """A migration as it should be."""
    guest = GuestState.NONE if role is Role.SOURCE else GuestState.RUNNING
    return Ends(frozenset({Outcome.COMPLETED}), frozenset({""}), frozenset({guest}))


Another = Callable[[Wire | None], Awaitable[Line]]
Play = Callable[[Line, Params], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One endpoint case.

    Attributes:
        id: area-NNN. Stable: never used for anything else, even when the case is gone.
        title: a sentence for people.
        clauses: of spec/protocol.md, without brackets: "PRE-2".
        role: of the endpoint under test; `play` is the other side.
        play: our side.
        expect: ends of the endpoint that pass.
        tolerated: ends that pass as *non_strict*, each with the reason.
        order: what the shim is told to do.
        limits: what the endpoint is told to announce, by the registry's names.
        deadline_s: what the endpoint is told about waiting; well below `timeout_s` where `play` is silent.
        timeout_s: when the case has failed, and everything is killed.
        streams: data connections that the endpoint is told of.
        unverified: whether it is told to go without page hashes.
        follows: whether it is told that pages may follow the guest.
        chooses: whether it is told that the source decides that.
    """

    id: str
    title: str
    clauses: tuple[str, ...]
    role: Role
    play: Play
    expect: Ends
    level: Level = Level.MUST
    severity: Severity = Severity.INTEROP
    tolerated: tuple[tuple[Ends, str], ...] = ()
    wire: Wire = Wire.PLAIN
    order: Order = field(default_factory=Order)
    guest: GuestSpec = field(default_factory=GuestSpec)
    limits: Mapping[str, int] = field(default_factory=dict)
    epoch: int = 7
    deadline_s: float = 0.0
    timeout_s: float = 20.0
    streams: int = 0
    unverified: bool = False
    follows: bool = False
    chooses: bool = False
