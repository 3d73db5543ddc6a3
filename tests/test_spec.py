"""The specification against itself, against the registry, and against the code that names its clauses."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import xxhash

import clauses
from sterna import limits
from sterna.core.deadlines import Deadlines
from sterna.core.session import PONGS_OWED_MAX
from sterna.limits import Limits
from sterna.registry import (
    ALPN,
    BitmapEncoding,
    Checksum,
    Encoding,
    ErrorCode,
    Feature,
    Mode,
    Owner,
    Phase,
    Style,
)
from sterna.wire import records as r
from sterna.wire.codec import encode_body
from sterna.wire.header import VERSION, encode_preface
from sterna.wire.pages import make_runs
from sterna.wire.rules import Bounds
from sterna.wire.writing import GREASE_BODY_BYTES, encode_frame

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "spec" / "protocol.md").read_text(encoding="utf-8")
REGISTRY = tomllib.loads((ROOT / "spec" / "registry.toml").read_text(encoding="utf-8"))

CLAUSES = clauses.load()
AREAS = {name[:3] for name in CLAUSES}
REFERENCE = re.compile(r"\b([A-Z]{3})-(\d+)\b")


def hexes(text: str) -> Iterator[bytes]:
    """The hex dumps in a part of the document, each fenced block as one."""
    for block in re.findall(r"```\n(.*?)```", text, re.DOTALL):
        if re.fullmatch(r"[0-9A-F]{2}(\s[0-9A-F]{2})*\s*", block):
            yield bytes.fromhex(block)


def section(heading: str) -> str:
    """The document from a heading to the next one of the same level."""
    level = heading.split(" ", maxsplit=1)[0]
    start = DOCUMENT.index(f"\n{heading}") + 1
    end = DOCUMENT.find(f"\n{level} ", start)
    return DOCUMENT[start : end if end >= 0 else None]


# ---- clauses ----


def test_clause_ids_are_well_formed_and_ascend() -> None:
    for area in AREAS:
        numbers = [int(name[4:]) for name in CLAUSES if name.startswith(area)]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("name", CLAUSES)
def test_clause_requires_something(name: str) -> None:
    assert CLAUSES[name].levels


@pytest.mark.parametrize("name", CLAUSES)
def test_clause_names_registered_codes(name: str) -> None:
    assert set(CLAUSES[name].codes) <= REGISTRY["errors"].keys()


def test_every_code_for_a_peer_has_its_clause() -> None:
    classes = {"misbehaved", "incompatible", "limit", "lifecycle"}
    codes = {name for name, row in REGISTRY["errors"].items() if row["class"] in classes}
    named = {code for clause in CLAUSES.values() for code in clause.codes}
    in_words = set(re.findall(r"`(\w+)`", " ".join(clause.text for clause in CLAUSES.values())))
    assert codes <= named | in_words


def sources() -> list[Path]:
    """What may name clauses: the document itself, the code, the tests."""
    folders = ("protocol", "interop", "fuzz", "tests")
    code = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [ROOT / "spec" / "protocol.md", *code]


def test_every_clause_that_is_named_exists() -> None:
    unknown = {
        f"{path.relative_to(ROOT)}: {area}-{number}"
        for path in sources()
        for area, number in REFERENCE.findall(path.read_text(encoding="utf-8"))
        if area in AREAS and f"{area}-{number}" not in CLAUSES
    }
    assert not unknown


def test_every_clause_argument_is_a_clause() -> None:
    """`clause="..."` in the code also names no unknown area."""
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in sources()[1:]
        if "protocol" in path.parts
        for name in re.findall(r'clause="([^"{]+)"', path.read_text(encoding="utf-8"))
    }
    assert not {(path, name) for path, name in named if name not in CLAUSES and not name.startswith("HOL-")}


# ---- registry and numbers ----


def test_generated_parts_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "spec" / "build.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_frame_has_its_section() -> None:
    titles = re.findall(r"^### 5\.\d+ (.*)$", DOCUMENT, re.MULTILINE)
    found = {name: int(number, 16) for name, number in re.findall(r"(\w+) \((0x\w{4})\)", " ".join(titles))}
    assert found == {name: row["type"] for name, row in REGISTRY["frames"].items()}


def test_every_number_in_the_text_is_the_code_s() -> None:
    for clause, number in [
        ("TXT-4", limits.TEXT_BYTES),
        ("FRM-8", limits.UNKNOWN_FRAMES_IN_A_ROW),
        ("FRM-9", GREASE_BODY_BYTES),
        ("HEL-2", limits.VERSIONS),
        ("HEL-3", limits.FEATURES),
        ("WEL-1", limits.FEATURES),
        ("HEL-4", limits.LIMITS),
        ("WEL-2", limits.LIMITS),
        ("REF-1", limits.REFUSE_ITEMS),
        ("GST-4", limits.GRANULE_MIN_LOG2),
        ("GST-4", limits.GRANULE_MAX_LOG2),
        ("GST-11", limits.CPU_FEATURES),
        ("GST-11", limits.NICS),
        ("GST-11", limits.DISKS),
        ("ACC-2", limits.STREAMS_MAX),
        ("RND-2", limits.STREAMS_MAX + 1),
        ("RAK-5", limits.REJECTED_FLOOR_PAGES),
        ("LIM-5", limits.HANDSHAKE_BODY_BYTES),
        ("LIM-7", limits.HANDSHAKE_BODY_BYTES),
        ("MEM-1", limits.CHUNK_BYTES),
        ("CON-79", PONGS_OWED_MAX),
    ]:
        assert re.search(rf"\b{number}\b", CLAUSES[clause].text), f"{clause} does not say {number}"
    assert limits.REJECTED_SHARE_MAX == 0.25  # "a quarter" in RAK-5


def test_suggested_deadlines_are_the_code_s() -> None:
    rows = dict(re.findall(r"^\| (.+?) \| (\d+) s", section("### 8.11 Time"), re.MULTILINE))
    ours = Deadlines()
    assert {int(seconds) for seconds in rows.values()} == {int(getattr(ours, f.name)) for f in fields(ours)}
    assert int(rows["heartbeat interval"]) == ours.heartbeat_s
    assert int(rows["silence limit"]) == ours.silence_s
    assert int(rows["stall limit"]) == ours.stall_s


# ---- layouts ----


def layouts() -> list[tuple[str, list[list[str]]]]:
    """Every layout table of chapters 3 to 5, with the heading above it."""
    found, heading = [], ""
    for block in re.split(r"\n\n+", DOCUMENT[DOCUMENT.index("\n## 3.") : DOCUMENT.index("\n## 6.")]):
        if block.lstrip("\n").startswith("#"):
            heading = block.strip()
        if block.startswith("| offset | size |"):
            rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()[2:]]
            found.append((heading, rows))
    return found


WIDTHS = {"u8": 1, "bool": 1, "u16": 2, "u32": 4, "u64": 8, "id": 16}


@pytest.mark.parametrize(("heading", "rows"), layouts())
def test_layout_has_no_gaps(heading: str, rows: list[list[str]]) -> None:
    at = 0
    for offset, size, *columns in rows:
        if offset:
            assert int(offset) == at, f"{heading}: {columns[0]}"
        for column in columns[:2] if heading.startswith("### 5.7") else columns[:1]:
            width = WIDTHS.get(column.split(" ")[0])
            assert width is None or str(width) == size, f"{heading}: {column}"
        if size.isdigit():
            at += int(size)
        elif " each" in size and not columns[1].startswith("as in"):
            assert sum(item_widths(columns[1])) == int(size.split(" ")[0]), f"{heading}: {columns[0]}"


def item_widths(description: str) -> list[int]:
    """Widths of the fields of a list's items, their offsets checked."""
    if not re.search(r"\b0: ", description):
        return [WIDTHS[word] for word in re.findall(r"\b(u\d+)\b", description)][:1]
    widths: list[int] = []
    for offset, kind, word in re.findall(r"(\d+): (\w+)(?: (res))?", description):
        assert int(offset) == sum(widths), description
        widths.append(int(kind) if word else WIDTHS[kind])
    return widths


RUNNER = r.Runner("", b"\x01" * 16)
BITMAP = (7, 0, 8, BitmapEncoding.PLAIN, b"\x00")

# One record for each layout table of chapter 5, in its order, as empty as it may be; and bytes of its lists.
EMPTIEST: list[tuple[r.Record, int]] = [
    (r.Hello(Mode.OPEN, (1,), (), {}, b"\x01" * 16, 0, RUNNER), 4),
    (r.Welcome(1, b"\x01" * 16, b"\x01" * 32, (), {}), 0),
    (r.Refuse(1), 0),
    (r.Guest("", 0, 1, 0, (r.Region(0, 0, 4096),)), 24),
    (r.Accept(0), 0),
    (r.Attach(b"\x01" * 16, b"\x01" * 32, 0, 0), 0),
    (r.Attached(0, 0, 0), 0),
    (r.DirtyBitmap(1, *BITMAP), 1),
    (r.Round(1, 1, 0), 0),
    (r.RoundEnd(1, 1, 0, 0), 0),
    (r.Pages(1, 1, 7, make_runs([(0, 1, Encoding.ZERO)], 12), np.empty(0, dtype=np.uint64)), 24),
    (r.RoundAck(1, 1, 0, 0), 0),
    (r.Switchover(1, Style.STOP_AND_COPY), 0),
    (r.NotReady(1, 1), 0),
    (r.State(1, 0, 0, 1, 1, 0, 1, 0, True, b"\x00"), 1),
    (r.Seal(1, Checksum.XXH3_128, bytes(16), bytes(16), 0, 0), 0),
    (r.Loaded(1, bytes(16)), 0),
    (r.Handover(1, 0), 0),
    (r.HandBack(1, RUNNER), 0),
    (r.Running(1, RUNNER), 0),
    (r.PageRequest(7, 0, 1), 0),
    (r.Abort(1, 0), 0),
    (r.Progress(Phase.ROUNDS, 0, 0, 0, 0, 0, 0, 0), 0),
    (r.Verdict(Owner.SOURCE, 1, RUNNER), 0),
]


def test_layouts_are_the_codec_s() -> None:
    """[FRM-1]"""
    tables = [rows for heading, rows in layouts() if heading.startswith("### 5.")]
    for (record, items), rows in zip(EMPTIEST, tables, strict=True):
        fixed = sum(int(size) for _, size, *_ in rows if size.isdigit())
        texts = sum(column.startswith("text ") for _, _, column, *_ in rows)
        assert len(encode_body(record, BOUNDS)) == fixed + texts + items, record.type.name


# ---- examples ----

BOUNDS = Bounds(regions={7: r.Region(7, 0, 20 * 4096)})

OLD = b"".join(bytes([page + 1]) * 4096 for page in range(17))
NEW = b"\xa5" * 4096


def example_digest() -> tuple[list[int], bytes, bytes]:
    """Section 10.4 again, from its words alone: hashes, hashed bytes, digest."""
    hashes = [xxhash.xxh3_64_intdigest(chunk) for chunk in (OLD[:65536], OLD[65536:], NEW)]
    entries = [(hashes[0], page) for page in range(16)] + [(hashes[1], 0)] + [(0, 0xFF)] * 3
    entries[3] = (hashes[2], 0)
    data = struct.pack("<IQ20Q20B", 7, 20, *(each[0] for each in entries), *(each[1] for each in entries))
    return hashes, data, xxhash.xxh3_128_digest(data)


def test_digest_example() -> None:
    """[MEM-1] [MEM-6] [MEM-13]"""
    text = section("### 10.4 Worked example")
    hashes, data, digest = example_digest()
    assert [int(number, 16) for number in re.findall(r"= ([0-9A-F]{16})$", text, re.MULTILINE)] == hashes
    assert f"{len(data)} bytes" in text
    head, tail, shown = hexes(text)
    assert data.startswith(head)
    assert data.endswith(tail)
    assert len(tail) == 20
    assert shown == digest


def example_state_digest() -> tuple[bytes, bytes]:
    """Section 10.5 again, from its words alone: hashed bytes, digest."""
    data = struct.pack("<HHIIIQ", 0, 2, 0, 1, 0, 8) + bytes(range(8))
    return data, xxhash.xxh3_128_digest(data)


def test_state_digest_example() -> None:
    """[MEM-18]"""
    text = section("### 10.5 The state digest")
    assert tuple(hexes(text)) == example_state_digest()
    assert f"These {len(example_state_digest()[0])} bytes" in text


def migration() -> list[tuple[str, int, r.Record, bytes]]:
    """Appendix A: sender, sequence number, record, bulk."""
    version = 1 << 16 | 1
    features = (Feature.STOP_AND_COPY, Feature.HASH_XXH3_64, Feature.ENCODING_ZERO)
    required = (True, True, False)
    offers = tuple(map(r.FeatureOffer, features, required))
    here, there = r.Runner("host-a", b"\x22" * 16), r.Runner("host-b", b"\x55" * 16)
    hashes, _, digest = example_digest()
    first = make_runs([(0, 17, Encoding.RAW), (17, 3, Encoding.ZERO)], 12)
    second = make_runs([(3, 1, Encoding.RAW)], 12)
    region = r.Region(7, 0, 20 * 4096)
    session: list[tuple[str, r.Record, bytes]] = [
        ("S", r.Hello(Mode.OPEN, (version,), offers, {}, b"\x11" * 16, 3, here, "a"), b""),
        (
            "D",
            r.Welcome(version, b"\x33" * 16, b"\x44" * 32, tuple(map(r.FeatureChoice, features)), {}, "b"),
            b"",
        ),
        ("S", r.Guest("example", 0, 1, 4096, (region,)), b""),
        ("D", r.Accept(20 * 4096), b""),
        ("S", r.Round(1, 1, 20), b""),
        ("S", r.Pages(1, 1, 7, first, np.array(hashes[:2], dtype=np.uint64)), OLD),
        ("S", r.RoundEnd(1, 1, 20, len(OLD), ((0, 3),)), b""),
        ("D", r.RoundAck(1, 1, 20, 0), b""),
        ("S", r.Switchover(1, Style.STOP_AND_COPY), b""),
        ("D", r.Ready(1), b""),
        ("S", r.Round(1, 2, 1), b""),
        ("S", r.Pages(1, 2, 7, second, np.array(hashes[2:], dtype=np.uint64)), NEW),
        ("S", r.RoundEnd(1, 2, 1, len(NEW), ((0, 7),)), b""),
        ("S", r.State(1, 0, 0, 2, 1, 0, 8, 0, True, bytes(range(8))), b""),
        ("S", r.Seal(1, Checksum.XXH3_128, digest, example_state_digest()[1], 1, 8, ((0, 7),)), b""),
        ("D", r.Loaded(1, digest), b""),
        ("S", r.Handover(1, 3), b""),
        ("D", r.Running(4, there), b""),
        ("D", r.Complete(4, digest), b""),
        ("S", r.Release(4), b""),
        ("S", r.Bye(), b""),
        ("D", r.Bye(), b""),
    ]
    count = {"S": -1, "D": -1}
    numbered = []
    for sender, record, bulk in session:
        count[sender] += 1
        numbered.append((sender, count[sender], record, bulk))
    return numbered


def encoded(sequence: int, record: r.Record, bulk: bytes) -> bytes:
    return b"".join(map(bytes, encode_frame(record, sequence, bulk=[bulk] if bulk else (), bounds=BOUNDS)))


def test_migration_example() -> None:
    """[HDR-1] [HDR-2] [HDR-6] [HDR-10]"""
    rows = []
    for sender, sequence, record, bulk in migration():
        frame = encoded(sequence, record, bulk)
        header = struct.unpack_from("<HHHHQIIII", frame)
        assert header[8] == zlib.crc32(frame[:28])
        assert header[7] == zlib.crc32(frame[32 : 32 + header[5]])
        assert len(frame) == 32 + header[5] + header[6]
        rows.append(
            (sender, str(header[4]), record.type.name, str(header[5]), str(header[6]), f"{header[7]:08X}")
        )
    text = section("## Appendix A.")
    shown = re.findall(
        r"^\| ([SD]) \| (\d+) \| (\w+) \| .*? ?\| (\d+) \| (\d+) \| ([0-9A-F]{8}) \|$", text, re.MULTILINE
    )
    assert shown == rows


def test_hex_examples() -> None:
    """[PRE-1] [PRE-2]"""
    preface, handover = hexes(section("## Appendix A."))
    assert preface == encode_preface()
    assert preface == struct.pack("<12sHH", b"\x89STERNA\r\n\x1a\n\0", 1, 1)
    head = struct.pack("<HHHHQIII", 0x8030, 0, 0, 0, 11, 16, 0, zlib.crc32(struct.pack("<IIQ", 1, 0, 3)))
    assert handover == head + struct.pack("<IIIQ", zlib.crc32(head), 1, 0, 3)
    assert handover == encoded(11, r.Handover(1, 3), b"")


def test_the_alpn_id_is_that_of_the_version() -> None:
    """[VRS-8] [VRS-1]"""
    protocol = REGISTRY["protocol"]
    assert protocol["alpn"] == f"{protocol['name']}/{protocol['major']}-draft.{protocol['draft']}" == ALPN
    assert protocol["major"] << 16 | protocol["draft"] == VERSION


def test_state_tables_are_of_both_roles() -> None:
    for role in ("source", "destination"):
        part = DOCUMENT.split(f"<!-- tables:{role} -->")[1].split("<!-- /tables -->")[0]
        assert "stateDiagram-v2" in part


def test_limits_are_those_of_the_registry() -> None:
    assert [f.name for f in fields(Limits)] == list(REGISTRY["limits"])
    assert {code.name.lower() for code in ErrorCode} == REGISTRY["errors"].keys()
