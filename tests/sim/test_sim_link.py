"""A link carries at its bandwidth, in order, and takes no more than its buffer."""

from __future__ import annotations

import random

import pytest

from sterna.sim.link import PART_S, Link, LinkSettings


def link(**changes):
    return Link(
        LinkSettings(**{"bandwidth_bytes_s": 1000.0, "latency_s": 0.5, "buffer_bytes": 2000} | changes),
        random.Random(1),
    )


def test_bytes_arrive_after_they_were_sent_and_had_their_way():
    made = link()
    assert made.send(100, 0.0) == [(pytest.approx(0.6), 100)]
    assert made.send(100, 0.0) == [(pytest.approx(0.7), 100)]
    assert made.send(100, 9.0) == [(pytest.approx(9.6), 100)]
    assert made.carried_bytes == 300
    assert made.settings.rtt_s == 1.0


def test_what_is_long_arrives_in_parts():
    parts = link().send(1000, 0.0)
    assert sum(size for _, size in parts) == 1000
    assert [size for _, size in parts] == [1000 * PART_S] * 4
    assert parts[-1][0] == pytest.approx(1.5)


def test_a_full_link_takes_no_more():
    made = link()
    made.send(3000, 0.0)
    assert made.room_at(0.0) == pytest.approx(1.0)
    assert made.room_at(5.0) == 5.0


def test_jitter_delays_and_never_overtakes():
    made = link(jitter_s=2.0)
    arrivals = [made.send(1, 0.001 * each)[0][0] for each in range(200)]
    assert arrivals == sorted(arrivals)
    assert len(set(arrivals)) > 5
    assert all(at >= 0.5 for at in arrivals)
