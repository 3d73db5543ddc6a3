from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import GuestError
from sterna.guest import holder_fields as fields_of
from sterna.guest.api import GuestDescription, StateSection
from sterna.registry import ErrorCode, RegionKind, Transfer
from sterna.wire.records import Disk, Nic, Region, Runner

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40)
U32 = st.integers(0, (1 << 32) - 1)
REGION = st.builds(
    Region,
    id=U32,
    address=st.integers(0, (1 << 64) - 1),
    size_bytes=st.integers(1, 1 << 53 - 1),
    granule_log2=st.integers(12, 16),
    fault_granule_log2=st.integers(12, 30),
    kind=st.sampled_from(RegionKind),
    transfer=st.sampled_from(Transfer),
)
DESCRIPTION = st.builds(
    GuestDescription,
    id=st.binary(min_size=16, max_size=16),
    name=TEXT,
    regions=st.lists(REGION, max_size=3).map(tuple),
    architecture=st.integers(0, 0xFFFF),
    vcpus=U32,
    state_bytes=st.integers(0, 1 << 53 - 1),
    cpu_features=st.lists(TEXT, max_size=3).map(tuple),
    nics=st.lists(st.builds(Nic, TEXT, st.binary(min_size=6, max_size=6)), max_size=2).map(tuple),
    disks=st.lists(st.builds(Disk, TEXT, TEXT, st.integers(0, 1 << 53 - 1)), max_size=2).map(tuple),
)
SECTION = st.builds(
    StateSection,
    kind=st.integers(0, 0xFFFF),
    version=st.integers(0, 0xFFFF),
    data=st.binary(max_size=20),
    architecture=st.integers(0, 0xFFFF),
    vcpu=U32,
    instance=U32,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "name", "regions", "bytes", "offset"]), children)
    ),
    max_leaves=6,
)


def through_json(value):
    return json.loads(json.dumps(value))


def outcome(call, *arguments: object) -> ErrorCode | None:
    try:
        call(*arguments)
    except GuestError as error:
        return error.code
    return None


@given(DESCRIPTION)
def test_a_description_survives(description: GuestDescription) -> None:
    fields = through_json(fields_of.description_to_json(description))
    assert fields_of.description_from_json(fields) == description


@given(st.lists(SECTION, max_size=4).map(tuple))
def test_sections_survive(sections: tuple[StateSection, ...]) -> None:
    table, data = fields_of.sections_to_json(sections)
    assert fields_of.sections_from_json({"sections": through_json(table)}, data) == sections


@given(TEXT.filter(lambda text: len(text.encode()) <= 255), st.binary(min_size=16, max_size=16))
def test_a_runner_survives(host: str, number: bytes) -> None:
    runner = Runner(host, number)
    assert fields_of.runner_from_json(through_json(fields_of.runner_to_json(runner))) == runner


GOOD = fields_of.description_to_json(
    GuestDescription(
        bytes(16), "g", (Region(0, 0, 4096),), nics=(Nic("n", bytes(6)),), disks=(Disk("d", "i", 1),)
    )
)


@given(st.sampled_from(sorted(GOOD)), JSON)
def test_any_field_of_a_description_may_be_anything(name: str, value: object) -> None:
    """[HOL-11]: a description or one coded error."""
    code = outcome(fields_of.description_from_json, {**GOOD, name: value})
    assert code in {None, ErrorCode.BAD_VALUE, ErrorCode.REGION_KIND}


@given(JSON)
def test_any_section_table(value: object) -> None:
    assert outcome(fields_of.sections_from_json, {"sections": value}, b"12345") in {None, ErrorCode.BAD_VALUE}


def bad(call, *arguments: object) -> str:
    with pytest.raises(GuestError) as caught:
        call(*arguments)
    assert caught.value.code is ErrorCode.BAD_VALUE
    return caught.value.detail


def test_numbers_and_their_bounds() -> None:
    """[HOL-11]"""
    assert fields_of.integer({"a": 5}, "a", 5, 5) == 5
    for value in (4, 6, True, 5.0, "5", None, [5]):
        assert bad(fields_of.integer, {"a": value}, "a", 5, 5).startswith("a: ")
    bad(fields_of.integer, {}, "a")
    bad(fields_of.integer, {"a": 1 << 53}, "a")
    assert fields_of.number({"a": 1}, "a", 0, 1) == 1.0
    for value in (1.01, -0.1, False, "0.5", None, 10**400):
        bad(fields_of.number, {"a": value}, "a", 0.0, 1.0)


def test_texts() -> None:
    assert fields_of.text({"a": "é" * 127}, "a") == "é" * 127
    assert fields_of.text({}, "a", "default") == "default"
    for value in ("é" * 128, "a\nb", "\x7f", "\x85", "\ud800", 5, None):
        bad(fields_of.text, {"a": value}, "a")
    bad(fields_of.text, {}, "a")


def test_bytes_and_words() -> None:
    assert fields_of.hex_bytes({"a": "00ff"}, "a", 2) == b"\x00\xff"
    for value in ("00f", "00FF", "0 f ", "zz00", 5, None):
        bad(fields_of.hex_bytes, {"a": value}, "a", 2)
    assert fields_of.word({"a": "0xffffffffffffffff"}, "a") == (1 << 64) - 1
    for value in ("0x", "ff", "0x1_0", "0x+1", "0x10000000000000000", 5, None):
        bad(fields_of.word, {"a": value}, "a")


def test_lists_and_objects() -> None:
    assert fields_of.objects({}, "a", 0) == []
    for value in ([{}, {}], [1], {}, None):
        bad(fields_of.objects, {"a": value}, "a", 1)
    assert fields_of.an_object({"a": {}}, "a") == {}
    bad(fields_of.an_object, {"a": []}, "a")


def test_sections_stay_inside_of_their_file() -> None:
    """[HOL-37]"""
    entry = {"kind": 1, "version": 1, "architecture": 0, "vcpu": 0, "instance": 0, "offset": 3, "bytes": 2}
    assert fields_of.sections_from_json({"sections": [entry]}, b"12345")[0].data == b"45"
    bad(fields_of.sections_from_json, {"sections": [{**entry, "bytes": 3}]}, b"12345")
    bad(fields_of.sections_from_json, {"sections": [{**entry, "offset": 6}]}, b"12345")
    assert "overlap" in bad(fields_of.sections_from_json, {"sections": [entry, entry, entry]}, b"12345")


def test_overlapping_sections_are_refused_before_they_are_copied() -> None:
    """[HOL-37] A small file and a short table must not become more memory than the file has."""
    data = bytes(1 << 20)
    entry = {"kind": 1, "version": 1, "architecture": 0, "vcpu": 0, "instance": 0, "offset": 1}
    table = [{**entry, "bytes": len(data) - 1}] * 64
    tracemalloc.start()
    try:
        assert "overlap" in bad(fields_of.sections_from_json, {"sections": table}, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(data)


def test_too_many_features() -> None:
    bad(fields_of.description_from_json, {**GOOD, "cpu_features": ["x"] * 1025})
