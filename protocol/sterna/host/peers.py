"""The peer list: which hosts are known here, and which guests each may send or receive.

A certificate of the right CA says who a host is, not what it may do. That is in a TOML file::

    [[peer]]
    identity = "host-a"
    may_send = ["*"]                      # guests that host-a may send to this host
    may_receive = ["web-*", "id:00112233445566778899aabbccddeeff"]   # guests that it may get from here
    fingerprint = "5f:1c:..."             # optional: only this certificate (SHA-256), or a list of them

A guest is named by a glob over its name, or by ``id:`` and its 32 hex digits. A name is what the source
says it is: where hosts do not trust each other's word, list ids. What is not listed is not allowed, and an
unknown key is an error instead of a rule that silently does nothing.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeGuard

from sterna.errors import ConfigError, TransportError
from sterna.limits import TEXT_BYTES
from sterna.net.identity import IDENTITY_PREFIX, is_name
from sterna.registry import ErrorCode

FILE_BYTES_MAX: Final = 1024 * 1024
RULES_MAX: Final = 1024  # guests listed for one peer and direction

_ID: Final = re.compile(r"id:([0-9a-f]{32})")
_ENTRY: Final = re.compile(r"^[ \t]*\[\[[ \t]*peer[ \t]*\]\]", re.MULTILINE)
_KEYS: Final = frozenset({"identity", "may_send", "may_receive", "fingerprint"})


class Direction(StrEnum):
    """What the peer wants to do."""

    SEND = "send"  # the peer is the source
    RECEIVE = "receive"  # the peer is the destination


@dataclass(frozen=True, slots=True)
class PeerRule:
    """One `[[peer]]`. Without fingerprints every certificate of that identity is accepted."""

    identity: str
    may_send: tuple[str, ...] = ()
    may_receive: tuple[str, ...] = ()
    fingerprints: frozenset[bytes] = frozenset()

    def allows(self, direction: Direction, guest_id: bytes, guest_name: str) -> bool:
        """Whether the peer may do this with the guest."""
        rules = self.may_send if direction is Direction.SEND else self.may_receive
        return any(_matches(rule, guest_id, guest_name) for rule in rules)


def _matches(rule: str, guest_id: bytes, guest_name: str) -> bool:
    # An id never matches a name: a guest called like another one's id would get its rights.
    if (by_id := _ID.fullmatch(rule)) is not None:
        return bytes.fromhex(by_id[1]) == guest_id
    return fnmatchcase(guest_name, rule)


@dataclass(frozen=True, slots=True)
class PeerList:
    """The rules by identity. `source` says where they come from, for messages."""

    rules: dict[str, PeerRule]
    source: str

    @classmethod
    def load(cls, path: Path) -> PeerList:
        """Read a peer list.

        Raises:
            ConfigError: the file cannot be read, or something in it is wrong; with the place and the remedy.
        """
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(f"cannot read the peer list {path}: {error.strerror}") from error
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"the peer list {path} is larger than {FILE_BYTES_MAX} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{path}, line {line}: not UTF-8") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> PeerList:
        """Read a peer list that is already in memory; raises as `load` does."""
        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigError(f"{source}: not TOML: {error}") from error
        if unknown := sorted(document.keys() - {"peer"}):
            raise ConfigError(
                f"{source}: unknown key {unknown[0][:80]!r}; a peer list has [[peer]] entries only"
            )
        entries = document.get("peer", [])
        if not isinstance(entries, list):
            raise ConfigError(f"{source}: `peer` is written [[peer]], with two brackets")
        lines = [text.count("\n", 0, match.start()) + 1 for match in _ENTRY.finditer(text)]
        rules: dict[str, PeerRule] = {}
        for number, entry in enumerate(entries, 1):
            line = f", line {lines[number - 1]}" if len(lines) == len(entries) else ""
            rule = _Entry(f"{source}{line}: [[peer]] number {number}", entry).rule()
            if rule.identity in rules:
                raise ConfigError(
                    f"{source}{line}: {rule.identity!r} is listed twice; put its rules into one [[peer]]"
                )
            rules[rule.identity] = rule
        return cls(rules, source)

    def check_peer(self, identity: str, fingerprint: bytes) -> None:
        """Whether a verified certificate is that of a listed peer; the hook for `sterna.net.tls.TlsConfig`.

        Raises:
            TransportError: `PEER_NOT_LISTED`.
        """
        self._rule(identity, fingerprint)

    def authorise(
        self, identity: str, fingerprint: bytes, guest_id: bytes, guest_name: str, direction: Direction
    ) -> None:
        """Whether the peer may send this guest here, or receive it from here.

        Args:
            identity: of the peer's certificate.
            fingerprint: SHA-256 of the certificate in DER.
            guest_id: 16 bytes.
            guest_name: as the source states it.
            direction: what the peer wants to do.

        Raises:
            TransportError: `PEER_NOT_LISTED`, or `NOT_AUTHORISED` if the guest is not among those allowed.
        """
        rule = self._rule(identity, fingerprint)
        if not rule.allows(direction, guest_id, guest_name):
            raise TransportError(
                ErrorCode.NOT_AUTHORISED,
                f"{identity!r} may not {direction} guest {guest_name!r} (id:{guest_id.hex()}): "
                f"add it to may_{direction} of this peer in {self.source}",
            )

    def may_send(self, identity: str, guest_id: bytes) -> bool:
        """Whether the peer may send a guest with this id here, if only its name, not yet known, is right."""
        rule = self.rules.get(identity)
        rules = () if rule is None else rule.may_send
        return any(not one.startswith("id:") or one == f"id:{guest_id.hex()}" for one in rules)

    def _rule(self, identity: str, fingerprint: bytes) -> PeerRule:
        rule = self.rules.get(identity)
        if rule is None:
            raise TransportError(
                ErrorCode.PEER_NOT_LISTED,
                f'{identity!r} is not in {self.source}: add a [[peer]] with identity = "{identity}"',
            )
        if rule.fingerprints and fingerprint not in rule.fingerprints:
            raise TransportError(
                ErrorCode.PEER_NOT_LISTED,
                f"{identity!r} shows a certificate that {self.source} does not list: "
                f"if it was renewed, add fingerprint {fingerprint.hex(':')}",
            )
        return rule


class _Entry:
    """Checks one `[[peer]]`; `place` begins every message."""

    def __init__(self, place: str, entry: object) -> None:
        if not isinstance(entry, dict):
            raise ConfigError(f"{place} is no table: write [[peer]] and its keys below")
        self._place = place
        self._entry: dict[str, object] = entry

    def rule(self) -> PeerRule:
        if unknown := sorted(self._entry.keys() - _KEYS):
            raise ConfigError(
                f"{self._place}: unknown key {unknown[0][:80]!r}; known are {', '.join(sorted(_KEYS))}"
            )
        return PeerRule(
            self._identity(), self._guests("may_send"), self._guests("may_receive"), self._fingerprints()
        )

    def _identity(self) -> str:
        identity = self._entry.get("identity")
        if not isinstance(identity, str):
            raise ConfigError(f'{self._place}: identity is missing: write identity = "name"')
        identity = identity.removeprefix(IDENTITY_PREFIX)
        if not is_name(identity):
            raise ConfigError(
                f"{self._place}: {identity[:80]!r} can be no host's identity (see `sterna pki issue`)"
            )
        self._place += f" ({identity})"
        return identity

    def _guests(self, key: str) -> tuple[str, ...]:
        rules = self._entry.get(key, [])
        if not _is_texts(rules) or len(rules) > RULES_MAX:
            raise ConfigError(
                f'{self._place}: {key} is a list of at most {RULES_MAX} guests, for example ["web-*"]'
            )
        for rule in rules:
            malformed_id = rule.startswith("id:") and _ID.fullmatch(rule) is None
            if not rule or malformed_id or len(rule.encode()) > TEXT_BYTES or not rule.isprintable():
                raise ConfigError(
                    f"{self._place}: {key}: {rule[:80]!r} is no guest: a glob over names, "
                    "or id: and 32 lower-case hex digits"
                )
        return tuple(rules)

    def _fingerprints(self) -> frozenset[bytes]:
        given = self._entry.get("fingerprint", [])
        texts = [given] if isinstance(given, str) else given
        if not _is_texts(texts) or len(texts) > RULES_MAX:
            raise ConfigError(f"{self._place}: fingerprint is a text, or a list of them")
        # An empty list would read as "none is accepted" and mean "all are".
        if "fingerprint" in self._entry and not texts:
            raise ConfigError(f"{self._place}: fingerprint is an empty list: leave it out to accept any")
        return frozenset(map(self._fingerprint, texts))

    def _fingerprint(self, text: str) -> bytes:
        digits = text.removeprefix("sha256:").replace(":", "")
        if re.fullmatch(r"[0-9A-Fa-f]{64}", digits) is None:
            raise ConfigError(
                f"{self._place}: {text[:80]!r} is no SHA-256 fingerprint: 64 hex digits, colons allowed"
            )
        return bytes.fromhex(digits)


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
