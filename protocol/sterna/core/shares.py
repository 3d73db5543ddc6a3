"""Which pages lie together, and travel on which data connection: a map that is fixed for a session [STR-7].

Regions are cut into blocks, which go round the connections in turn. A block is so long that batches and the
memory accesses of both sides stay long, and so short that what a guest writes again and again, often a few
hundred mebibytes in one place, is spread over all of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from sterna.memory.regions import PageSets, RegionTable

BLOCK_BYTES: Final = 4 << 20
# What a guest has written says something of what lies so near.
NEAR_BYTES: Final = 8 << 20


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


def around(pages: PageSets) -> PageSets:
    """All pages of the blocks of `NEAR_BYTES` in which any of these lies."""
    near = PageSets(pages.table)
    for number, (first, count) in pages.runs():
        region = pages.table[number]
        step = max(NEAR_BYTES >> region.granule_log2, 1)
        edges = np.zeros(region.pages // step + 2, dtype=np.int64)
        np.add.at(edges, first // step, 1)
        np.subtract.at(edges, (first + count - 1) // step + 1, 1)
        starts = np.flatnonzero(np.cumsum(edges)) * step
        near[number].set_runs(starts, np.minimum(step, region.pages - starts))
    return near
