"""The minimal shim: what it knows, and what it makes of an end."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sterna_interop import minimal
from sterna_interop.contract import Order, Params, Role
from sterna_interop.guest import GuestSpec
from sterna_interop.minimal.__main__ import UNSUPPORTED, judge_destination, judge_source, main, supported
from sterna_interop.minimal.codes import SessionError

PARAMS = Params(case="x", role=Role.SOURCE, connect="127.0.0.1:1", token=b"", guest=GuestSpec())
LOST = SessionError("connection_lost")


@pytest.mark.parametrize(
    ("role", "order", "known"),
    [
        (Role.SOURCE, Order(), True),
        (Role.SOURCE, Order("refuse", code="full"), False),
        (Role.DESTINATION, Order("refuse", code="full"), True),
        (Role.DESTINATION, Order("refuse", code="nonsense"), False),
        (Role.DESTINATION, Order("b7c1"), False),
    ],
)
def test_what_is_known(role: Role, order: Order, known: bool) -> None:
    assert supported(json.loads(replace(PARAMS, role=role, order=order).to_json())) == known


def test_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "params.json"
    path.write_text(replace(PARAMS, order=Order("b7c1")).to_json())
    assert main(["--params", str(path), "--out", str(tmp_path)]) == UNSUPPORTED
    path.write_text(PARAMS.to_json())
    assert main(["--params", str(path), "--out", str(tmp_path)]) == 1
    assert "minimal: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "error", "end"),
    [
        ({}, LOST, ("rolled_back", "running")),
        ({"granted"}, LOST, ("undecided", "paused")),
        ({"granted", "moved"}, LOST, ("moved", "none")),
        ({"granted", "moved", "released"}, LOST, ("completed", "none")),
        ({"granted", "moved", "released"}, None, ("completed", "none")),
    ],
)
def test_ends_of_a_source(flags: set[str], error: SessionError | None, end: tuple[str, str]) -> None:
    """[CON-62, CON-64, CON-70, ONE-49]"""
    side = SimpleNamespace(**{name: name in flags for name in ("granted", "moved", "released")})
    assert judge_source(side, error) == end


@pytest.mark.parametrize(
    ("flags", "error", "end"),
    [
        ({}, LOST, ("rolled_back", "none")),
        ({"running"}, LOST, ("moved", "running")),
        ({"running", "released"}, LOST, ("completed", "running")),
        ({"running", "released"}, None, ("completed", "running")),
    ],
)
def test_ends_of_a_destination(flags: set[str], error: SessionError | None, end: tuple[str, str]) -> None:
    """[CON-63, CON-64, CON-70]"""
    side = SimpleNamespace(
        running="running" in flags, released="released" in flags, memory={1: b""}, sections=()
    )
    assert judge_destination(side, error) == end
    assert side.memory == ({} if end[1] == "none" else {1: b""})


def test_it_shares_nothing_with_what_it_is_to_judge() -> None:
    """Modules of its own, the standard library, and xxhash: a shared mistake would not show."""
    for path in Path(minimal.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                top = name.split(".")[0]
                assert (
                    name.startswith("sterna_interop.minimal")
                    or top in {"xxhash", "__future__"}
                    or top in sys.stdlib_module_names
                ), f"{path.name} imports {name}"
