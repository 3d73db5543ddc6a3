"""PAGES: its table. Whole frames with their bulk part are in batches.py."""

from __future__ import annotations

from typing import Any, Final

from vector_cases.book import Group, derive
from vector_cases.layout import join, lay
from vector_cases.rounds import CONTEXT

RAW, ZERO, ZSTD, DELTA, ABSENT = range(5)
PAGE: Final = 4096
BLANKS: Final = 64 * 4096  # pages of 4 KiB without bytes in a table, with the default limit
CHUNK: Final = 65536
U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1

Run = tuple[int, int, int, int]  # first, count, size_bytes, encoding


def table(*runs: Run, hashes: int | list[int] = 0, region: int = 7) -> dict[str, Any]:
    """A page table; hashes are any numbers unless given."""
    listed = (
        [0x9E3779B97F4A7C15 * (n + 1) % 2**64 for n in range(hashes)] if isinstance(hashes, int) else hashes
    )
    rows = [dict(zip(("first", "count", "size_bytes", "encoding"), run, strict=True)) for run in runs]
    return {"attempt": 0x01020304, "round": 0x05060708, "region": region, "runs": rows, "hashes": listed}


def raw(first: int, count: int, granule_log2: int = 12) -> Run:
    """A run that carries its pages' bytes."""
    return first, count, count << granule_log2, RAW


def zero(first: int, count: int) -> Run:
    """A run of zeros."""
    return first, count, 0, ZERO


def pages() -> list[Group]:
    """5.10."""
    clauses = ["PGS-1", *(f"PGS-{number}" for number in range(2, 13)), "PGS-21", "PGS-24"]
    group = Group("pages", "body", "PAGES", clauses, {**CONTEXT, "encodings": [RAW, ZERO]})
    base = table(raw(2, 1), zero(5, 3), hashes=1)
    group.valid("basic", "a page with its bytes and three of zeros", base, clause="PGS-8")
    derive(group, base, extremes=["attempt", "round"])
    _valid(group)
    _runs(group)
    _sizes(group)
    _order(group)
    small = Group(
        "pages",
        "body",
        "PAGES",
        ["PGS-5", "PGS-21", "PGS-24"],
        {**CONTEXT, "encodings": [RAW, ZERO], "limits": {"batch_runs": 2, "bulk_bytes": 4 * PAGE}},
    )
    _limits(small)
    early = Group("pages", "body", "PAGES", ["PGS-1"], {"regions": None, "encodings": [RAW, ZERO]})
    early.wrong_value(
        "before-guest", "pages before GUEST and ACCEPT", "PGS-1", "unexpected_frame", base, "CrossField"
    )
    early.wrong_value(
        "before-guest-empty",
        "a run without pages, before GUEST: what concerns the table is checked behind its last field",
        "PGS-6",
        "bad_value",
        table(zero(0, 0)),
        "Order",
    )
    plain_only = Group("pages", "body", "PAGES", ["PGS-9"], {**CONTEXT, "encodings": [RAW]})
    plain_only.valid("raw-only", "raw needs no feature", table(raw(0, 1), hashes=1), clause="PGS-9")
    plain_only.wrong_value(
        "zero-not-selected",
        "zeros, where encoding_zero was not selected",
        "PGS-9",
        "not_selected",
        base,
        "NotSelected",
    )
    every = Group(
        "pages",
        "body",
        "PAGES",
        ["PGS-9", "PGS-11", "PGS-12", "PGS-18"],
        {**CONTEXT, "encodings": [RAW, ZERO, ZSTD, DELTA, ABSENT], "limits": {"expansion": PAGE // 2}},
    )
    _optional_encodings(every)
    _absent(every)
    return [group, small, early, plain_only, every, _without_hashes()]


def _valid(group: Group) -> None:
    for name, comment, value, clause in (
        ("one-zero", "one page of zeros", table(zero(0, 1)), "PGS-4"),
        ("last-page", "the last page of the region", table(zero(99, 1)), "PGS-7"),
        ("whole-region", "all pages of the region", table(zero(0, 100)), "PGS-7"),
        ("touching", "runs that touch", table(raw(0, 2), zero(2, 2), raw(4, 1), hashes=2), "PGS-8"),
        ("same-encoding", "runs that touch and could be one", table(zero(0, 1), zero(1, 1)), "PGS-8"),
        ("chunk-16", "16 pages of 4 KiB: one chunk", table(raw(0, 16), hashes=1), "PGS-12"),
        ("chunk-17", "17 pages of 4 KiB: a chunk, and a shorter one", table(raw(0, 17), hashes=2), "PGS-12"),
        (
            "chunk-each-run",
            "chunks begin anew with each run",
            table(raw(0, 1), raw(1, 1), hashes=2),
            "PGS-12",
        ),
        (
            "granule-16",
            "20 pages of 64 KiB: a chunk each",
            table(raw(0, 20, 16), hashes=20, region=8),
            "PGS-12",
        ),
        (
            "far",
            "a page whose number has more than 32 bits",
            table(raw(2**35 + 5, 1), hashes=1, region=5),
            "PGS-7",
        ),
        ("runs-64", "64 runs", table(*(zero(n, 1) for n in range(64))), "PGS-8"),
        ("runs-65", "65 runs", table(*(zero(n, 1) for n in range(65))), "PGS-8"),
        ("runs-100", "every page a run of its own", table(*(zero(n, 1) for n in range(100))), "PGS-8"),
        ("hash-extremes", "hashes of 0 and of 2^64 - 1", table(raw(0, 17), hashes=[0, U64_MAX]), "PGS-12"),
        (
            "bulk-limit",
            "64 times 4096 pages of 4 KiB: 64 times the default limit",
            table(zero(0, BLANKS), region=5),
            "PGS-24",
        ),
    ):
        group.valid(name, comment, value, "Boundary", clause=clause)


def _runs(group: Group) -> None:
    def wrong(name: str, comment: str, clause: str, error: str, value: dict[str, Any], *flags: str) -> None:
        group.wrong_value(name, comment, clause, error, value, *(flags or ("Runs",)))

    wrong(
        "region-unknown",
        "a region that is not in GUEST",
        "PGS-2",
        "outside_region",
        table(zero(0, 1), region=6),
        "Region",
    )
    wrong(
        "region-shared",
        "a region that both hosts map",
        "PGS-3",
        "bad_value",
        table(zero(0, 1), region=9),
        "Region",
    )
    wrong("runs-0", "no run", "PGS-4", "bad_value", table(), "Boundary")
    wrong("run-empty", "a run of no pages", "PGS-6", "bad_value", table(zero(0, 0)))
    wrong("run-empty-raw", "a run of no pages and no bytes", "PGS-6", "bad_value", table(raw(0, 0)))
    wrong("run-empty-last", "the last run has no pages", "PGS-6", "bad_value", table(zero(0, 1), zero(1, 0)))
    for name, comment, run in (
        ("behind-region", "the page behind the region", zero(100, 1)),
        ("leaves-region", "a run that begins inside of the region and ends outside", zero(99, 2)),
        ("count-max", "2^32 - 1 pages", zero(0, U32_MAX)),
        ("first-max", "first is 2^64 - 1: with count 1 the sum wraps to 0", zero(U64_MAX, 1)),
        ("wraps-inside", "first and count whose sum wraps into the region", zero(U64_MAX - 4, 10)),
        ("first-2-52", "first is 2^52: as an address it wraps to 0", zero(2**52, 1)),
        ("first-2-63", "first is 2^63: negative if it were signed", zero(2**63, 1)),
    ):
        wrong(name, comment, "PGS-7", "outside_region", table(run), "Region", "Runs")
    many = table(*(zero(n, 1) for n in range(70)), zero(99, 2))
    wrong(
        "leaves-region-late",
        "the last of 71 runs leaves the region",
        "PGS-7",
        "outside_region",
        many,
        "Region",
        "Runs",
    )
    for name, comment, runs in (
        ("same", "a run twice", (zero(4, 1), zero(4, 1))),
        ("overlap", "runs that share a page", (zero(4, 3), zero(6, 1))),
        ("descending", "runs in descending order", (zero(6, 1), zero(4, 1))),
        ("inside", "a run inside of another", (zero(4, 9), zero(6, 1))),
        ("overlap-last", "the last two of three share a page", (zero(0, 1), zero(4, 3), zero(6, 2))),
        (
            "overlap-late",
            "the last two of 71 share a page",
            (*(zero(n, 1) for n in range(69)), zero(70, 3), zero(72, 1)),
        ),
    ):
        wrong(f"runs-{name}", comment, "PGS-8", "overlapping_runs", table(*runs))
    for number, word in ((ZSTD, "zstd"), (DELTA, "delta")):
        value = table((0, 1, 100, number), hashes=1)
        wrong(
            f"{word}-not-selected",
            f"{word}, which was not selected",
            "PGS-9",
            "not_selected",
            value,
            "NotSelected",
        )
    wrong(
        "absent-not-selected",
        "absent, which was not selected",
        "PGS-9",
        "not_selected",
        table((0, 1, 0, ABSENT)),
        "NotSelected",
    )
    for number in (16385, U32_MAX):
        group.wrong_value(
            f"run-count-{number}",
            f"{number} runs; the default limit is 16384",
            "PGS-5",
            "limit_runs",
            table(zero(0, 1)),
            "Limit",
            "Count",
            run_count=number,
        )
    group.wrong_value(
        "run-count-lies",
        "16384 runs in a body of one",
        "FRM-12",
        "malformed",
        table(zero(0, 1)),
        "Count",
        run_count=16384,
    )
    group.wrong_value(
        "hash-count-max",
        "2^32 - 1 hashes",
        "FRM-12",
        "malformed",
        table(raw(0, 1), hashes=1),
        "Count",
        hash_count=U32_MAX,
    )
    group.wrong_value(
        "hash-count-wraps",
        "2^29 hashes: their bytes wrap to 0 in 32 bits",
        "FRM-12",
        "malformed",
        table(zero(0, 1)),
        "Count",
        hash_count=2**29,
    )
    group.wrong_value(
        "hash-count-less",
        "a hash that is not counted",
        "FRM-2",
        "trailing_bytes",
        table(raw(0, 1), hashes=1),
        "Count",
        "Trailing",
        hash_count=0,
    )


def _sizes(group: Group) -> None:
    for name, comment, run in (
        ("raw-short", "a page of 4095 bytes", (0, 1, PAGE - 1, RAW)),
        ("raw-long", "a page of 4097 bytes", (0, 1, PAGE + 1, RAW)),
        ("raw-none", "a page without bytes", (0, 1, 0, RAW)),
        ("raw-one-of-two", "two pages with the bytes of one", (0, 2, PAGE, RAW)),
    ):
        group.wrong_value(name, comment, "PGS-10", "bad_value", table(run, hashes=1), "Runs")
    wraps = table((0, 2**20, 0, RAW), hashes=0, region=5)
    group.wrong_value(
        "raw-wraps", "2^20 pages: their 2^32 bytes are 0 in 32 bits", "PGS-10", "bad_value", wraps, "Runs"
    )
    value = table((0, 1, PAGE, RAW), hashes=1, region=8)
    group.wrong_value(
        "raw-other-granule", "4 KiB in a region of 64 KiB granules", "PGS-10", "bad_value", value, "Runs"
    )
    group.wrong_value(
        "zero-sized", "zeros with bytes", "PGS-11", "bad_value", table((0, 1, PAGE, ZERO)), "Runs"
    )
    group.wrong_value(
        "zero-sized-1", "zeros with one byte", "PGS-11", "bad_value", table((0, 1, 1, ZERO)), "Runs"
    )
    for name, comment, value in (
        ("hashes-none", "a page without its hash", table(raw(0, 1))),
        ("hashes-more", "a hash too many", table(raw(0, 1), hashes=2)),
        ("hashes-page", "a hash for each page of a chunk", table(raw(0, 2), hashes=2)),
        ("hashes-zero", "a hash for zeros", table(zero(0, 1), hashes=1)),
        ("hashes-joined", "one hash over two runs", table(raw(0, 1), raw(1, 1), hashes=1)),
        ("hashes-short-chunk", "no hash for a chunk that is shorter", table(raw(0, 17), hashes=1)),
    ):
        group.wrong_value(name, comment, "PGS-12", "count_mismatch", value, "Count")
    value = table(zero(0, BLANKS + 1), region=5)
    group.wrong_value(
        "bulk-limit-zero",
        "a GiB and a page of zeros; the default limit is 16 MiB, 64 times",
        "PGS-24",
        "limit_bulk",
        value,
        "Limit",
    )
    value = table(zero(0, U32_MAX), region=5)
    group.wrong_value(
        "bulk-limit-bomb", "48 bytes that stand for 16 TiB of zeros", "PGS-24", "limit_bulk", value, "Limit"
    )
    value = table(*(zero(n << 20, 1 << 20) for n in range(16)), region=5)
    group.wrong_value(
        "bulk-limit-sum", "16 runs that together stand for 64 GiB", "PGS-24", "limit_bulk", value, "Limit"
    )


def _order(group: Group) -> None:
    """HDR-11 and 5.10: what is named of several faults."""
    cases: tuple[tuple[str, str, str, str, dict[str, Any]], ...] = (
        (
            "field-before-table",
            "an empty run, in a region that is not in GUEST",
            "PGS-6",
            "bad_value",
            table(zero(0, 0), region=6),
        ),
        (
            "encoding-before-table",
            "an unknown encoding, behind the region's end",
            "FRM-4",
            "bad_value",
            table((200, 1, 0, 9)),
        ),
        (
            "region-before-runs",
            "a region that is not copied, and a run outside of it",
            "PGS-3",
            "bad_value",
            table(zero(99, 1), region=9),
        ),
        (
            "inside-before-order",
            "runs out of order, of which one is outside",
            "PGS-7",
            "outside_region",
            table(zero(100, 1), zero(4, 1)),
        ),
        (
            "order-before-selected",
            "runs out of order, of an encoding that was not selected",
            "PGS-8",
            "overlapping_runs",
            table((6, 1, 0, ABSENT), zero(4, 1)),
        ),
        (
            "selected-before-size",
            "zstd that was not selected, of no bytes",
            "PGS-9",
            "not_selected",
            table((0, 1, 0, ZSTD)),
        ),
        (
            "raw-before-zero",
            "zeros with bytes, before a raw run without",
            "PGS-10",
            "bad_value",
            table((0, 1, 5, ZERO), (1, 1, 0, RAW), hashes=1),
        ),
        (
            "size-before-limit",
            "zeros with bytes, too many pages",
            "PGS-11",
            "bad_value",
            table((0, 1 << 20, 5, ZERO), region=5),
        ),
        (
            "limit-before-hashes",
            "too many pages, and a hash too many",
            "PGS-24",
            "limit_bulk",
            table(zero(0, 1 << 20), hashes=1, region=5),
        ),
    )
    for name, comment, clause, error, value in cases:
        group.wrong_value(name, comment, clause, error, value, "Order")
    value = table(zero(0, 0), zero(1, 1))
    comment = "3 runs in the bytes of 2, of which the first is empty: the count comes before its items"
    group.wrong_value("count-before-items", comment, "FRM-12", "malformed", value, "Order", run_count=3)
    comment = "an empty run, and fewer hashes than counted: fields come in their order"
    group.wrong_value("items-before-hashes", comment, "PGS-6", "bad_value", value, "Order", hash_count=9)
    body = join(lay("PAGES", table(zero(100, 1))))
    comment = "a run outside of its region, and bytes behind the end"
    group.wrong("trailing-before-table", comment, "FRM-2", "trailing_bytes", body + b"\0", "Order")
    group.wrong(
        "count-before-cut",
        "no run, in a head that ends behind run_count",
        "PGS-4",
        "bad_value",
        bytes(16),
        "Order",
    )


def _limits(group: Group) -> None:
    group.valid(
        "limit-runs-2", "as many runs as announced", table(zero(0, 1), zero(2, 1)), "Boundary", clause="PGS-5"
    )
    value = table(zero(0, 1), zero(2, 1), zero(4, 1))
    group.wrong_value("limit-runs-3", "a run more than announced", "PGS-5", "limit_runs", value, "Limit")
    group.valid(
        "limit-bulk-raw",
        "as many bytes as announced",
        table(raw(0, 4), hashes=1),
        "Boundary",
        clause="PGS-21",
    )
    group.valid(
        "limit-bulk-zero",
        "64 times as many bytes of zeros as announced",
        table(zero(0, 256), region=5),
        "Boundary",
        clause="PGS-24",
    )
    group.valid(
        "limit-bulk-both",
        "as many bytes as announced, and 64 times as many of zeros",
        table(raw(0, 4), zero(4, 256), hashes=1, region=5),
        "Boundary",
        clause="PGS-24",
    )
    for name, comment, clause, value in (
        ("raw", "a page more than announced", "PGS-21", table(raw(0, 5), hashes=1)),
        ("raws", "a page more than announced, in two runs", "PGS-21", table(raw(0, 3), raw(3, 2), hashes=2)),
        ("zero", "a page of zeros more than 64 times", "PGS-24", table(zero(0, 257), region=5)),
        ("zeros", "the same in two runs", "PGS-24", table(zero(0, 3), zero(4, 254), region=5)),
        ("granule", "a page of 64 KiB", "PGS-21", table(raw(0, 1, 16), hashes=1, region=8)),
        ("granules", "17 pages of 64 KiB of zeros", "PGS-24", table(zero(0, 17), region=8)),
    ):
        group.wrong_value(f"limit-bulk-{name}-more", comment, clause, "limit_bulk", value, "Limit")


def _optional_encodings(group: Group) -> None:
    """Tables of the encodings that need not be implemented; what their bytes decode to is not in a table."""
    for number, word in ((ZSTD, "zstd"), (DELTA, "delta")):
        group.valid(
            f"{word}-2",
            f"{word}: as few bytes as a page may shrink to",
            table((0, 1, 2, number), hashes=1),
            "Boundary",
            "OptionalFeature",
            clause="PGS-18",
        )
        group.valid(
            f"{word}-page",
            f"{word}: as many bytes as the page has",
            table((0, 1, PAGE, number), hashes=1),
            "Boundary",
            "OptionalFeature",
            clause="PGS-11",
        )
        group.valid(
            f"{word}-chunks",
            f"{word}: chunks are those of the decoded bytes",
            table((0, 17, 34, number), hashes=2),
            "OptionalFeature",
            clause="PGS-12",
        )
        group.wrong_value(
            f"{word}-0",
            f"{word} of no bytes",
            "PGS-11",
            "bad_value",
            table((0, 1, 0, number), hashes=1),
            "Runs",
            "OptionalFeature",
        )
        group.wrong_value(
            f"{word}-long",
            f"{word} that is longer than its page",
            "PGS-11",
            "bad_value",
            table((0, 1, PAGE + 1, number), hashes=1),
            "Runs",
            "OptionalFeature",
        )
        group.wrong_value(
            f"{word}-hashes",
            f"{word} without a hash",
            "PGS-12",
            "count_mismatch",
            table((0, 1, 9, number)),
            "Count",
            "OptionalFeature",
        )
        for name, comment, count, size in (
            ("page", "one byte less than a page may shrink to", 1, 1),
            ("chunk", "a byte less than 16 pages may shrink to", 16, 31),
        ):
            group.wrong_value(
                f"{word}-expands-{name}",
                f"{word}: {comment}",
                "PGS-18",
                "limit_expansion",
                table((0, count, size, number), hashes=1),
                "Limit",
                "OptionalFeature",
            )
        group.wrong_value(
            f"{word}-expands-first",
            f"{word} that shrinks too much, without a hash: what it expands to comes first",
            "PGS-18",
            "limit_expansion",
            table((0, 1, 1, number)),
            "Order",
            "OptionalFeature",
        )


def _without_hashes() -> Group:
    """Tables where `unhashed` was selected: as many hashes as ever, and each of them 0."""
    group = Group(
        "pages", "body", "PAGES", ["PGS-25"], {**CONTEXT, "encodings": [RAW, ZERO], "unhashed": True}
    )
    for name, comment, runs, hashes in (
        ("page", "a page and three of zeros", (raw(2, 1), zero(5, 3)), 1),
        ("chunks", "two chunks", (raw(0, 17),), 2),
    ):
        value = table(*runs, hashes=[0] * hashes)
        group.valid(f"unhashed-{name}", comment, value, "OptionalFeature", clause="PGS-25")
        for place in range(hashes):
            stated = [int(number == place) for number in range(hashes)]
            group.wrong_value(
                f"unhashed-{name}-{place}",
                f"{comment}, and hash {place} is not 0",
                "PGS-25",
                "bad_value",
                table(*runs, hashes=stated),
                "OptionalFeature",
            )
    group.wrong_value(
        "unhashed-none",
        "a page without its hash of 0",
        "PGS-12",
        "count_mismatch",
        table(raw(2, 1)),
        "Count",
        "OptionalFeature",
    )
    return group


def _absent(group: Group) -> None:
    """Tables of the encoding that is reserved."""
    group.valid(
        "absent",
        "a page whose content does not matter",
        table((0, 1, 0, ABSENT)),
        "ReservedFeature",
        clause="PGS-11",
    )
    group.wrong_value(
        "absent-sized",
        "an absent page with bytes",
        "PGS-11",
        "bad_value",
        table((0, 1, 1, ABSENT)),
        "Runs",
        "ReservedFeature",
    )
    mixed = table(raw(0, 1), (1, 1, 9, ZSTD), zero(2, 1), (3, 1, 0, ABSENT), (4, 1, 7, DELTA), hashes=3)
    group.valid("every-encoding", "a run of each encoding", mixed, "ReservedFeature", clause="PGS-11")
