"""The implementations that a run is about: commands of shims, and what is known to fail with them."""

from __future__ import annotations

import fnmatch
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from sterna.errors import ConfigError
from sterna_interop.contract import Role
from sterna_interop.results import CODEC, KIT, CaseResult, Verdict

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}")
_KEYS: Final = frozenset({"command", "codec", "roles", "expect_fail"})
PEERS_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Implementation:
    """One peer of the run.

    Attributes:
        command: of its endpoint shim, empty if it has none: then it has no roles, and a codec.
        roles: that it has; cases for others are not tried.
        codec: of its codec shim (CODEC.md), empty if it has none.
        expect_fail: by glob over `case` or `case/transport`, the reason why it fails.
        module: of a shim in this package, which can be forked instead of started; see zygote.py.
    """

    name: str
    command: tuple[str, ...]
    roles: frozenset[Role] = frozenset(Role)
    expect_fail: Mapping[str, str] = field(default_factory=dict)
    module: str = ""
    codec: tuple[str, ...] = ()

    def excuse(self, result: CaseResult) -> str:
        """Why this result is known to be a failure; empty if it is not."""
        names = (result.case, f"{result.case}/{result.transport}")
        for glob, reason in self.expect_fail.items():
            if any(fnmatch.fnmatchcase(name, glob) for name in names):
                return reason
        return ""


# What the kit brings along: Sterna's endpoints, and a second implementation that shares nothing with them.
STERNA: Final = Implementation(
    "sterna",
    (sys.executable, "-m", "sterna_interop.shim"),
    module="sterna_interop.shim",
    codec=(sys.executable, "-m", "sterna_interop.codec"),
)
MINIMAL: Final = Implementation(
    "minimal",
    (sys.executable, "-m", "sterna_interop.minimal"),
    module="sterna_interop.minimal.__main__",
    codec=(sys.executable, "-m", "sterna_interop.minimal.codec"),
)
BUILT_IN: Final = (STERNA, MINIMAL)


def judge_expectation(result: CaseResult, peers: Mapping[str, Implementation]) -> CaseResult:
    """A failure that was announced is XFAIL; a pass where a failure was announced is XPASS."""
    involved = {result.source, result.destination} - {KIT, CODEC}
    reason = next((why for name in involved if name in peers and (why := peers[name].excuse(result))), "")
    if not reason:
        return result
    if result.verdict in {Verdict.FAIL, Verdict.CRASH}:
        return replace(result, verdict=Verdict.XFAIL, detail=f"known: {reason}\n{result.detail}".strip())
    if result.verdict in {Verdict.PASS, Verdict.NON_STRICT}:
        detail = f"passed, although expect_fail says: {reason}. Take that line out."
        return replace(result, verdict=Verdict.XPASS, detail=detail)
    return result


def parse_peer(text: str) -> Implementation:
    """A peer from ``NAME=COMMAND``, the command as a shell would split it.

    Raises:
        ConfigError: it is something else.
    """
    name, equals, command = text.partition("=")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--peer {text[:80]!r}: {error}") from error
    if not equals or not words:
        raise ConfigError(f"--peer {text[:80]!r}: write NAME=COMMAND, for example mine='./shim --quick'")
    return Implementation(_checked_name(name, "--peer"), tuple(words))


def read_peers(path: Path) -> list[Implementation]:
    """The peers of a TOML file: one table ``[peers.NAME]`` each, with `command`, `codec`, or both.

    ::

        [peers.mine]
        command = ["./my-shim", "--quick"]
        codec = ["./my-codec"]
        roles = ["source", "destination"]
        expect_fail = { "matrix-004/tls" = "half-open connections are not noticed, issue 12" }

    Raises:
        ConfigError: the file cannot be read, or is something else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(PEERS_BYTES_MAX + 1)
        if len(data) > PEERS_BYTES_MAX:
            raise ConfigError(f"{path} has more than {PEERS_BYTES_MAX} bytes")
        document = tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    tables = document.pop("peers", None)
    if document or not isinstance(tables, dict) or not tables:
        raise ConfigError(
            f"{path}: a file for `sterna interop` has tables [peers.NAME], with `command`, `codec` or both, "
            "and nothing else"
        )
    return [_peer(path, name, table) for name, table in tables.items()]


def _peer(path: Path, name: str, table: object) -> Implementation:
    where = f"{path}: peers.{name[:40]}"
    if not isinstance(table, dict) or (unknown := table.keys() - _KEYS):
        named = "" if not isinstance(table, dict) else f", not {', '.join(sorted(unknown))[:80]}"
        raise ConfigError(f"{where} has command, codec, roles and expect_fail{named}")
    words, codec = (_command(where, name, table) for name in ("command", "codec"))
    if not words and not codec:
        raise ConfigError(
            f"{where}: give it a `command` (its endpoint shim), a `codec` (its codec shim) or both"
        )
    if not words and "roles" in table:
        raise ConfigError(f"{where}.roles are those of a `command`, which it does not have")
    every = [role.value for role in Role] if words else []
    try:
        roles = frozenset(Role(role) for role in table.get("roles", every))
    except (ValueError, TypeError):
        raise ConfigError(f"{where}.roles are among {', '.join(role.value for role in Role)}") from None
    expect_fail = table.get("expect_fail", {})
    if not isinstance(expect_fail, dict) or not all(
        isinstance(reason, str) and reason for reason in expect_fail.values()
    ):
        raise ConfigError(f"{where}.expect_fail is a table of globs and reasons")
    return Implementation(_checked_name(name, where), words, roles, expect_fail, codec=codec)


def _command(where: str, name: str, table: Mapping[str, object]) -> tuple[str, ...]:
    """A command of the table, empty if it is not there."""
    words = _words(table.get(name, []))
    if name in table and not words:
        raise ConfigError(f"{where}.{name} is a list of words, or one line")
    return words


def _words(command: object) -> tuple[str, ...]:
    """A command as words, empty if it is none."""
    if isinstance(command, str):
        try:
            return tuple(shlex.split(command))
        except ValueError:
            return ()
    if isinstance(command, list) and all(isinstance(word, str) for word in command):
        return tuple(command)
    return ()


def _checked_name(name: str, where: str) -> str:
    if _NAME.fullmatch(name) is None or name in {KIT, CODEC}:
        raise ConfigError(
            f"{where}: a peer's name is up to 31 letters, digits, '.', '_', '-', and neither kit nor codec"
        )
    return name
