"""What runner and shim say to each other: `params.json`, `result.json` and an exit code.

README.md beside this file is the contract as an implementer reads it; this module is its executable form,
for the runner and for shims in Python. A shim is trusted with nothing: what it writes is read here with a
bound on its size, and every field is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Final, TypeVar

from sterna_interop.guest import GuestSpec, SectionSpec, Write, region_of

SCHEMA: Final = 1
TOKEN_BYTES: Final = 8
RESULT_BYTES_MAX: Final = 64 * 1024  # a real one has less than 1 KiB
RESULT: Final = "result.json"

T = TypeVar("T")


class Exit(IntEnum):
    """A shim's exit codes; every other end is a crash."""

    BEHAVED = 0  # as it was told: read result.json
    FAILED = 1  # the endpoint, or the shim, did not do what it was told
    UNSUPPORTED = 89  # something in the parameters is not known here


class Role(StrEnum):
    """Of the protocol; the shim dials out in both."""

    SOURCE = "source"
    DESTINATION = "destination"

    @property
    def other(self) -> Role:
        """The peer's."""
        return Role.SOURCE if self is Role.DESTINATION else Role.DESTINATION


class Outcome(StrEnum):
    """How a session ended as far as one side knows."""

    COMPLETED = "completed"  # BYE both ways: the guest is at the destination
    MOVED = "moved"  # the guest runs at the destination, the end of the session was cut off
    ROLLED_BACK = "rolled_back"  # it failed; the guest is the source's as before
    ANSWERED = "answered"  # destination: it was asked who owns the guest, and has said VERDICT
    UNDECIDED = "undecided"  # nobody here may run the guest before somebody has looked
    GUEST_FAILED = "guest_failed"  # the source owns the guest, but could not set it running again


class GuestState(StrEnum):
    """What a side has of the guest at the end."""

    RUNNING = "running"
    PAUSED = "paused"
    NONE = "none"


class Do(StrEnum):
    """What a shim is told; a shim answers a word that it does not know with exit code 89.

    `Order` has the parameters.
    """

    MIGRATE = "migrate"  # send the guest away, or take it in
    CANCEL = "cancel"  # source: cancel after the ROUND_ACK of round `round`; 0: before the first ROUND
    REFUSE = "refuse"  # destination: answer GUEST with REFUSE and code `code`
    NOT_READY = "not_ready"  # destination: answer the first `times` SWITCHOVER with NOT_READY
    REJECT_STATE = "reject_state"  # destination: the guest does not accept its state


@dataclass(frozen=True, slots=True)
class Order:
    """What the shim shall do.

    Attributes:
        rounds: source: a wish for so many rounds of the running guest before the switchover; 0: no wish.
            A case that needs them for sure does not depend on them for its verdict.
    """

    do: str = Do.MIGRATE
    round: int = 0
    rounds: int = 0
    code: str = ""
    times: int = 0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The endpoint's side of TLS. PEM files; the source is the TLS client, the destination the server."""

    certificate: str
    key: str
    authority: str
    name: str  # identity in `certificate`
    peer: str  # identity that the peer must show


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """`params.json`: all that a shim is told.

    Attributes:
        connect: host:port to dial, whatever the role.
        token: 8 bytes to send there before everything else, TLS included.
        epoch, runner, runner_host: the source shows them in HELLO.
        limits: what the endpoint shall announce, by the registry's names; others have the defaults.
        deadline_s: for every wait for the peer, its silence and a stalled connection; 0: as usual.
        streams: data connections: a source asks for so many, a destination takes as many. Only what is not 0
            stands in the file.
        unverified: whether the endpoint is told to go without page hashes if its peer does [MEM-21]; in the
            file only if it is.
        follows: whether the guest is to run at the destination before its pages are there (chapter 13), which
            come early if both can; in the file only if it is.
        chooses: whether the source decides whether they follow, behind rounds [PCY-1]; likewise.
    """

    case: str
    role: Role
    connect: str
    token: bytes
    guest: GuestSpec
    tls: TlsFiles | None = None
    epoch: int = 7
    runner: bytes = bytes(range(0x50, 0x60))
    runner_host: str = "kit.invalid"
    order: Order = field(default_factory=Order)
    limits: Mapping[str, int] = field(default_factory=dict)
    deadline_s: float = 0.0
    streams: int = 0
    unverified: bool = False
    follows: bool = False
    chooses: bool = False

    def to_json(self) -> str:
        """The file's text."""
        guest = self.guest
        parts = {
            "schema": SCHEMA,
            "case": self.case,
            "role": self.role.value,
            "connect": self.connect,
            "token": self.token.hex(),
            "tls": None if self.tls is None else asdict(self.tls),
            "guest": {
                "id": guest.id.hex(),
                "name": guest.name,
                "architecture": guest.architecture,
                "vcpus": guest.vcpus,
                "state_bytes": guest.state_bytes,
                "regions": [
                    {name: int(value) for name, value in asdict(region).items()} for region in guest.regions
                ],
                "seed": guest.seed,
                "zero_one_in": guest.zero_one_in,
                "sections": [asdict(section) for section in guest.sections],
                "writes": [[asdict(write) for write in entry] for entry in guest.writes],
            },
            "epoch": self.epoch,
            "runner": {"id": self.runner.hex(), "host": self.runner_host},
            "order": asdict(self.order),
            "limits": dict(self.limits),
            "deadline_s": self.deadline_s,
        }
        if self.streams:
            parts["streams"] = self.streams
        if self.unverified:
            parts["unverified"] = True
        if self.follows:
            parts["follows"] = True
        if self.chooses:
            parts["chooses"] = True
        return json.dumps(parts, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Params:
        """Read the file in a shim.

        Raises:
            KeyError, TypeError, ValueError: it is of another schema than ours.
        """
        parts = json.loads(text)
        if parts["schema"] != SCHEMA:
            raise ValueError(f"parameters of schema {parts['schema']}, this shim knows {SCHEMA}")
        guest = parts["guest"]
        return cls(
            case=parts["case"],
            role=Role(parts["role"]),
            connect=parts["connect"],
            token=bytes.fromhex(parts["token"]),
            tls=None if parts["tls"] is None else TlsFiles(**parts["tls"]),
            guest=GuestSpec(
                id=bytes.fromhex(guest["id"]),
                name=guest["name"],
                architecture=guest["architecture"],
                vcpus=guest["vcpus"],
                state_bytes=guest["state_bytes"],
                regions=tuple(region_of(region) for region in guest["regions"]),
                seed=guest["seed"],
                zero_one_in=guest["zero_one_in"],
                sections=tuple(SectionSpec(**section) for section in guest["sections"]),
                writes=tuple(tuple(Write(**write) for write in entry) for entry in guest["writes"]),
            ),
            epoch=parts["epoch"],
            runner=bytes.fromhex(parts["runner"]["id"]),
            runner_host=parts["runner"]["host"],
            order=Order(**parts["order"]),
            limits=parts["limits"],
            deadline_s=parts["deadline_s"],
            streams=parts.get("streams", 0),
            unverified=parts.get("unverified", False),
            follows=parts.get("follows", False),
            chooses=parts.get("chooses", False),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`result.json`: what a shim says of the session.

    Attributes:
        code: name of the error code with which the session ended at this side; None if it completed.
        by_peer: that code came from the peer, in ABORT or REFUSE.
        epoch: the newest epoch that this side knows the guest to run under.
        memory: SHA-256 over what this side has of the guest's memory; None where it has nothing.
        state: SHA-256 over the state that the source has, or the destination has loaded.
        digest: the protocol's digest of the pause image, in hex, empty where it was not reached.
        rounds: rounds of the running guest that were acknowledged.
        text: for people.
    """

    outcome: Outcome
    guest: GuestState
    code: str | None = None
    by_peer: bool = False
    epoch: int = 0
    memory: str | None = None
    state: str | None = None
    digest: str = ""
    rounds: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    agent: str = ""
    text: str = ""

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """Read what a shim wrote.

        Raises:
            ContractError: it is not what the contract says.
        """
        try:
            parts = json.loads(data)
        except (ValueError, RecursionError):
            raise ContractError(f"{RESULT} is no JSON") from None
        if not isinstance(parts, dict) or parts.get("schema") != SCHEMA:
            raise ContractError(f'{RESULT} is no object with "schema": {SCHEMA}')
        checked = {
            "outcome": _enum(parts, "outcome", Outcome),
            "guest": _enum(parts, "guest", GuestState),
            "code": _text(parts, "code", r"[a-z0-9_]{1,40}", None),
            "memory": _text(parts, "memory", r"[0-9a-f]{64}", None),
            "state": _text(parts, "state", r"[0-9a-f]{64}", None),
            "digest": _text(parts, "digest", r"([0-9a-f]{32})?", ""),
            "agent": _text(parts, "agent", r".{0,255}", ""),
            "text": _text(parts, "text", r"(?s).{0,4096}", ""),
            "by_peer": _typed(parts, "by_peer", bool, False),
            **{name: _count(parts, name) for name in _COUNTS},
        }
        unknown = sorted(map(repr, parts.keys() - {"schema"} - {one.name for one in fields(cls)}))
        if unknown:
            raise ContractError(f"{RESULT} has fields that nobody knows: {', '.join(unknown)[:200]}")
        return cls(**checked)  # type: ignore[arg-type]


_COUNTS: Final = ("epoch", "rounds", "bytes_sent", "bytes_received")


class ContractError(Exception):
    """A shim has written something that the contract does not allow."""


def read_report(directory: Path) -> Report:
    """What the shim left in its directory.

    Raises:
        ContractError: nothing, too much, or something else.
    """
    path = directory / RESULT
    try:
        if not path.is_file():  # a pipe would keep us waiting
            raise ContractError(f"there is no {RESULT}")
        with path.open("rb") as file:
            data = file.read(RESULT_BYTES_MAX + 1)
    except OSError as error:
        raise ContractError(f"{RESULT} cannot be read: {error.strerror}") from error
    if len(data) > RESULT_BYTES_MAX:
        raise ContractError(f"{RESULT} has more than {RESULT_BYTES_MAX} bytes")
    return Report.from_json(data)


def _typed(parts: Mapping[str, object], name: str, kind: type[T], default: T) -> T:
    value = parts.get(name, default)
    if type(value) is not kind:  # True is an int, but no count
        raise ContractError(f"{RESULT}: {name} is no {kind.__name__}")
    return value


def _count(parts: Mapping[str, object], name: str) -> int:
    value = _typed(parts, name, int, 0)
    if not 0 <= value < 1 << 64:
        raise ContractError(f"{RESULT}: {name} is no number of 64 bits")
    return value


def _text(parts: Mapping[str, object], name: str, pattern: str, default: str | None) -> str | None:
    value = parts.get(name, default)
    if value is None and default is None:
        return None
    if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
        raise ContractError(f"{RESULT}: {name} is not of the form {pattern}")
    return value


def _enum(parts: Mapping[str, object], name: str, kind: type[T]) -> T:
    value = parts.get(name)
    members = [member.value for member in kind]  # type: ignore[attr-defined]
    if value not in members:
        raise ContractError(f"{RESULT}: {name} is none of {', '.join(members)}")
    return kind(value)  # type: ignore[call-arg]
