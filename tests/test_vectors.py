"""The vectors of spec/vectors against the code: what is valid is read and written again, all else named.

The vectors were made without the code (spec/vectors.py); sterna_interop.codec alone knows both languages.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import clauses
from sterna import wire
from sterna.errors import RemoteProtocolError
from sterna.limits import HEADER_BYTES
from sterna.registry import ErrorCode, FrameType
from sterna.wire.header import decode_header
from sterna_interop.codec import HEADER_FIELDS, Context, integer, read, shown

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "spec" / "vectors"
SCHEMA = json.loads((FOLDER / "schema.json").read_text())
FILES = {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json")) if path.stem != "schema"
}

CLAUSES = clauses.load()
PREFACE = wire.encode_preface()
SINGLE_BYTES = 1000
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
# A cut text is a cut field to the code.
SAME_CLAUSE = {"TXT-1": "FRM-1"}


@dataclass(frozen=True)
class Vector:
    """One test with the group it stands in."""

    group: Mapping[str, Any]
    test: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        return self.test[name]

    @property
    def data(self) -> bytes:
        return bytes.fromhex(self.test["hex"])

    @property
    def context(self) -> Mapping[str, Any]:
        return self.group["context"]


VECTORS = [
    Vector(group, test) for file in FILES.values() for group in file["groups"] for test in group["tests"]
]


def of_kind(kind: str) -> Any:
    """Parametrize by the vectors of a kind."""
    found = [each for each in VECTORS if each.group["kind"] == kind]
    return pytest.mark.parametrize("vector", found, ids=[each.id for each in found])


# ---- readers ----


def bytewise(data: bytes) -> list[bytes]:
    """One byte after the other; of long data the rest in odd pieces, which are as good and sooner done."""
    pieces = [data[at : at + 1] for at in range(min(len(data), SINGLE_BYTES))]
    return pieces + [data[at : at + 61] for at in range(SINGLE_BYTES, len(data), 61)]


def framed(vector: Vector) -> bytes:
    """A body in a frame, with as many bytes of bulk as its table says if it is right."""
    bulk_bytes = 0
    if vector.group["frame"] == "PAGES" and vector.result == "valid":
        bulk_bytes = sum(row["size_bytes"] for row in vector.value["runs"])
    return (
        wire.encode_header(vector.group["type"], 0, 0, vector.data, bulk_bytes)
        + vector.data
        + bytes(bulk_bytes)
    )


def check_error(vector: Vector, error: RemoteProtocolError | None) -> None:
    assert error is not None
    assert (error.code.name.lower(), error.clause) == (
        vector.error,
        SAME_CLAUSE.get(vector.clause, vector.clause),
    )


# ---- every vector against the code ----


@of_kind("body")
def test_body(vector: Vector) -> None:
    """[FRM-13] Alone, and in a frame, whole and byte by byte; what is valid is written again."""
    bounds = Context.from_json(vector.context).bounds
    if vector.result == "valid":
        record = wire.decode_body(vector.group["type"], vector.data, bounds)
        assert shown(record) == vector.value
        assert wire.encode_body(record, bounds) == vector.data
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            wire.decode_body(vector.group["type"], vector.data, bounds)
        check_error(vector, caught.value)
    data = PREFACE + framed(vector)
    end = len(PREFACE) + HEADER_BYTES + len(vector.data)  # bulk parts are long, and come as one piece
    for pieces in ([data], [*bytewise(data[:end]), data[end:]]):
        outcome = read(Context.from_json(vector.context).reader(), pieces, eof=True)
        if vector.result == "invalid":
            check_error(vector, outcome.error)
        else:
            assert outcome.error is None
            assert outcome.events[-1]["value"] == vector.value


@of_kind("header")
def test_header(vector: Vector) -> None:
    for pieces in ([PREFACE + vector.data], bytewise(PREFACE + vector.data)):
        outcome = read(Context.from_json(vector.context).reader(), pieces)
        if vector.result == "invalid":
            check_error(vector, outcome.error)
            assert outcome.received == len(PREFACE) + HEADER_BYTES
        else:
            assert outcome.error is None
    if vector.result == "valid":
        header = decode_header(vector.data)
        numbers = {name: integer(number) for name, number in vector.value.items()}
        assert {name: getattr(header, name, numbers[name]) for name in numbers} == numbers
        packed = struct.pack("<HHHHQIIII", *(numbers.get(name, 0) for name in HEADER_FIELDS))
        assert packed == vector.data


@of_kind("preface")
def test_preface(vector: Vector) -> None:
    eof = vector.test.get("eof", False)
    for pieces in ([vector.data], bytewise(vector.data)):
        outcome = read(wire.FrameReader(), pieces, eof=eof)
        if vector.result == "valid":
            assert outcome.events == [{"event": "preface", **vector.value}]
            assert wire.encode_preface(**vector.value) == vector.data
            continue
        check_error(vector, outcome.error)
        assert outcome.events == []
    if "decided_by" in vector.test:  # [PRE-2], byte by byte
        assert outcome.received <= vector.decided_by


@of_kind("stream")
def test_stream(vector: Vector) -> None:
    """[FRM-13] [FRM-11] Whole and byte by byte."""
    for pieces in ([vector.data], bytewise(vector.data)):
        outcome = read(Context.from_json(vector.context).reader(), pieces, eof=vector.test.get("eof", False))
        if vector.result == "valid":
            assert outcome.error is None
            assert outcome.events == vector.value["events"]
        else:
            check_error(vector, outcome.error)
            assert len(outcome.events) - 1 == vector.accepted  # the preface is none of the frames


# ---- the vectors themselves ----


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", FILES)
def test_file_follows_the_schema(name: str) -> None:
    VALIDATOR.validate(FILES[name])
    tests = [test for group in FILES[name]["groups"] for test in group["tests"]]
    assert FILES[name]["numberOfTests"] == len(tests)
    assert {flag for test in tests for flag in test["flags"]} == FILES[name]["notes"].keys()


def test_vectors_are_current() -> None:
    """The committed files are those that the generator writes, and there are no others."""
    made = runpy.run_path(str(ROOT / "spec" / "vectors.py"))["outputs"]()
    assert {path.stem for path in made} == FILES.keys()
    stale = [path.name for path, text in made.items() if path.read_text(encoding="ascii") != text]
    assert not stale, "run python spec/vectors.py"


def test_the_generator_knows_nothing_of_the_code() -> None:
    allowed = {"vector_cases", "xxhash"}
    paths = [ROOT / "spec" / "vectors.py", *(ROOT / "spec" / "vector_cases").glob("*.py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name is not None
                assert not name.startswith("sterna"), path
                assert name.split(".")[0] in allowed | STANDARD, (path, name)


STANDARD = {
    "__future__",
    "collections",
    "dataclasses",
    "json",
    "pathlib",
    "struct",
    "sys",
    "tomllib",
    "typing",
    "zlib",
}


def test_ids_are_unique_and_of_their_file() -> None:
    assert [name for name, count in Counter(each.id for each in VECTORS).items() if count > 1] == []
    for name, file in FILES.items():
        for group in file["groups"]:
            assert all(re.fullmatch(rf"{name}/[a-z0-9-]+", test["id"]) for test in group["tests"])


def test_there_are_enough() -> None:
    results = Counter(each.result for each in VECTORS)
    assert sum(results.values()) >= 500
    assert min(results["valid"], results["invalid"]) >= 200


@pytest.mark.parametrize("frame", FrameType, ids=lambda frame: frame.name)
def test_every_frame_has_valid_and_invalid_vectors(frame: FrameType) -> None:
    results = {each.result for each in VECTORS if each.group.get("frame") == frame.name}
    assert results >= {"valid", "invalid"}


def test_clauses_and_codes_exist() -> None:
    codes = {code.name.lower() for code in ErrorCode}
    for each in VECTORS:
        assert each.clause in CLAUSES, each.id
        assert set(each.group["clauses"]) <= CLAUSES.keys(), each.id
        assert each.result == "valid" or each.error in codes, each.id


# ---- every negative clause ----

EXCUSED: dict[str, str] = runpy.run_path(str(ROOT / "spec" / "vector_cases" / "excused.py"))["EXCUSED"]


def negative() -> dict[str, set[str]]:
    """The clauses of chapters 2 to 7 whose arrow names codes, with these codes."""
    return {
        each.id: set(each.codes) for each in CLAUSES.values() if each.chapter in range(2, 8) and each.codes
    }


def enforced() -> set[str]:
    """The clauses that the code of sterna.wire names as broken: as strings, not in prose."""
    found: set[str] = set()
    for path in (ROOT / "protocol" / "sterna" / "wire").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in CLAUSES:
                found.add(node.value)
    return found


@pytest.mark.parametrize(("clause", "codes"), negative().items(), ids=negative())
def test_every_negative_clause_has_its_vectors(clause: str, codes: set[str]) -> None:
    found = {each.error for each in VECTORS if each.clause == clause and each.result == "invalid"}
    if clause in EXCUSED:
        assert not found, "excused, and has a vector"
    else:
        assert codes <= found, f"{clause} has no vector for {codes - found}"


def test_excuses_are_for_what_wire_does_not_enforce() -> None:
    assert EXCUSED.keys() <= negative().keys()
    # A text of more than 255 bytes can be refused where it is written; on the wire its length has no room.
    assert EXCUSED.keys() & enforced() == {"TXT-4"}


def test_every_clause_that_wire_enforces_has_a_vector() -> None:
    """Also those outside of chapters 2 to 7."""
    found = {each.clause for each in VECTORS if each.result == "invalid"}
    # Our own misuse of encode_grease, and which of the frames that have vectors a demand connection carries.
    assert enforced() - found - EXCUSED.keys() <= {"FRM-9", "PCY-27"}
