"""PAGES as whole frames: what the header says of the bulk part, and the hashes of its bytes."""

from __future__ import annotations

from typing import Any

import xxhash

from vector_cases.book import Group
from vector_cases.layout import LAYOUTS, join, lay, plain
from vector_cases.pages import CHUNK, PAGE, RAW, ZERO, raw, table, zero
from vector_cases.rounds import CONTEXT
from vector_cases.wholes import event, frame, preface


def batches() -> list[Group]:
    """5.10, of pages.json."""
    group = Group(
        "pages", "stream", "PAGES", ["PGS-13", "PGS-14", "MEM-1"], {**CONTEXT, "encodings": [RAW, ZERO]}
    )
    page = bytes(range(256)) * 16
    other = bytes(reversed(range(256))) * 16
    long = b"".join(bytes([number]) * PAGE for number in range(1, 18))

    def case(
        name: str,
        comment: str,
        value: dict[str, Any],
        bulk: bytes,
        *flags: str,
        clause: str,
        bad: tuple[int, ...] = (),
    ) -> None:
        body = join(lay("PAGES", value))
        data = preface() + frame(0x8011, body, bulk, sequence=0)
        shown = plain(LAYOUTS["PAGES"], value)
        pages = event("pages", 0x8011, 0, value=shown, bulk_bytes=len(bulk), rejected_chunks=list(bad))
        group.add(
            name, comment, flags or ("Basic",), clause, data, value={"events": [event("preface"), pages]}
        )

    def hashed(*chunks: bytes) -> list[int]:
        return [xxhash.xxh3_64_intdigest(chunk) for chunk in chunks]

    case("whole-raw", "a page with its bytes", table(raw(3, 1), hashes=hashed(page)), page, clause="PGS-13")
    case("whole-zero", "a page of zeros: no bytes", table(zero(3, 1)), b"", clause="PGS-11")
    mixed = table(raw(3, 1), zero(4, 1), raw(5, 1), hashes=hashed(page, other))
    case(
        "whole-mixed",
        "the bytes of two runs follow each other, zeros between them have none",
        mixed,
        page + other,
        clause="PGS-14",
    )
    chunks = hashed(long[:CHUNK], long[CHUNK:])
    case("whole-chunks", "17 pages: two chunks", table(raw(0, 17), hashes=chunks), long, clause="MEM-1")
    case(
        "whole-hash-wrong",
        "a bit of the page differs: read, and its chunk rejected",
        table(raw(3, 1), hashes=hashed(other)),
        page,
        "PageHash",
        clause="PGS-13",
        bad=(0,),
    )
    case(
        "whole-hash-second",
        "the second chunk differs",
        table(raw(0, 17), hashes=[chunks[0], chunks[1] ^ 1]),
        long,
        "PageHash",
        clause="PGS-13",
        bad=(1,),
    )
    case(
        "whole-hash-swapped",
        "hashes in the wrong order",
        table(raw(3, 1), raw(5, 1), hashes=hashed(other, page)),
        page + other,
        "PageHash",
        clause="PGS-13",
        bad=(0, 1),
    )
    swapped = [int.from_bytes(hashed(page)[0].to_bytes(8, "big"), "little")]
    case(
        "whole-hash-big-endian",
        "the hash in the wrong byte order",
        table(raw(3, 1), hashes=swapped),
        page,
        "PageHash",
        clause="PGS-13",
        bad=(0,),
    )
    body = join(lay("PAGES", table(raw(3, 1), hashes=hashed(page))))
    for name, comment, bulk in (
        ("short", "the bulk part is a byte shorter than the table says", page[:-1]),
        ("long", "the bulk part is a byte longer than the table says", page + b"\0"),
        ("none", "the bulk part is missing", b""),
        ("twice", "the bulk part is twice as long as the table says", page + page),
    ):
        data = preface() + frame(0x8011, body, bulk, sequence=0)
        group.add(
            f"whole-bulk-{name}", comment, ["CrossField"], "PGS-14", data, error="malformed", accepted=0
        )
    body = join(lay("PAGES", table(zero(3, 1))))
    data = preface() + frame(0x8011, body, b"\0", sequence=0)
    group.add(
        "whole-bulk-for-zero",
        "a byte of bulk for zeros",
        ["CrossField"],
        "PGS-14",
        data,
        error="malformed",
        accepted=0,
    )
    return [group]
