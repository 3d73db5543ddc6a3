"""`sterna bench sparse`: a guest of which most memory was never written.

What has content is random, in pieces all over the memory. QEMU reads all of it to find that out, and reading
a hole of shared memory would give it a page: so its source has zeros there, in memory that is touched, while
Sterna's has holes. The bare loop knows where the content is, and moves nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number

from sterna.cli.output import Output
from sterna.cli.units import Json, Size
from sterna.core.words import share_text, size_text
from sterna.errors import ConfigError
from sterna_interop.bulk import Bulk, Conditions
from sterna_interop.measuring import QEMU, Bound, Runs, at_most
from sterna_interop.memories import Memories
from sterna_interop.transfers import Against, Write, need

SIZE_BYTES: Final = 8 << 30
EXTENT_BYTES: Final = 2 << 20
BOUNDS: Final[Mapping[str, Bound]] = {QEMU: at_most(1 / 3, 0.1)}

Written = Annotated[float, Parameter(validator=Number(gt=0, lte=1))]


def sparse(
    *, size: Size = SIZE_BYTES, written: Written = 0.1, runs: Runs = 5, against: Against = None,
    write: Write = None, json: Json = False,
) -> None:  # fmt: skip
    """A guest of which nine tenths were never written, beside a bare loop over the rest and QEMU.

    Args:
        size: memory of the guest, a multiple of 1MiB.
        written: the share of it that has content.
        runs: turns of each way; medians are shown.
        against: measure QEMU as well, in its better one of one channel and multifd with two.
        write: file for the table, interop/BENCHMARKS.md; the benchmark's last one there is replaced.
        json: one JSON object on stdout.
    """
    need(against)
    memories = Memories(size, extents(size, written))
    conditions: Conditions = {
        "memory": f"{size_text(size)}, {share_text(written)} of it random, the rest never written; "
        "for QEMU's source touched and zero, since reading would give it pages"
    }
    Bulk("sparse", memories, BOUNDS, conditions, rate=False, hashed=False).run(
        runs, against, Output(json=json), write
    )


def extents(size_bytes: int, share: float) -> list[tuple[int, int]]:
    """Pieces of `EXTENT_BYTES`, evenly over a memory, that make up this share of it.

    Raises:
        ConfigError: the memory is too small for one.
    """
    step = int(EXTENT_BYTES / share) & ~4095
    found = [(offset, EXTENT_BYTES) for offset in range(0, size_bytes - EXTENT_BYTES + 1, step)]
    if not found:
        raise ConfigError(f"{size_text(size_bytes)} is too small: {size_text(EXTENT_BYTES)} or more")
    return found
