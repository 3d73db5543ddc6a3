"""What endpoints can be told, and what follows from that. The rest is shown where endpoints run."""

from __future__ import annotations

import pytest

from sterna.core.negotiate import FOLLOW_FEATURES
from sterna.errors import ConfigError
from sterna.limits import BATCH_BYTES, CHUNK_BYTES, LARGE_BATCH_BYTES, STREAMS_MAX
from sterna.net import streams
from sterna.net.options import (
    Compress,
    Options,
    batch_bytes,
    limiter,
    most_streams,
    offer,
    supported,
    with_streams,
)
from sterna.registry import Feature


def test_a_source_offers_what_it_can_and_insists_on_what_it_needs() -> None:
    """[NEG-10] [MEM-21]"""
    plain = {each.id for each in offer(Options(), "stop-and-copy", dials=False)}
    assert not plain & {*FOLLOW_FEATURES, Feature.RESUME, Feature.LEASE_STORE, Feature.UNHASHED}
    all_of_it = offer(Options(lease_store=True, resume_s=9), "bitmap", dials=True)
    more = {each.id: (each.required, each.parameter) for each in all_of_it if each.id not in plain}
    assert more == {
        Feature.BITMAP: (True, 0),
        Feature.RESUME: (False, 9),
        Feature.LEASE_STORE: (True, 0),
    }
    three = {each.id: each.parameter for each in offer(Options(streams=3, resume_s=0), "auto", dials=True)}
    assert three[Feature.DATA_STREAMS] == 3
    assert Feature.RESUME not in three
    assert Feature.DATA_STREAMS not in {
        each.id for each in offer(Options(streams=3), "stop-and-copy", dials=False)
    }
    for dials in (True, False):
        bare = {each.id: each for each in offer(Options(verified=False), "stop-and-copy", dials=dials)}
        assert not bare[Feature.UNHASHED].required
        assert bare[Feature.HASH_XXH3_64].required
    single = Options(early_pages=True, streams=1)
    assert Feature.EARLY_PAGES in {each.id for each in offer(single, "bitmap", dials=True)}
    for options, switchover, dials in (
        (Options(streams=1), "bitmap", True),
        (single, "stop-and-copy", True),
        (single, "bitmap", False),
        (Options(early_pages=True), "bitmap", True),
        (Options(early_pages=True, streams=1, bandwidth_bytes_s=1e6), "bitmap", True),
    ):
        assert Feature.EARLY_PAGES not in {each.id for each in offer(options, switchover, dials=dials)}
    for count in (-1, 17):
        with pytest.raises(ConfigError, match="there are at most 16"):
            Options(streams=count)


def test_the_number_of_data_connections_is_said_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "window_bytes", lambda: 4 << 20)
    auto = Options(streams=None)
    for options, switchover, rtt_s, count in (
        (auto, "stop-and-copy", None, 0),
        (auto, "auto", None, 1),
        (auto, "bitmap", 0.01, 3),
        (Options(streams=None, bandwidth_bytes_s=200e6), "stop-and-copy", 0.1, 5),
        (Options(streams=2), "bitmap", 0.1, 2),
        (Options(), "bitmap", 0.1, 0),
    ):
        assert with_streams(options, switchover, rtt_s).streams == count
    assert [most_streams(Options(streams=count)) for count in (None, 0, 3)] == [STREAMS_MAX, 0, 3]
    assert Feature.DATA_STREAMS not in {each.id for each in offer(auto, "bitmap", dials=True)}


def test_a_destination_selects_what_its_host_and_guests_can() -> None:
    """[NEG-10] [NEG-11] [MEM-21]"""
    plain = supported(Options(), finds=False)
    assert supported(Options(post_copy=True), finds=False) == plain | FOLLOW_FEATURES
    more = {Feature.RESUME, Feature.DATA_STREAMS, Feature.LEASE_STORE}
    assert supported(Options(lease_store=True), finds=True) == plain | more
    assert supported(Options(verified=False), finds=False) == plain | {Feature.UNHASHED}
    assert Feature.UNHASHED not in plain
    assert Feature.EARLY_PAGES in supported(Options(early_pages=True, post_copy=True), finds=True)
    for options, finds in (
        (Options(early_pages=True, post_copy=True), False),
        (Options(early_pages=True), True),
        (Options(post_copy=True), True),
    ):
        assert Feature.EARLY_PAGES not in supported(options, finds=finds)


def test_a_cap_makes_batches_small_and_must_not_be_too_low() -> None:
    assert limiter(Options()) is None
    assert limiter(Options(bandwidth_bytes_s=1e6)) is not None
    assert batch_bytes(Options(bandwidth_bytes_s=1e6), plain=True) == CHUNK_BYTES
    assert batch_bytes(Options(bandwidth_bytes_s=1e7), plain=True) == 500_000
    assert batch_bytes(Options(batch_bytes=4096), plain=True) == 4096


def test_batches_are_large_where_nothing_is_done_to_them_but_hashing():
    assert batch_bytes(Options(), plain=True) == LARGE_BATCH_BYTES
    assert batch_bytes(Options(), plain=False) == BATCH_BYTES
    assert batch_bytes(Options(compress=Compress.AUTO), plain=True) == BATCH_BYTES
    assert batch_bytes(Options(compress=Compress.ALWAYS, batch_bytes=4096), plain=True) == 4096
    with pytest.raises(ConfigError, match="the least is"):
        Options(bandwidth_bytes_s=100)
