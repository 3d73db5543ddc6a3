"""The vectors as the minimal endpoint reads them, and two connections with a socket pair between them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna_interop.minimal import checks
from sterna_interop.minimal.checks import DEFAULT_LIMITS, Known
from sterna_interop.minimal.connection import Connection, Times
from sterna_interop.minimal.destination import VERSION
from sterna_interop.minimal.frames import LAYOUTS, decode

VECTORS = Path(__file__).parents[3] / "spec" / "vectors"


@dataclass(frozen=True)
class Vector:
    group: Mapping[str, Any]
    test: Mapping[str, Any]

    @property
    def data(self) -> bytes:
        return bytes.fromhex(self.test["hex"])

    @property
    def limits(self) -> dict[str, int]:
        stated = self.group["context"].get("limits", {})
        return DEFAULT_LIMITS | {name: int(value) for name, value in stated.items()}


def vectors(kind: str) -> list[Vector]:
    """All of a kind that are not about what is reserved or of a feature that an implementation may lack."""
    return [
        Vector(group, test)
        for path in sorted(VECTORS.glob("*.json"))
        for group in json.loads(path.read_text()).get("groups", ())
        if group["kind"] == kind
        for test in group["tests"]
        if not {"ReservedFeature", "OptionalFeature"} & set(test["flags"])
    ]


def read_body(vector: Vector) -> dict[str, Any]:
    """Decode and check a body as the endpoints do, the version of HELLO aside."""
    frame, limits = vector.group["frame"], vector.limits
    assert frame in LAYOUTS
    rows = vector.group["context"].get("regions") or ()
    regions = {row["id"]: {name: int(value) for name, value in row.items()} for row in rows}
    fields, later = decode(frame, vector.data, Known(limits, regions))
    match frame:
        case "HELLO":
            checks.require(VERSION in {row["version"] for row in fields["versions"]}, "no_common_version")
            if later is not None:
                raise later
            checks.hello_values(fields)
        case "STATE":
            checks.state(fields)
        case "PAGES":
            checks.require(bool(regions), "unexpected_frame")
            context = vector.group["context"]
            bulk = vector.test.get("bulk_bytes", sum(run["size_bytes"] for run in fields["runs"]))
            checks.pages(fields, regions, limits, bulk, zero=1 in context.get("encodings", (0, 1)))
        case _:
            pass
    return fields


@contextmanager
def connections(times: Times | None = None) -> Iterator[tuple[Connection, Connection]]:
    """A source's and a destination's, over a socket pair; closed afterwards."""
    near, far = socket.socketpair()
    times = times or Times(heartbeat=0.05, silence=5, stall=5, wait=5)
    yield Connection(near, "S", {}, times), Connection(far, "D", {}, times)
    near.close()
    far.close()
