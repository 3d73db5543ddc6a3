"""`sterna bench memory`: how fast random memory moves over plain TCP, and what that costs.

Bare loops check nothing, or make the same hash passes at both ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sterna.cli.output import Output
from sterna.cli.units import Json, Size
from sterna_interop.bulk import SIZE_BYTES, Bulk, random_memory
from sterna_interop.measuring import BARE_HASH, QEMU, Bound, Runs, at_least
from sterna_interop.transfers import Against, Write, need

BOUNDS: Final[Mapping[str, Bound]] = {QEMU: at_least(1.0, 1.5), BARE_HASH: at_least(0.9, 0.95)}


def memory(
    *, size: Size = SIZE_BYTES, runs: Runs = 5, against: Against = None, write: Write = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Random memory over plain TCP, beside bare socket loops, a plain copy and QEMU.

    Args:
        size: memory of the guest, a multiple of 1MiB.
        runs: turns of each way; medians are shown.
        against: measure QEMU as well, in its better one of one channel and multifd with two.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    need(against)
    memories, conditions = random_memory(size)
    bulk = Bulk("memory", memories, BOUNDS, conditions)
    bulk.run(runs, against, Output(json=json), write)
