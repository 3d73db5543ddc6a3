"""`params.json` comes back as it went, and whatever a shim writes is a report or one ContractError."""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna_interop.contract import (
    RESULT_BYTES_MAX,
    ContractError,
    Do,
    Exit,
    GuestState,
    Order,
    Outcome,
    Params,
    Report,
    Role,
    TlsFiles,
    read_report,
)
from sterna_interop.guest import GuestSpec, state_hash

README = Path(__file__).parents[2] / "interop" / "README.md"

GOOD = Report(outcome=Outcome.COMPLETED, guest=GuestState.RUNNING, memory="0" * 64, digest="a" * 32, epoch=8)
PARAMS = Params(
    case="matrix-001",
    role=Role.DESTINATION,
    connect="127.0.0.1:4711",
    token=bytes(8),
    guest=GuestSpec(),
    tls=TlsFiles("a.pem", "a.key", "ca.pem", "a", "b"),
    order=Order("refuse", code="full"),
    limits={"regions": 3},
    deadline_s=1.5,
)


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(GOOD.to_json()) | fields).encode()


def test_parameters_come_back() -> None:
    assert Params.from_json(PARAMS.to_json()) == PARAMS


def test_pages_follow_only_where_that_is_said() -> None:
    assert not {"follows", "chooses"} & json.loads(PARAMS.to_json()).keys()
    told = replace(PARAMS, follows=True, chooses=True)
    assert Params.from_json(told.to_json()) == told


def test_data_connections_stand_in_the_file_only_where_there_are_some() -> None:
    assert "streams" not in json.loads(PARAMS.to_json())
    asked = replace(PARAMS, streams=3)
    assert Params.from_json(asked.to_json()) == asked


def test_page_hashes_are_spoken_of_only_where_they_are_not_wanted() -> None:
    assert "unverified" not in json.loads(PARAMS.to_json())
    asked = replace(PARAMS, unverified=True)
    assert Params.from_json(asked.to_json()) == asked


def test_parameters_of_another_schema_are_not_for_us() -> None:
    text = json.dumps(json.loads(PARAMS.to_json()) | {"schema": 2})
    with pytest.raises(ValueError, match="schema 2"):
        Params.from_json(text)


def test_roles_have_a_peer() -> None:
    assert [role.other for role in Role] == [Role.DESTINATION, Role.SOURCE]


def test_a_report_comes_back(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(GOOD.to_json())
    assert read_report(tmp_path) == GOOD


def test_a_short_report_has_defaults() -> None:
    data = b'{"schema": 1, "outcome": "rolled_back", "guest": "none", "code": "bad_magic"}'
    assert Report.from_json(data) == Report(
        outcome=Outcome.ROLLED_BACK, guest=GuestState.NONE, code="bad_magic"
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 50_000, "no JSON"),
        (b"[]", "no object"),
        (b"{}", "no object"),
        (changed(outcome="fine"), "outcome is none of"),
        (changed(guest=None), "guest is none of"),
        (changed(guest=["running"]), "guest is none of"),
        (changed(epoch=-1), "epoch is no number of 64 bits"),
        (changed(epoch=1 << 64), "epoch is no number of 64 bits"),
        (changed(epoch=True), "epoch is no int"),
        (changed(rounds=1.5), "rounds is no int"),
        (changed(by_peer=1), "by_peer is no bool"),
        (changed(memory="0" * 63), "memory is not of the form"),
        (changed(code="<script>"), "code is not of the form"),
        (changed(text="x" * 4097), "text is not of the form"),
        (changed(verdict="pass"), "nobody knows: 'verdict'"),
    ],
)
def test_a_wrong_report_says_what_is_wrong(data: bytes, text: str) -> None:
    with pytest.raises(ContractError, match=text):
        Report.from_json(data)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_bytes_are_a_report_or_one_error(data: bytes) -> None:
    with pytest.raises(ContractError):
        Report.from_json(data)


def test_no_report(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="there is no"):
        read_report(tmp_path)
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(ContractError, match="there is no"):
        read_report(tmp_path)


def test_a_huge_report_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "result.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ContractError, match=str(RESULT_BYTES_MAX)):
        read_report(tmp_path)


def test_the_example_of_the_readme_is_a_report() -> None:
    """Of the default guest, so that an implementer can compare hashes."""
    (block,) = re.findall(r"```json\n(.*?)```", README.read_text(), re.DOTALL)
    report = Report.from_json(block.encode())
    assert (report.memory, report.state) == (GuestSpec().memory_hash(), state_hash(GuestSpec().state))


def test_the_readme_has_every_field_order_and_word() -> None:
    text = README.read_text()
    names = [one.name for one in fields(Report)] + [one.name for one in fields(Order)]
    words = [*Do, *Outcome, *GuestState, *(str(int(code)) for code in Exit)]
    assert not [name for name in [*names, *words] if f"`{name}`" not in text and f"| {name} |" not in text]


def test_the_readme_has_the_bytes_of_a_page() -> None:
    region = GuestSpec().copied[0]
    assert GuestSpec().page(region, 4, 1) == bytes(4096)
    assert GuestSpec().page(region, 4, 2)[:8].hex(" ").upper() in README.read_text()
