"""GUEST."""

from __future__ import annotations

from typing import Any, Final

from vector_cases.book import Group, derive, text_lengths
from vector_cases.layout import Value, join, lay

GIB: Final = 1 << 30
TIB: Final = 1 << 40

RAM: Final[dict[str, int]] = {
    "id": 0x01020304,
    "granule_log2": 12,
    "fault_granule_log2": 21,
    "kind": 0,
    "transfer": 0,
    "address": 0x1_0000_0000,
    "size_bytes": GIB,
}
ROM: Final[dict[str, int]] = {
    "id": 7,
    "granule_log2": 16,
    "fault_granule_log2": 16,
    "kind": 1,
    "transfer": 2,
    "address": 0xFFFF0000,
    "size_bytes": 0x10000,
}
GUEST: Final[dict[str, Any]] = {
    "architecture": 1,
    "vcpus": 0x0A0B0C0D,
    "state_bytes": 0x03040506,
    "name": "little tern",
    "regions": [RAM, ROM],
    "cpu_features": ["sse4_2", "avx2"],
    "nics": [{"mac": bytes.fromhex("02a1b2c3d4e5"), "name": "eth0"}],
    "disks": [{"size_bytes": 0x0102030405060708, "name": "vda", "identity": "wwn-0x5000c500a1b2c3d4"}],
}
BARE: Final[dict[str, Any]] = {
    **GUEST,
    "name": "",
    "regions": [RAM],
    "cpu_features": [],
    "nics": [],
    "disks": [],
}


def _with(**changes: int) -> Value:
    """A guest of one region."""
    return {**BARE, "regions": [{**RAM, **changes}]}


def _two(**changes: int) -> Value:
    """A guest of RAM and of another region."""
    return {**BARE, "regions": [RAM, {**RAM, "id": 9, "address": 0x2_0000_0000, **changes}]}


def guest() -> list[Group]:
    """5.4."""
    clauses = [f"GST-{number}" for number in range(1, 13)]
    group = Group("guest", "body", "GUEST", clauses)
    group.valid("basic", "a guest with two regions, CPU features, a network interface and a disk", GUEST)
    group.valid("bare", "a guest of one region", BARE)
    comment = "an architecture that is not registered is well-formed"
    group.valid("architecture-unknown", comment, {**BARE, "architecture": 0x7777}, "OpenEnum", clause="FRM-4")
    text_lengths(group, GUEST, "name")
    derive(group, GUEST, extremes=["architecture", "vcpus"])
    _fields(group)
    _table(group)
    _lists(group)
    _order(group)
    limited = Group("guest", "body", "GUEST", ["GST-2", "GST-9", "GST-10"])
    limited.context = {"limits": {"regions": 2, "memory_bytes": 3 * GIB, "state_bytes": 1000}}
    _limits(limited)
    return [group, limited]


def _fields(group: Group) -> None:
    """GST-4 to GST-7 on one region."""
    for kind, word in enumerate(("ram", "rom", "device", "pmem")):
        group.valid(f"kind-{word}", f"kind {word}", _with(kind=kind), clause="FRM-4")
    for transfer, word in enumerate(("copy", "shared", "regenerate", "opaque")):
        group.valid(f"transfer-{word}", f"transfer {word}", _with(transfer=transfer), clause="FRM-4")
    bad = ("bad_region", "Region")
    for log2 in (12, 13, 16):
        group.valid(
            f"granule-{log2}", f"granule_log2 is {log2}", _with(granule_log2=log2), "Boundary", clause="GST-4"
        )
    for log2 in (0, 11, 17, 63, 64, 255):
        group.wrong_value(
            f"granule-{log2}", f"granule_log2 is {log2}", "GST-4", bad[0], _with(granule_log2=log2), "Region"
        )
    for log2 in (12, 30):
        group.valid(
            f"fault-granule-{log2}",
            f"fault_granule_log2 is {log2}",
            _with(fault_granule_log2=log2),
            "Boundary",
            clause="GST-5",
        )
    for log2 in (0, 11, 31, 255):
        group.wrong_value(
            f"fault-granule-{log2}",
            f"fault_granule_log2 is {log2}",
            "GST-5",
            bad[0],
            _with(fault_granule_log2=log2),
            "Region",
        )
    for name, comment, changes in (
        ("address-odd", "an address that is no multiple of the granule", {"address": RAM["address"] + 1}),
        (
            "address-page",
            "an address of 4 KiB in a region of 64 KiB granules",
            {"address": 4096, "granule_log2": 16},
        ),
        ("size-odd", "a size that is no multiple of the granule", {"size_bytes": GIB - 1}),
        ("size-zero", "a region of no bytes", {"size_bytes": 0}),
        ("size-half", "half a granule", {"size_bytes": 0x8000, "granule_log2": 16}),
    ):
        group.wrong_value(name, comment, "GST-6", bad[0], _with(**changes), "Region")
    top = 2**64 - 4096
    group.valid(
        "address-top",
        "a region that ends at 2^64",
        _with(address=top, size_bytes=4096),
        "Boundary",
        clause="GST-7",
    )
    group.valid("address-zero", "a region that begins at 0", _with(address=0), "Boundary", clause="GST-7")
    for name, comment, changes in (
        ("beyond-2-64", "a region that ends one granule behind 2^64", {"address": top, "size_bytes": 8192}),
        ("wraps", "a size so large that the end wraps below the start", {"address": top, "size_bytes": top}),
    ):
        group.wrong_value(name, comment, "GST-7", bad[0], _with(**changes), "Region")


def _table(group: Group) -> None:
    """GST-1, GST-3, GST-8 over the regions."""
    group.wrong_value("regions-0", "no region", "GST-1", "bad_region", {**BARE, "regions": []}, "Boundary")
    many = [{**RAM, "id": number, "address": number << 12, "size_bytes": 4096} for number in range(65)]
    group.valid(
        "regions-64",
        "64 regions, the default limit",
        {**BARE, "regions": many[:64]},
        "Boundary",
        clause="GST-2",
    )
    group.wrong_value(
        "regions-65", "65 regions", "GST-2", "limit_regions", {**BARE, "regions": many}, "Limit"
    )
    group.wrong_value(
        "region-count-65535",
        "region_count is 65535",
        "GST-2",
        "limit_regions",
        BARE,
        "Limit",
        "Count",
        region_count=0xFFFF,
    )
    group.wrong_value(
        "region-count-lies",
        "64 regions in a body of one",
        "FRM-12",
        "malformed",
        BARE,
        "Count",
        region_count=64,
    )
    group.valid(
        "id-extremes",
        "ids 0 and 2^32 - 1",
        {**BARE, "regions": [{**RAM, "id": 0}, {**ROM, "id": 2**32 - 1}]},
        "Boundary",
        clause="GST-3",
    )
    group.valid(
        "order", "regions come in any order", {**BARE, "regions": [RAM, {**ROM, "id": 1}]}, clause="GST-8"
    )
    group.valid(
        "neighbours", "regions that touch", _two(address=RAM["address"] + GIB), "Boundary", clause="GST-8"
    )
    group.wrong_value(
        "id-twice", "two regions of one id", "GST-3", "bad_region", _two(id=RAM["id"]), "Duplicate", "Region"
    )
    for name, comment, changes in (
        (
            "overlap-last-page",
            "a region that begins in the last page of another",
            {"address": RAM["address"] + GIB - 4096},
        ),
        (
            "overlap-first-page",
            "a region that ends in the first page of another",
            {"address": RAM["address"] - GIB + 4096},
        ),
        ("overlap-same", "two regions at one place", {"address": RAM["address"]}),
        (
            "overlap-inside",
            "a region inside another",
            {"address": RAM["address"] + GIB // 2, "size_bytes": 4096},
        ),
        ("overlap-transfer", "a shared region overlaps too", {"address": RAM["address"], "transfer": 1}),
    ):
        group.wrong_value(name, comment, "GST-8", "bad_region", _two(**changes), "Region")
    far = {**RAM, "id": 10, "address": 0x3_0000_0000}
    value = {**BARE, "regions": [RAM, far, {**RAM, "id": 11, "size_bytes": 4096}]}
    group.wrong_value(
        "overlap-not-neighbours",
        "the first and the last of three overlap",
        "GST-8",
        "bad_region",
        value,
        "Region",
    )
    group.valid("memory-tib", "1 TiB, the default limit", _with(size_bytes=TIB), "Boundary", clause="GST-9")
    group.wrong_value(
        "memory-tib-more",
        "a page more than 1 TiB",
        "GST-9",
        "limit_memory",
        _with(size_bytes=TIB + 4096),
        "Limit",
    )
    halves = _two(address=1 << 50, size_bytes=TIB - GIB + 4096)
    group.wrong_value(
        "memory-sum",
        "two regions that together have a page too much",
        "GST-9",
        "limit_memory",
        halves,
        "Limit",
    )
    shared = _two(address=1 << 50, size_bytes=TIB, transfer=1)
    group.wrong_value("memory-shared", "shared memory counts too", "GST-9", "limit_memory", shared, "Limit")
    half = 1 << 63
    wrapped = {**BARE, "regions": [_region(1, 0, half), _region(2, half, half)]}
    group.wrong_value(
        "memory-wraps",
        "sizes whose sum is 2^64: in 64 bits it wraps to 0",
        "GST-9",
        "limit_memory",
        wrapped,
        "Limit",
    )


def _region(number: int, address: int, size_bytes: int) -> dict[str, int]:
    return {**RAM, "id": number, "address": address, "size_bytes": size_bytes}


def _lists(group: Group) -> None:
    """GST-11 and GST-12."""
    mac = bytes.fromhex("020000000001")
    features = [f"f{number}" for number in range(1025)]
    nics = [{"mac": mac, "name": f"n{number}"} for number in range(65)]
    disks = [{"size_bytes": number, "name": f"d{number}", "identity": ""} for number in range(65)]
    for name, field, items, bound in (
        ("cpu-features", "cpu_features", features, 1024),
        ("nics", "nics", nics, 64),
        ("disks", "disks", disks, 64),
    ):
        group.valid(
            f"{name}-{bound}", f"{bound} {field}", {**BARE, field: items[:bound]}, "Boundary", clause="GST-11"
        )
        group.wrong_value(
            f"{name}-{bound + 1}",
            f"{bound + 1} {field}",
            "GST-11",
            "bad_value",
            {**BARE, field: items},
            "Limit",
        )
        counter = {"cpu_features": "cpu_feature_count", "nics": "nic_count", "disks": "disk_count"}[field]
        group.wrong_value(
            f"{name}-65535",
            f"{counter} is 65535",
            "GST-11",
            "bad_value",
            BARE,
            "Limit",
            "Count",
            **{counter: 0xFFFF},
        )
        group.wrong_value(
            f"{name}-lies",
            f"{bound} {field} in a body of none",
            "FRM-12",
            "malformed",
            BARE,
            "Count",
            **{counter: bound},
        )
        doubled = {**BARE, field: [items[0], items[1], items[0]]}
        group.wrong_value(
            f"{name}-twice", f"a name twice in {field}", "GST-12", "bad_value", doubled, "Duplicate"
        )
    comment = "what differs is the MAC address alone"
    doubled = {**BARE, "nics": [nics[0], {**nics[0], "mac": bytes(6)}]}
    group.wrong_value("nics-name-twice", comment, "GST-12", "bad_value", doubled, "Duplicate")
    same = {**BARE, "nics": [nics[0], nics[1]], "disks": [disks[0], {**disks[1], "size_bytes": 0}]}
    group.valid("equal-elsewhere", "MAC addresses, identities and sizes may repeat", same, clause="GST-12")
    crossed = {
        **BARE,
        "nics": [{"mac": mac, "name": "x"}],
        "disks": [{**disks[0], "name": "x"}],
        "cpu_features": ["x"],
    }
    group.valid("names-across", "a name may be in several lists", crossed, clause="GST-12")
    group.valid(
        "names-case",
        "names that differ in case are different",
        {**BARE, "cpu_features": ["a", "A", ""]},
        clause="GST-12",
    )


def _order(group: Group) -> None:
    """HDR-11 on the parts of GUEST."""
    wrong = group.wrong_value
    wrong(
        "count-before-count",
        "no region, and too many CPU features",
        "GST-1",
        "bad_region",
        {**BARE, "regions": []},
        "Order",
        cpu_feature_count=0xFFFF,
    )
    wrong(
        "count-before-list",
        "too many disks, and a region that is wrong",
        "GST-11",
        "bad_value",
        _with(granule_log2=3),
        "Order",
        disk_count=65,
    )
    wrong(
        "granule-before-kind",
        "a wrong granule, and an unknown kind behind it",
        "GST-4",
        "bad_region",
        _with(granule_log2=3, kind=9),
        "Order",
    )
    wrong(
        "fault-before-transfer",
        "a wrong fault granule, and an unknown transfer behind it",
        "GST-5",
        "bad_region",
        _with(fault_granule_log2=3, transfer=9),
        "Order",
    )
    wrong(
        "kind-before-size",
        "an unknown kind, and no bytes",
        "FRM-4",
        "bad_value",
        _with(kind=9, size_bytes=0),
        "Order",
    )
    value = {**BARE, "regions": [RAM, {**RAM, "kind": 9}]}
    wrong(
        "field-before-table",
        "an unknown kind, in a region whose id and place are another's",
        "FRM-4",
        "bad_value",
        value,
        "Order",
    )
    wrong(
        "table-before-next-list",
        "regions that overlap, before a CPU feature twice",
        "GST-8",
        "bad_region",
        {**_two(address=RAM["address"]), "cpu_features": ["a", "a"]},
        "Order",
    )
    wrong(
        "overlap-before-memory",
        "regions that overlap and are too large",
        "GST-8",
        "bad_region",
        _two(address=0, size_bytes=2 * TIB),
        "Order",
    )
    wrong(
        "names-before-next-list",
        "a CPU feature twice, before a network interface whose name is none",
        "GST-12",
        "bad_value",
        {**BARE, "cpu_features": ["a", "a"], "nics": [{"mac": bytes(6), "name": b"\0"}]},
        "Order",
    )
    comment = "3 regions in the bytes of 2, of which the first is wrong: the count comes before its items"
    wrong(
        "count-before-items",
        comment,
        "FRM-12",
        "malformed",
        {**BARE, "regions": [{**RAM, "kind": 9}, ROM]},
        "Order",
        region_count=3,
    )
    value = {**BARE, "regions": [{**RAM, "size_bytes": 0}]}
    group.wrong(
        "region-before-trailing",
        "an empty region, and bytes behind the end",
        "GST-6",
        "bad_region",
        join(lay("GUEST", value)) + b"\0",
        "Order",
    )


def _limits(group: Group) -> None:
    """Against small limits."""
    third = {**RAM, "id": 3, "address": 0, "size_bytes": 4096}
    few = {"state_bytes": 0}
    group.valid(
        "limit-regions-2", "as many regions as announced", {**_two(), **few}, "Boundary", clause="GST-2"
    )
    value = {**BARE, **few, "regions": [*_two()["regions"], third]}
    group.wrong_value(
        "limit-regions-3", "a region more than announced", "GST-2", "limit_regions", value, "Limit"
    )
    group.valid(
        "limit-memory-3",
        "as much memory as announced",
        {**_two(size_bytes=2 * GIB), **few},
        "Boundary",
        clause="GST-9",
    )
    group.wrong_value(
        "limit-memory-more",
        "a page more than announced",
        "GST-9",
        "limit_memory",
        {**_two(size_bytes=2 * GIB + 4096), **few},
        "Limit",
    )
    group.valid(
        "limit-state-1000",
        "as much state as announced",
        {**BARE, "state_bytes": 1000},
        "Boundary",
        clause="GST-10",
    )
    group.valid("limit-state-0", "no state", {**BARE, "state_bytes": 0}, "Boundary", clause="GST-10")
    for state_bytes in (1001, 2**64 - 1):
        group.wrong_value(
            f"limit-state-{state_bytes}",
            "more state than announced",
            "GST-10",
            "limit_state",
            {**BARE, "state_bytes": state_bytes},
            "Limit",
        )
    comment = "more state than announced, and a name that is none: fields come in their order"
    group.wrong_value(
        "limit-state-before-name",
        comment,
        "GST-10",
        "limit_state",
        {**BARE, "state_bytes": 1001, "name": b"\0"},
        "Order",
    )
