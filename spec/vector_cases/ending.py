"""HANDOVER and all that follows it, PING, PONG, PROGRESS, VERDICT, END."""

from __future__ import annotations

from typing import Any, Final

from vector_cases.book import Group, closed_values, derive, text_lengths
from vector_cases.handshake import RUNNER
from vector_cases.layout import join, lay, patched
from vector_cases.rounds import CONTEXT, PAGE_SPACE
from vector_cases.switchover import DIGEST

U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
EPOCH: Final = 0x0102030405060708


def commit() -> list[Group]:
    """5.15 and 5.16: HANDOVER, RUNNING, HANDBACK."""
    group = Group("handover", "body", "HANDOVER", ["HND-3"])
    base: dict[str, Any] = {"attempt": 0x11121314, "epoch": EPOCH}
    group.valid("basic", "the permission to claim", base)
    derive(group, base, extremes=["attempt"])
    for number in (0, U64_MAX - 1):
        group.valid(
            f"epoch-{number}", f"epoch {number}", {**base, "epoch": number}, "Boundary", clause="HND-3"
        )
    last = {**base, "epoch": U64_MAX}
    group.wrong_value("epoch-max", "an epoch that no other follows", "HND-3", "bad_value", last, "Boundary")
    comment = "an epoch that no other follows, and bytes behind the end: a field comes before what follows it"
    group.wrong(
        "epoch-before-trailing", comment, "HND-3", "bad_value", join(lay("HANDOVER", last)) + b"\0", "Order"
    )
    groups = [group]
    for frame in ("RUNNING", "HANDBACK"):
        group = Group(frame.lower(), "body", frame, ["FRM-1", "TXT-1"])
        base = {"epoch": EPOCH, "runner": RUNNER, "runner_host": "tern-2"}
        group.valid("basic", f"an ordinary {frame}", base)
        text_lengths(group, base, "runner_host")
        derive(group, base, extremes=["epoch"])
        groups.append(group)
    return groups


def after() -> list[Group]:
    """5.17: COMPLETE, RELEASE."""
    group = Group("complete", "body", "COMPLETE", ["FRM-1"])
    base: dict[str, Any] = {"epoch": EPOCH, "digest": DIGEST}
    group.valid("basic", "every page is installed", base)
    derive(group, base, extremes=["epoch"])
    groups = [group]
    for frame, name in (("RELEASE", "epoch"), ("PING", "id"), ("PONG", "id"), ("END", "frames")):
        group = Group(frame.lower(), "body", frame, ["FRM-1"])
        group.valid("basic", f"an ordinary {frame}", {name: EPOCH})
        derive(group, {name: EPOCH}, extremes=[name])
        groups.append(group)
    group = Group("bye", "body", "BYE", ["FRM-1", "FRM-2"])
    group.valid("basic", "no body", {})
    derive(group, {})
    return [*groups, group]


def page_request() -> list[Group]:
    """5.17: PAGE_REQUEST."""
    group = Group("page-request", "body", "PAGE_REQUEST", ["FRM-17", "FRM-18"], CONTEXT)
    base: dict[str, Any] = {"region": 5, "urgent": True, "first": 0x0807060504, "count": 0x0102030405}
    group.valid("basic", "pages that a vCPU waits for", base)
    group.valid("not-urgent", "pages that nobody waits for", {**base, "urgent": False}, clause="FRM-5")
    near = {**base, "region": 7}
    group.valid(
        "whole-region",
        "all pages of a region",
        {**near, "first": 0, "count": 100},
        "Boundary",
        clause="FRM-18",
    )
    group.valid(
        "last-page",
        "the last page of a region",
        {**near, "first": 99, "count": 1},
        "Boundary",
        clause="FRM-18",
    )
    derive(group, base)
    for name, comment, first, count in (
        ("none", "no pages", 0, 0),
        ("beyond", "a range that ends behind page 2^52", PAGE_SPACE, 1),
        ("wraps", "first and count whose sum wraps to 0", U64_MAX, 1),
        ("wraps-far", "first and count whose sum wraps into the region", 10, U64_MAX - 4),
    ):
        value = {**near, "first": first, "count": count}
        group.wrong_value(name, comment, "FRM-17", "bad_value", value, "Runs")
    for name, comment, changes in (
        ("region-unknown", "a region that is not in GUEST", {"region": 6, "first": 0, "count": 1}),
        ("behind-region", "the page behind a region", {"first": 100, "count": 1}),
        (
            "leaves-region",
            "a range that begins inside of its region and ends outside",
            {"first": 99, "count": 2},
        ),
    ):
        group.wrong_value(name, comment, "FRM-18", "outside_region", {**near, **changes}, "Region")
    value = {**near, "region": 6, "first": 0, "count": 0}
    comment = "no pages, of a region that is not in GUEST"
    group.wrong_value("range-before-region", comment, "FRM-17", "bad_value", value, "Order")
    comment = "no pages, and bytes behind the end: layout comes before what concerns several fields"
    group.wrong(
        "trailing-before-range",
        comment,
        "FRM-2",
        "trailing_bytes",
        join(lay("PAGE_REQUEST", value)) + b"\0",
        "Order",
    )
    anywhere = Group("page-request", "body", "PAGE_REQUEST", ["FRM-17"], {"regions": None})
    last = {**base, "region": U32_MAX, "first": PAGE_SPACE - 1, "count": 1}
    anywhere.valid("address-space", "the last page of the address space", last, "Boundary", clause="FRM-17")
    anywhere.wrong_value(
        "address-space-1", "the page behind it", "FRM-17", "bad_value", {**last, "count": 2}, "Runs"
    )
    return [group, anywhere]


def progress() -> list[Group]:
    """5.20."""
    group = Group("progress", "body", "PROGRESS", ["FRM-4"])
    rates = [
        "pages_total",
        "pages_remaining",
        "bulk_bytes",
        "dirty_rate_bytes_s",
        "bandwidth_bytes_s",
        "predicted_downtime_us",
    ]
    base: dict[str, Any] = {"phase": 4, "round": 0x01020304}
    base |= {name: EPOCH + (number << 56) for number, name in enumerate(rates, 1)}
    group.valid("basic", "how far it is", base)
    group.valid(
        "unknown", "nothing is known yet", {**base, **dict.fromkeys(rates, 0), "round": 0}, "Boundary"
    )
    more = {**base, "pages_remaining": U64_MAX, "pages_total": 0}
    group.valid(
        "more-than-all",
        "more pages missing than there are: it is informative",
        more,
        "Boundary",
        clause="PRG-2",
    )
    closed_values(group, base, "phase")
    derive(group, base, extremes=["round", *rates])
    return [group]


def verdict() -> list[Group]:
    """5.21."""
    group = Group("verdict", "body", "VERDICT", ["VER-1", "VER-2"])
    base: dict[str, Any] = {
        "owner": 2,
        "handed_back": False,
        "complete": True,
        "epoch": EPOCH,
        "runner": RUNNER,
        "digest": DIGEST,
        "runner_host": "tern-2",
    }
    open_ = {**base, "complete": False, "digest": bytes(16)}
    group.valid("basic", "the destination owns it, complete", base)
    group.valid(
        "handed-back-recorded", "handed back", {**open_, "owner": 1, "handed_back": True}, clause="VER-1"
    )
    group.valid(
        "digest-zero",
        "complete with a digest of zeros",
        {**base, "digest": bytes(16)},
        "Boundary",
        clause="VER-2",
    )
    closed_values(group, open_, "owner")
    text_lengths(group, base, "runner_host")
    derive(group, base, extremes=["epoch"])
    both = {**base, "handed_back": True}
    group.wrong_value("both", "handed back and complete", "VER-1", "bad_value", both, "CrossField")
    group.wrong_value(
        "both-digest-zero",
        "handed back and complete, without a digest",
        "VER-1",
        "bad_value",
        {**both, "digest": bytes(16)},
        "CrossField",
    )
    for name, digest in (
        ("digest", DIGEST),
        ("digest-first", b"\1" + bytes(15)),
        ("digest-last", bytes(15) + b"\1"),
    ):
        value = {**open_, "digest": digest}
        group.wrong_value(
            f"{name}-not-complete",
            "a digest of what is not complete",
            "VER-2",
            "bad_value",
            value,
            "CrossField",
        )
    comment = (
        "handed back and complete, at a host whose name is none: what concerns several fields comes last"
    )
    group.wrong(
        "text-before-both",
        comment,
        "TXT-3",
        "bad_text",
        patched(lay("VERDICT", both), "runner_host", b"\1\0"),
        "Order",
    )
    comment = "handed back and complete, and bytes behind the end"
    group.wrong(
        "trailing-before-both",
        comment,
        "FRM-2",
        "trailing_bytes",
        join(lay("VERDICT", both)) + b"\0",
        "Order",
    )
    return [group]
