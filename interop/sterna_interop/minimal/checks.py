"""Clauses about several fields of one body, and where HDR-11 wants them checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from sterna_interop.minimal.codes import SessionError

PAGES_MAX: Final = 1 << 52
CHUNK_BYTES: Final = 65536
COPY: Final = 0
RAW, ZERO = 0, 1
DEFAULT_LIMITS: Final = {
    "control_bytes": 1048576,
    "bulk_bytes": 16777216,
    "regions": 64,
    "memory_bytes": 1099511627776,
    "state_bytes": 67108864,
    "state_sections": 4096,
    "batch_runs": 16384,
    "data_streams": 0,
    "page_requests": 256,
    "expansion": 1,
    "rejected_runs": 4096,
}
LIMIT_IDS: Final = {name: number for number, name in enumerate(DEFAULT_LIMITS, 1)}

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """What a receiver knows when it reads a body: its own limits, and the regions of GUEST by id."""

    limits: Mapping[str, int]
    regions: Mapping[int, Fields] = field(default_factory=dict)


def require(good: bool, code: str) -> None:
    """End the session with `code` unless `good`."""
    if not good:
        raise SessionError(code)


def unique(values: Sequence[object], code: str = "bad_value") -> None:
    """No value twice."""
    require(len(set(values)) == len(values), code)


def ascending(values: Sequence[Any], code: str) -> None:
    """Strictly ascending."""
    require(all(one < other for one, other in pairwise(values)), code)


def limits_of(rows: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The peer's limits (LIM-2, LIM-3), if one can work with them (LIM-7)."""
    stated = {row["id"]: row["value"] for row in rows}
    limits = {name: stated.get(number, DEFAULT_LIMITS[name]) for name, number in LIMIT_IDS.items()}
    small = limits["control_bytes"] < 65536 or not limits["bulk_bytes"] or not limits["batch_runs"]
    require(not small, "limit_mismatch")
    return limits


def _region(region: Fields, known: Known) -> None:
    """GST-6 and GST-7."""
    granule = (1 << region["granule_log2"]) - 1
    aligned = not region["address"] & granule and not region["size_bytes"] & granule
    require(aligned and region["size_bytes"] > 0, "bad_region")
    require(region["address"] + region["size_bytes"] <= 1 << 64, "bad_region")


def _regions(regions: Sequence[Fields], known: Known) -> None:
    """GST-3, GST-8 and GST-9."""
    unique([region["id"] for region in regions], "bad_region")
    spans = sorted((region["address"], region["address"] + region["size_bytes"]) for region in regions)
    require(all(one[1] <= other[0] for one, other in pairwise(spans)), "bad_region")
    require(sum(region["size_bytes"] for region in regions) <= known.limits["memory_bytes"], "limit_memory")


def _names(rows: Sequence[Fields], known: Known) -> None:
    """GST-12."""
    unique([row["name"] for row in rows])


def _ids(rows: Sequence[Fields], known: Known) -> None:
    """HEL-3, HEL-4, WEL-1, WEL-2."""
    unique([row["id"] for row in rows])


def _versions(rows: Sequence[Fields], known: Known) -> None:
    """HEL-2."""
    unique([row["version"] for row in rows])


def _streams(rows: Sequence[Fields], known: Known) -> None:
    """FRM-16."""
    ascending([row["stream"] for row in rows], "bad_value")


def _range(row: Fields, known: Known) -> None:
    """FRM-17 and FRM-18."""
    require(row["count"] > 0 and row["first"] + row["count"] <= PAGES_MAX, "bad_value")
    region = known.regions.get(row["region"])
    pages_there = 0 if region is None else region["size_bytes"] >> region["granule_log2"]
    require(row["first"] + row["count"] <= pages_there, "outside_region")


def _ranges(rows: Sequence[Fields], known: Known) -> None:
    """RAK-3."""
    ascending([(row["region"], row["first"]) for row in rows], "overlapping_runs")
    for one, other in pairwise(rows):
        apart = one["region"] != other["region"] or one["first"] + one["count"] <= other["first"]
        require(apart, "overlapping_runs")


# What concerns several fields of an item follows the item, what concerns several items the list (HDR-11).
ITEMS: Final = {"GUEST.regions": _region, "ROUND_ACK.rejected": _range}
LISTS: Final = {
    "HELLO.versions": _versions,
    "HELLO.features": _ids,
    "HELLO.limits": _ids,
    "WELCOME.features": _ids,
    "WELCOME.limits": _ids,
    "GUEST.regions": _regions,
    "GUEST.cpu_features": _names,
    "GUEST.nics": _names,
    "GUEST.disks": _names,
    "ROUND_END.streams": _streams,
    "SEAL.streams": _streams,
    "ROUND_ACK.rejected": _ranges,
}


def pages(
    fields: Fields, regions: Mapping[int, Fields], limits: Mapping[str, int], bulk_bytes: int, *, zero: bool
) -> None:
    """PGS-2, PGS-3, PGS-7 to PGS-12, PGS-14, PGS-21 and PGS-24; `zero`: that encoding was selected."""
    require(fields["region"] in regions, "outside_region")
    region, runs = regions[fields["region"]], fields["runs"]
    require(region["transfer"] == COPY, "bad_value")
    shift = region["granule_log2"]
    for run in runs:
        require(run["first"] + run["count"] <= region["size_bytes"] >> shift, "outside_region")
    require(
        all(one["first"] + one["count"] <= other["first"] for one, other in pairwise(runs)),
        "overlapping_runs",
    )
    require(all(run["encoding"] == RAW or (run["encoding"] == ZERO and zero) for run in runs), "not_selected")
    for run in runs:
        if run["encoding"] == RAW:
            require(run["size_bytes"] == run["count"] << shift, "bad_value")
    require(not any(run["size_bytes"] for run in runs if run["encoding"] == ZERO), "bad_value")
    blank = sum(run["count"] for run in runs if run["encoding"] == ZERO) << shift
    carried = (sum(run["count"] for run in runs) << shift) - blank
    require(carried <= limits["bulk_bytes"] and blank <= 64 * limits["bulk_bytes"], "limit_bulk")
    chunks = sum(-(-run["size_bytes"] // CHUNK_BYTES) for run in runs)
    require(len(fields["hashes"]) == chunks, "count_mismatch")
    require(sum(run["size_bytes"] for run in runs) == bulk_bytes, "malformed")


def state(fields: Fields) -> None:
    """STA-2 to STA-4."""
    size, end = len(fields["data"]), fields["offset"] + len(fields["data"])
    require(end <= fields["total_bytes"], "bad_fragment")
    require(fields["last"] == (end == fields["total_bytes"]), "bad_fragment")
    require(size > 0 or not fields["total_bytes"], "bad_fragment")


def welcome(fields: Fields) -> None:
    """WEL-4."""
    fresh = not (fields["generation"] or fields["complete_round"] or fields["held_frames"])
    require(fresh and any(fields["session"]), "bad_value")


def hello_values(fields: Fields) -> None:
    """FRM-4, HEL-5, HEL-6, HEL-8."""
    mode = fields["mode"]
    require(mode <= 3, "bad_value")
    if mode in {0, 3}:
        bare = not (any(fields["session"]) or any(fields["token"]) or fields["generation"])
        require(bare, "bad_value")
    else:
        require(any(fields["session"]), "bad_value")
    require(mode != 0 or fields["epoch"] < (1 << 64) - 2, "bad_value")
