"""Which pages travel on which data connection: a map that is fixed for a session [STR-7].

Regions are cut into blocks, which go round the connections in turn. A block is so long that batches and the
memory accesses of both sides stay long, and so short that what a guest writes again and again, often a few
hundred mebibytes in one place, is spread over all of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from sterna.memory.regions import PageSets, RegionTable

BLOCK_BYTES: Final = 4 << 20


def page_shares(table: RegionTable, streams: int) -> dict[int, PageSets]:
    """The pages of each stream, 1 to `streams`."""
    shares = {stream: PageSets(table) for stream in range(1, streams + 1)}
    block = 0
    for region in table.copied:
        step = max(BLOCK_BYTES >> region.granule_log2, 1)
        starts = np.arange(0, region.pages, step, dtype=np.int64)
        counts = np.minimum(step, region.pages - starts)
        turn = (block + np.arange(len(starts))) % streams
        for stream, share in shares.items():
            mine = turn == stream - 1
            share[region.id].set_runs(starts[mine], counts[mine])
        block += len(starts)
    return shares
