"""Peers from the command line and from a file, and failures that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.errors import ConfigError
from sterna_interop.contract import Role
from sterna_interop.implementations import Implementation, judge_expectation, parse_peer, read_peers
from sterna_interop.results import CaseResult, Kind, Verdict


def result(verdict: Verdict, transport: str = "plain") -> CaseResult:
    return CaseResult(
        case="matrix-004",
        kind=Kind.MATRIX,
        source="mine",
        destination="other",
        transport=transport,
        verdict=verdict,
    )


@pytest.mark.parametrize(
    ("glob", "before", "after"),
    [
        ("matrix-*", Verdict.FAIL, Verdict.XFAIL),
        ("matrix-004/plain", Verdict.CRASH, Verdict.XFAIL),
        ("matrix-004", Verdict.PASS, Verdict.XPASS),
        ("matrix-*", Verdict.NON_STRICT, Verdict.XPASS),
        ("matrix-004/tls", Verdict.FAIL, Verdict.FAIL),
        ("matrix-*", Verdict.UNSUPPORTED, Verdict.UNSUPPORTED),
        ("matrix-*", Verdict.KIT_ERROR, Verdict.KIT_ERROR),
    ],
)
def test_what_was_announced(glob: str, before: Verdict, after: Verdict) -> None:
    """A failure is never made anything but an announced failure, and a pass is not taken in silence."""
    peers = {"mine": Implementation("mine", ("x",), expect_fail={glob: "issue 12"})}
    judged = judge_expectation(result(before), peers)
    assert judged.verdict is after
    assert ("issue 12" in judged.detail) == (after in {Verdict.XFAIL, Verdict.XPASS})


def test_the_kit_excuses_nobody() -> None:
    assert judge_expectation(result(Verdict.FAIL), {}).verdict is Verdict.FAIL


def test_a_peer_from_the_command_line() -> None:
    assert parse_peer("mine=./shim --name 'a b'") == Implementation("mine", ("./shim", "--name", "a b"))


@pytest.mark.parametrize(
    "text", ["", "mine", "mine=", "=cmd", "kit=cmd", "a b=cmd", "mine='", "m" * 32 + "=c"]
)
def test_a_peer_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_peer(text)


def test_peers_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(
        """
[peers.mine]
command = ["./shim", "-q"]
roles = ["source"]
expect_fail = { "matrix-*/tls" = "no TLS yet" }
[peers.other]
command = "./other 'x y'"
[peers.bytes]
codec = "./codec"
"""
    )
    mine, other, codec = read_peers(path)
    assert mine == Implementation(
        "mine", ("./shim", "-q"), frozenset({Role.SOURCE}), {"matrix-*/tls": "no TLS yet"}
    )
    assert other == Implementation("other", ("./other", "x y"))
    assert codec == Implementation("bytes", (), frozenset(), codec=("./codec",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has tables"),
        ("x = 1", "has tables"),
        ("[peers]", "has tables"),
        ('[[peer]]\nidentity = "host-a"', "a file for `sterna interop`"),
        ("[peers.a]", "give it a `command`"),
        ("[peers.a]\ncodec = 'x'\nroles = ['source']", "roles are those of a `command`"),
        ("[peers.a]\ncodec = 7", "codec is a list"),
        ("peers = 3", "has tables"),
        ("[peers]\na = 3", "has command, codec"),
        ("[peers.a]\ncommand = []", "command is a list"),
        ("[peers.a]\ncommand = [1]", "command is a list"),
        ("[peers.a]\ncommand = 7", "command is a list"),
        ('[peers.a]\ncommand = "\'"', "command is a list"),
        ("[peers.a]\ncommand = ['x']\nroles = ['both']", "roles are among"),
        ("[peers.a]\ncommand = ['x']\nroles = 1", "roles are among"),
        ("[peers.a]\ncommand = ['x']\nexpect_fail = {a = ''}", "globs and reasons"),
        ("[peers.a]\ncommand = ['x']\nexpected = 1", "not expected"),
        ("[peers.kit]\ncommand = ['x']", "neither kit nor codec"),
        ("[", "no TOML"),
        ("\udcff", "no TOML"),
    ],
)
def test_a_file_that_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        read_peers(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_peers(tmp_path)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="more than"):
        read_peers(tmp_path / "huge")
