from __future__ import annotations

import pytest

from sterna.cli import hints
from sterna.cli.hints import hint, hinted
from sterna.cli.main import COMMANDS, main
from sterna.errors import ConfigError, PeerAborted, TransportError
from sterna.registry import ErrorCode


def test_a_hint_depends_on_who_has_found_the_error() -> None:
    """The same code means another command on another host."""
    here = hint(TransportError(ErrorCode.PEER_NOT_LISTED, "add a [[peer]]"))
    there = hint(PeerAborted(ErrorCode.PEER_NOT_LISTED))
    assert here == ""
    assert "peer list there" in there


def test_a_hint_is_a_line_of_its_own() -> None:
    error = TransportError(ErrorCode.CONNECT_FAILED, "nothing listens there")
    assert hinted(f"sterna: {error}", error).splitlines() == [
        "sterna: connect_failed: nothing listens there",
        f"  {hint(error)}",
    ]


@pytest.mark.parametrize("code", [ErrorCode.REFUSED, ErrorCode.MISSING_FEATURE, ErrorCode.STALE_EPOCH])
def test_hosts_that_name_different_stores_are_told_what_to_do(code: ErrorCode) -> None:
    """[ONE-11] [ONE-16] [ONE-55] That is what the peer's code comes of most often."""
    assert "--store" in hint(PeerAborted(code))


@pytest.mark.parametrize(
    "error",
    [None, ConfigError("says it itself"), ZeroDivisionError(), PeerAborted(9999, "of a later one")],
)
def test_often_there_is_nothing_to_add(error: BaseException | None) -> None:
    assert hint(error) == ""
    assert hinted("text", error) == "text"


def test_hints_name_options_and_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for name, _, _ in COMMANDS:
        main([name, "--help"])
    main(["pki", "issue", "--help"])
    helps = capsys.readouterr().out + "--help"
    for text in (*hints._HERE.values(), *hints._THERE.values()):
        for word in text.replace("`", " ").split():
            if word.startswith("--"):
                assert word.rstrip(";,:") in helps
