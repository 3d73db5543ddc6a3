"""A guest without content: what is written is dirty, what is dirty is sent, what is sent is held."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.registry import Encoding
from sterna.sim.guest import PAGE_BYTES, PhantomGuest, Writes
from sterna.wire import DEFAULT_BOUNDS, decode_body, encode_body
from sterna.wire.rules import Bounds


def guest(pages=8, **writes):
    made = PhantomGuest(pages * PAGE_BYTES, Writes(**writes))
    made.running = True
    return made


def dirty(made):
    found = made.collect()[0]
    return [page for page in range(made.region.pages) if found.has(np.array([page]))[0]]


def test_memory_is_whole_pages():
    assert PhantomGuest(1).region.size_bytes == PAGE_BYTES
    assert PhantomGuest(3 * PAGE_BYTES + 1).region.pages == 4


def test_it_writes_what_its_rate_says_and_only_while_it_runs():
    made = guest(rate_bytes_s=2 * PAGE_BYTES, hot_bytes=4 * PAGE_BYTES)
    made.live(1.5)
    assert dirty(made) == [0, 1, 2]
    assert dirty(made) == []
    made.live(1.0)
    assert dirty(made) == [0, 3]
    made.throttle = 0.5
    made.live(1.0)
    assert dirty(made) == [1]
    made.running = False
    made.live(100.0)
    assert dirty(made) == []


def test_more_writes_than_pages_are_all_pages():
    made = guest(rate_bytes_s=100 * PAGE_BYTES, hot_bytes=3 * PAGE_BYTES)
    made.live(1.0)
    assert dirty(made) == [0, 1, 2]


def test_some_writes_go_elsewhere():
    made = guest(rate_bytes_s=4 * PAGE_BYTES, hot_bytes=2 * PAGE_BYTES, cold_share=0.25)
    made.live(2.0)
    assert dirty(made) == [0, 1, 2, 3]


def test_bursts_and_calm_add_up_to_the_rate():
    writes = Writes(rate_bytes_s=10.0, burst_s=1.0, burst_share=0.8)
    assert writes.by(1.0) == pytest.approx(16.0)
    assert writes.by(2.0) == pytest.approx(20.0)
    assert writes.by(3.5) == pytest.approx(20.0 + 16.0 + 2.0)


@given(st.lists(st.integers(0, 8), max_size=8))
def test_time_may_be_cut_anyhow(quarters):
    one, many = (guest(rate_bytes_s=4 * PAGE_BYTES, hot_bytes=5 * PAGE_BYTES) for _ in range(2))
    for count in quarters:
        many.live(count / 4)
    one.live(sum(quarters) / 4)
    assert dirty(one) == dirty(many)


def test_pages_are_encoded_as_runs_and_held_as_versions():
    made, room = PhantomGuest(8 * PAGE_BYTES, filled=0.5), PhantomGuest(8 * PAGE_BYTES, filled=1.0)
    made.versions[1] = 7
    batch = made.encode(0, [0, 6], [5, 2])
    assert [(int(run["first"]), int(run["count"]), int(run["encoding"])) for run in batch.runs] == [
        (0, 4, Encoding.RAW),
        (4, 1, Encoding.ZERO),
        (6, 2, Encoding.ZERO),
    ]
    assert (batch.page_count, batch.bulk_bytes) == (7, 4 * PAGE_BYTES)
    assert sum(map(len, batch.buffers)) == batch.bulk_bytes
    table = batch.table(1, 1)
    bounds = Bounds(limits=DEFAULT_BOUNDS.limits, regions={0: made.region})
    again = decode_body(table.type, encode_body(table, bounds), bounds)
    assert [len(view) for view in room.targets(again)] == [4 * PAGE_BYTES]
    assert room.commit(again) == []
    assert room.versions.tolist() == [1, 7, 1, 1, 0, 1, 0, 0]


def test_zeros_travel_as_bytes_where_they_must():
    whole = PhantomGuest(2 * PAGE_BYTES).encode(0, [0, 1], [1, 1], whole=True)
    assert whole.runs["count"].tolist() == [1, 1]
    batch = PhantomGuest(2 * PAGE_BYTES, filled=0.0).encode(0, [0], [2], zeros=False)
    assert batch.bulk_bytes == 2 * PAGE_BYTES
    assert batch.hashes.tolist() == [0, 0]
