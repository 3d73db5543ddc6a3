"""ROUND, ROUND_END, ROUND_ACK, and the bitmaps HELD and DIRTY_BITMAP."""

from __future__ import annotations

import struct
from typing import Any, Final

from vector_cases.book import Group, derive
from vector_cases.layout import LAYOUTS, join, lay, plain

U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
PAGE_SPACE: Final = 2**52


def region(number: int, pages: int, granule_log2: int = 12, transfer: int = 0) -> dict[str, int]:
    """A region of a context, each at an address of its own."""
    return {
        "id": number,
        "granule_log2": granule_log2,
        "fault_granule_log2": granule_log2,
        "kind": 0,
        "transfer": transfer,
        "address": number << 56,
        "size_bytes": pages << granule_log2,
    }


_ROWS: Final = next(f for f in LAYOUTS["GUEST"] if f.name == "regions").items
# Region 5 is so large that no number of 32 bits holds its pages.
REGIONS: Final = [region(5, 1 << 36), region(7, 100), region(8, 20, 16), region(9, 20, 12, transfer=1)]
CONTEXT: Final[dict[str, Any]] = {"regions": [plain(_ROWS, row) for row in REGIONS]}
ANYWHERE: Final[dict[str, Any]] = {"regions": None}
UNHASHED: Final[dict[str, Any]] = {**CONTEXT, "unhashed": True}


def round_() -> list[Group]:
    """5.8."""
    group = Group("round", "body", "ROUND", ["RND-1"])
    base = {"attempt": 0x01020304, "round": 0x05060708, "pages": 0x1112131415161718}
    group.valid("basic", "an ordinary round", base)
    derive(group, base, extremes=["attempt", "pages"])
    for number in (1, U32_MAX):
        group.valid(
            f"round-{number}", f"round {number}", {**base, "round": number}, "Boundary", clause="RND-1"
        )
    group.wrong_value("round-0", "round 0", "RND-1", "bad_value", {**base, "round": 0}, "Boundary")
    body = join(lay("ROUND", {**base, "round": 0}))[:9]
    group.wrong(
        "round-before-cut", "round 0, in a body that ends behind it", "RND-1", "bad_value", body, "Order"
    )
    return [group]


def streams(group: Group, base: dict[str, Any], clause: str) -> None:
    """The rows of ROUND_END and SEAL: (stream, sequence)."""
    rows = [{"stream": number, "sequence": number * 3} for number in range(17)]
    group.valid("streams-0", "no row", {**base, "streams": []}, "Boundary", clause=clause)
    group.valid(
        "streams-17", "17 rows, streams 0 to 16", {**base, "streams": rows}, "Boundary", clause=clause
    )
    alone = [{"stream": 16, "sequence": U64_MAX}]
    group.valid(
        "stream-16",
        "stream 16 alone, with the largest number",
        {**base, "streams": alone},
        "Boundary",
        clause=clause,
    )
    for number in (17, 0x100, 0xFFFF):
        value = {**base, "streams": [{"stream": number, "sequence": 0}]}
        group.wrong_value(f"stream-{number}", f"stream {number}", clause, "bad_value", value, "Limit")
    for number in (18, 0xFFFF):
        group.wrong_value(
            f"stream-count-{number}",
            f"{number} rows",
            clause,
            "bad_value",
            base,
            "Limit",
            "Count",
            stream_count=number,
        )
    group.wrong_value(
        "stream-count-lies", "17 rows in a body of two", "FRM-12", "malformed", base, "Count", stream_count=17
    )
    for name, comment, numbers in (
        ("twice", "a stream twice", (1, 1)),
        ("descending", "streams in descending order", (2, 1)),
        ("descending-late", "the last two of four are out of order", (0, 1, 4, 3)),
    ):
        value = {**base, "streams": [{"stream": number, "sequence": 1} for number in numbers]}
        group.wrong_value(f"streams-{name}", comment, "FRM-16", "bad_value", value, "Duplicate")


def round_end() -> list[Group]:
    """5.9."""
    group = Group("round-end", "body", "ROUND_END", ["RND-1", "RND-2", "FRM-16"])
    base = {
        "attempt": 0x01020304,
        "round": 0x05060708,
        "pages": 0x1112131415161718,
        "bulk_bytes": 0x2122232425262728,
        "streams": [{"stream": 0, "sequence": 0x3132333435363738}, {"stream": 16, "sequence": 2}],
    }
    group.valid("basic", "the end of an ordinary round", base)
    derive(group, base, extremes=["attempt", "pages", "bulk_bytes"])
    for number in (1, U32_MAX):
        group.valid(
            f"round-{number}", f"round {number}", {**base, "round": number}, "Boundary", clause="RND-1"
        )
    group.wrong_value("round-0", "round 0", "RND-1", "bad_value", {**base, "round": 0}, "Boundary")
    streams(group, base, "RND-2")
    value = {**base, "streams": [{"stream": 17, "sequence": 0}, {"stream": 1, "sequence": 0}]}
    comment = "3 rows in the bytes of 2, of which the first is wrong: the count comes before its items"
    group.wrong_value("count-before-items", comment, "FRM-12", "malformed", value, "Order", stream_count=3)
    return [group]


def _range(number: int, first: int, count: int) -> dict[str, int]:
    return {"region": number, "first": first, "count": count}


def round_ack() -> list[Group]:
    """5.11."""
    group = Group("round-ack", "body", "ROUND_ACK", ["RAK-1", "RAK-2", "RAK-3", "FRM-17", "FRM-18"], CONTEXT)
    base: dict[str, Any] = {
        "attempt": 0x01020304,
        "round": 0x05060708,
        "pages": 0x1112131415161718,
        "receive_rate_bytes_s": 0x2122232425262728,
        "rejected": [_range(5, 0x0807060504, 0x0102030405), _range(7, 10, 3)],
    }
    group.valid("basic", "an answer that rejects two ranges", base)
    derive(group, base, extremes=["attempt", "pages", "receive_rate_bytes_s"])
    for number in (1, U32_MAX):
        group.valid(
            f"round-{number}", f"round {number}", {**base, "round": number}, "Boundary", clause="RAK-1"
        )
    group.wrong_value("round-0", "round 0", "RAK-1", "bad_value", {**base, "round": 0}, "Boundary")

    def rejects(*ranges: tuple[int, int, int]) -> dict[str, Any]:
        return {**base, "rejected": [_range(*each) for each in ranges]}

    group.valid("rejected-0", "nothing is rejected", rejects(), "Boundary", clause="RAK-2")
    group.valid("whole-region", "all of a region", rejects((7, 0, 100)), "Boundary", clause="FRM-18")
    group.valid("last-page", "the last page of a region", rejects((7, 99, 1)), "Boundary", clause="FRM-18")
    touching = rejects((5, 0, 5), (5, 5, 1), (7, 0, 6), (7, 6, 1))
    group.valid("touching", "ranges that touch, in two regions", touching, "Boundary", clause="RAK-3")
    for name, comment, clause, ranges in (
        ("empty-range", "a range of no pages", "FRM-17", [(7, 10, 0)]),
        ("range-beyond", "a range that ends behind page 2^52", "FRM-17", [(5, PAGE_SPACE, 1)]),
        ("range-wraps", "first and count whose sum wraps to 0", "FRM-17", [(7, U64_MAX, 1)]),
        (
            "range-wraps-far",
            "first and count whose sum wraps into the region",
            "FRM-17",
            [(7, 10, U64_MAX - 4)],
        ),
    ):
        group.wrong_value(name, comment, clause, "bad_value", rejects(*ranges), "Runs")
    for name, comment, ranges in (
        ("region-unknown", "a region that is not in GUEST", [(6, 0, 1)]),
        ("behind-region", "the page behind a region", [(7, 100, 1)]),
        ("leaves-region", "a range that begins inside of its region and ends outside", [(7, 99, 2)]),
    ):
        group.wrong_value(name, comment, "FRM-18", "outside_region", rejects(*ranges), "Region")
    for name, comment, ranges in (
        ("same", "a range twice", [(7, 10, 3), (7, 10, 3)]),
        ("overlap", "ranges that share a page", [(7, 10, 3), (7, 12, 1)]),
        ("descending", "ranges in descending order", [(7, 20, 1), (7, 10, 1)]),
        ("regions-descending", "regions in descending order", [(7, 10, 1), (5, 10, 1)]),
        ("overlap-last", "the last two of three share a page", [(5, 1, 1), (7, 10, 3), (7, 11, 1)]),
    ):
        group.wrong_value(name, comment, "RAK-3", "overlapping_runs", rejects(*ranges), "Runs")
    group.wrong_value(
        "count-4097",
        "4097 ranges; the default limit is 4096",
        "RAK-2",
        "limit_rejected",
        base,
        "Limit",
        rejected_count=4097,
    )
    group.wrong_value(
        "count-max",
        "2^32 - 1 ranges",
        "RAK-2",
        "limit_rejected",
        base,
        "Limit",
        "Count",
        rejected_count=U32_MAX,
    )
    group.wrong_value(
        "count-lies",
        "4096 ranges in a body of two",
        "FRM-12",
        "malformed",
        base,
        "Count",
        rejected_count=4096,
    )
    value = rejects((7, 0, 0), (7, 1, 1))
    comment = "3 ranges in the bytes of 2, of which the first is wrong: the count comes before its items"
    group.wrong_value("count-before-items", comment, "FRM-12", "malformed", value, "Order", rejected_count=3)
    comment = "an empty range in a region that is not in GUEST"
    group.wrong_value("range-before-region", comment, "FRM-17", "bad_value", rejects((6, 0, 0)), "Order")
    comment = "a range outside of its region, in a list that is out of order"
    group.wrong_value(
        "item-before-list", comment, "FRM-18", "outside_region", rejects((7, 20, 1), (7, 10, 200)), "Order"
    )
    comment = "ranges out of order, and bytes behind the end"
    body = join(lay("ROUND_ACK", rejects((7, 20, 1), (7, 10, 1)))) + b"\0"
    group.wrong("list-before-trailing", comment, "RAK-3", "overlapping_runs", body, "Order")
    small = Group("round-ack", "body", "ROUND_ACK", ["RAK-2"], {**CONTEXT, "limits": {"rejected_runs": 2}})
    small.valid("limit-2", "as many ranges as announced", base, "Boundary", clause="RAK-2")
    value = rejects((7, 0, 1), (7, 2, 1), (7, 4, 1))
    small.wrong_value("limit-3", "a range more than announced", "RAK-2", "limit_rejected", value, "Limit")
    bare = Group("round-ack", "body", "ROUND_ACK", ["RAK-6"], UNHASHED)
    comment = "nothing is rejected, without hashes"
    bare.valid("unhashed-rejected-0", comment, rejects(), "OptionalFeature", clause="RAK-6")
    comment = "a page is rejected, without hashes"
    value = rejects((7, 10, 1))
    bare.wrong_value("unhashed-rejected-1", comment, "RAK-6", "bad_value", value, "OptionalFeature")
    return [group, small, bare]


def _runs(*runs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", *run) for run in runs)


def bitmaps() -> list[Group]:
    """5.7: HELD and DIRTY_BITMAP."""
    groups = []
    for frame, first in (("HELD", "round"), ("DIRTY_BITMAP", "attempt")):
        file = frame.lower().replace("_", "-")
        clauses = [*(f"BMP-{number}" for number in range(1, 7)), "FRM-18"]
        base: dict[str, Any] = {
            first: 0x01020304,
            "region": 7,
            "encoding": 0,
            "first": 40,
            "bits": 20,
            "data": b"\x81\x42\x0f",
        }
        if frame == "HELD":
            base["rejected"] = False
        group = Group(file, "body", frame, clauses, CONTEXT)
        group.valid("basic", "pages 40, 47, 49, 54 and 56 to 59", base)
        group.valid(
            "basic-runs",
            "the same as runs",
            {**base, "encoding": 1, "data": _runs((0, 1), (7, 1), (9, 1), (14, 1), (16, 4))},
        )
        if frame == "HELD":
            group.valid("rejected", "pages that were rejected", {**base, "rejected": True}, clause="FRM-5")
        derive(group, base, extremes=[first])
        _plain_bitmaps(group, base)
        _run_bitmaps(group, {**base, "encoding": 1})
        anywhere = Group(file, "body", frame, ["BMP-1", "BMP-5"], ANYWHERE)
        _far_bitmaps(anywhere, {**base, "encoding": 1})
        groups += [group, anywhere]
        if frame == "HELD":
            groups.append(_held_unhashed(base))
    return groups


def _held_unhashed(base: dict[str, Any]) -> Group:
    """HELD where `unhashed` was selected: no page is rejected."""
    group = Group("held", "body", "HELD", ["BMP-9"], UNHASHED)
    comment = "pages that were applied, without hashes"
    group.valid("unhashed-applied", comment, base, clause="BMP-9")
    comment, value = "pages that were rejected, without hashes", {**base, "rejected": True}
    group.wrong_value("unhashed-rejected", comment, "BMP-9", "bad_value", value)
    return group


def _plain_bitmaps(group: Group, base: dict[str, Any]) -> None:
    for bits, data in ((1, b"\1"), (7, b"\x7f"), (8, b"\xff"), (9, b"\0\1"), (16, b"\0\x80"), (60, bytes(8))):
        value = {**base, "bits": bits, "data": data}
        group.valid(f"bits-{bits}", f"{bits} bits", value, "Boundary", clause="BMP-2")
    whole = {**base, "first": 0, "bits": 100, "data": b"\xff" * 12 + b"\x0f"}
    group.valid("whole-region", "every page of a region", whole, "Boundary", clause="FRM-18")
    empty = {**base, "bits": 0, "data": b""}
    group.wrong_value("bits-0", "a bitmap of no bits", "BMP-1", "bad_value", empty, "Bitmap")
    for name, comment, bits, data in (
        ("short", "a byte too few", 20, b"\x81\x42"),
        ("long", "a byte too many, zero", 20, b"\x81\x42\x0f\0"),
        ("rounded-up", "a whole word for 20 bits", 20, b"\x81\x42\x0f\0\0\0\0\0"),
        ("none", "no bytes for 20 bits", 20, b""),
        ("rounded-down", "bits div 8 bytes", 9, b"\xff"),
        ("next", "bits div 8 + 1 bytes", 16, b"\xff\xff\0"),
    ):
        group.wrong_value(
            f"data-{name}", comment, "BMP-2", "bad_value", {**base, "bits": bits, "data": data}, "Bitmap"
        )
    for bits in range(1, 8):
        value = {**base, "bits": 8 + bits, "data": bytes([0xFF, 1 << bits])}
        comment = f"the bit behind the last of {8 + bits} is set"
        group.wrong_value(
            f"bit-behind-{bits}", comment, "BMP-3", "trailing_bytes", value, "Trailing", "Bitmap"
        )
    value = {**base, "data": b"\x81\x42\x8f"}
    group.wrong_value(
        "top-bit",
        "the last byte's highest bit is set",
        "BMP-3",
        "trailing_bytes",
        value,
        "Trailing",
        "Bitmap",
    )
    for name, comment, first, bits in (
        ("leaves-region", "the last bit is the page behind the region", 81, 20),
        ("behind-region", "the first bit is the page behind the region", 100, 20),
    ):
        value = {**base, "first": first, "bits": bits}
        group.wrong_value(name, comment, "FRM-18", "outside_region", value, "Region")
    group.wrong_value(
        "region-unknown",
        "a region that is not in GUEST",
        "FRM-18",
        "outside_region",
        {**base, "region": 6},
        "Region",
    )
    for name, comment, changes in (
        ("beyond", "a bitmap that ends behind page 2^52", {"first": PAGE_SPACE - 19}),
        ("wraps", "first and bits whose sum wraps to a small number", {"first": U64_MAX - 10}),
        (
            "bits-max",
            "2^64 - 1 bits, whose length in bytes is 0 if bits + 7 wraps",
            {"bits": U64_MAX, "data": b""},
        ),
    ):
        group.wrong_value(name, comment, "BMP-1", "bad_value", {**base, **changes}, "Bitmap")
    count = {"data_bytes": U32_MAX}
    group.wrong_value(
        "data-bytes-max", "data_bytes is 2^32 - 1", "FRM-12", "malformed", base, "Count", **count
    )
    comment = "the last byte of the data is missing"
    group.wrong_value("data-bytes-more", comment, "FRM-12", "malformed", base, "Count", data_bytes=4)
    comment = "data_bytes is less than what comes"
    group.wrong_value(
        "data-bytes-less", comment, "FRM-2", "trailing_bytes", base, "Count", "Trailing", data_bytes=2
    )
    comment = "an empty bitmap outside of its region"
    value = {**base, "region": 6, "bits": 0, "data": b""}
    group.wrong_value("bits-before-region", comment, "BMP-1", "bad_value", value, "Order")
    comment = "a bit behind the last one, in a region that is not in GUEST"
    value = {**base, "region": 6, "data": b"\x81\x42\x1f"}
    group.wrong_value("bit-before-region", comment, "BMP-3", "trailing_bytes", value, "Order")
    comment = "an unknown encoding, and no bits"
    group.wrong_value(
        "encoding-before-bits", comment, "FRM-4", "bad_value", {**base, "encoding": 7, "bits": 0}, "Order"
    )


def _run_bitmaps(group: Group, base: dict[str, Any]) -> None:
    def runs(*pairs: tuple[int, int]) -> dict[str, Any]:
        return {**base, "data": _runs(*pairs)}

    group.valid("runs-none", "no run: no page", runs(), "Boundary", clause="BMP-4")
    group.valid("runs-all", "one run of all bits", runs((0, 20)), "Boundary", clause="BMP-5")
    group.valid("runs-last", "a run of the last bit", runs((19, 1)), "Boundary", clause="BMP-5")
    group.valid(
        "runs-touching", "runs that touch", runs((0, 5), (5, 5), (10, 10)), "Boundary", clause="BMP-6"
    )
    for size in (1, 8, 15, 17, 24, 31):
        value = {**base, "data": (_runs((0, 1), (2, 1)) + bytes(8))[:size]}
        group.wrong_value(
            f"runs-{size}-bytes", f"{size} bytes of runs", "BMP-4", "bad_value", value, "Bitmap"
        )
    for name, comment, pairs in (
        ("empty", "a run of no bits", [(3, 0)]),
        ("empty-second", "a run of no bits between others", [(3, 1), (5, 0), (6, 1)]),
        ("leaves", "a run that ends behind the last bit", [(19, 2)]),
        ("behind", "a run behind the last bit", [(20, 1)]),
        ("wraps", "start and count whose sum wraps to 0", [(U64_MAX, 1)]),
        ("wraps-far", "start and count whose sum wraps into the bitmap", [(10, U64_MAX)]),
    ):
        group.wrong_value(f"runs-{name}", comment, "BMP-5", "bad_value", runs(*pairs), "Bitmap", "Runs")
    for name, comment, pairs in (
        ("same", "a run twice", [(3, 2), (3, 2)]),
        ("overlap", "runs that share a bit", [(3, 3), (5, 1)]),
        ("descending", "runs in descending order", [(9, 1), (3, 1)]),
        ("inside", "a run inside of another", [(3, 9), (5, 1)]),
        ("overlap-last", "the last two of three share a bit", [(0, 1), (3, 3), (5, 2)]),
    ):
        group.wrong_value(
            f"runs-{name}", comment, "BMP-6", "overlapping_runs", runs(*pairs), "Bitmap", "Runs"
        )
    comment = "a run that leaves the bitmap, in runs out of order"
    group.wrong_value(
        "runs-inside-before-order", comment, "BMP-5", "bad_value", runs((9, 1), (3, 99)), "Order"
    )


def _far_bitmaps(group: Group, base: dict[str, Any]) -> None:
    """Before GUEST nothing is known of regions, and the address space is the bound."""
    value = {**base, "region": 2**32 - 1, "first": PAGE_SPACE - 20, "data": _runs((19, 1))}
    group.valid("last-page", "the last page of the address space", value, "Boundary", clause="BMP-1")
    value = {**base, "first": 0, "bits": PAGE_SPACE, "data": _runs((0, PAGE_SPACE))}
    group.valid("address-space", "all pages of the address space", value, "Boundary", clause="BMP-1")
    value = {**base, "first": 1, "bits": PAGE_SPACE, "data": _runs((0, 1))}
    group.wrong_value("address-space-1", "one page more", "BMP-1", "bad_value", value, "Bitmap")
