"""`sterna bench memory` and `sterna bench tls`: how fast random memory moves, and what that costs.

Over plain TCP and over mutual TLS. The bare loops are blocking sockets, or `ssl` ones with the same settings.
They check nothing else, or make the same hash passes at both ends. Over plain TCP a session without page
hashes is measured as well, beside the ways that hash nothing either: QEMU and the plain loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number

from sterna.cli.output import Output
from sterna.cli.units import Json, Size
from sterna.limits import STREAMS_MAX
from sterna_interop.bulk import SIZE_BYTES, Bulk, random_memory
from sterna_interop.measuring import BARE, BARE_HASH, QEMU, Bound, Runs, at_least
from sterna_interop.transfers import Against, Write, need

PLAIN_BOUNDS: Final[Mapping[str, Bound]] = {QEMU: at_least(1.0, 1.5), BARE_HASH: at_least(0.9, 0.95)}
UNVERIFIED_BOUNDS: Final[Mapping[str, Bound]] = {QEMU: at_least(1.3, 1.6), BARE: at_least(0.8, 0.95)}
TLS_BOUNDS: Final[Mapping[str, Bound]] = {QEMU: at_least(1.7, 2.5), BARE: at_least(0.8, 0.95)}

Streams = Annotated[int, Parameter(validator=Number(gte=0, lte=STREAMS_MAX))]


def memory(
    *, size: Size = SIZE_BYTES, streams: Streams = 0, runs: Runs = 5, against: Against = None,
    write: Write = None, json: Json = False,
) -> None:  # fmt: skip
    """Random memory over plain TCP, beside bare socket loops, a plain copy and QEMU.

    Args:
        size: memory of the guest, a multiple of 1MiB.
        streams: data connections, and as many connections of the bare loops; 0 is one connection for all.
        runs: turns of each way; medians are shown.
        against: measure QEMU as well, in its better one of one channel and multifd with two.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    need(against)
    memories, conditions = random_memory(size)
    bulk = Bulk("memory", memories, PLAIN_BOUNDS, conditions, unverified=UNVERIFIED_BOUNDS, streams=streams)
    bulk.run(runs, against, Output(json=json), write)


def tls(
    *, size: Size = SIZE_BYTES, streams: Streams = 0, runs: Runs = 5, against: Against = None,
    write: Write = None, json: Json = False,
) -> None:  # fmt: skip
    """Random memory over mutual TLS, beside bare `ssl` loops, a plain copy and QEMU.

    Args:
        size: memory of the guest, a multiple of 1MiB.
        streams: data connections, and as many connections of the bare loops; 0 is one connection for all.
        runs: turns of each way; medians are shown.
        against: measure QEMU as well, in its better one of one channel and multifd with two.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    need(against)
    memories, conditions = random_memory(size)
    bulk = Bulk("tls", memories, TLS_BOUNDS, conditions, tls=True, streams=streams)
    bulk.run(runs, against, Output(json=json), write)
