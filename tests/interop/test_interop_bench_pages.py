"""`sterna bench pages` does the work that it names: each of its turns can be called, and changes nothing."""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pytest

from sterna.cli.main import main
from sterna_interop.bench_pages import Encoding, bitmaps, random_bitmap, regions
from sterna_interop.measuring import BARE, OURS


def test_one_object(capsys):
    assert main(["bench", "pages", "--guest", "64MiB", "--region", "1MiB", "--runs", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = {"bitmap_or", "bitmap_runs_full", "encode_zero", "commit_random", "digest_scattered"}
    assert names <= set(found["measures"])
    assert {f"{name}_vs_bare" for name in found["measures"]} == set(found["ratios"])


def test_every_turn_can_be_taken():
    for measures in chain([list(bitmaps(4096))], regions(1 << 20)):
        for measure in measures:
            assert set(measure.ways) == {OURS, BARE}
            assert all(turn() >= 0 for turn in measure.ways.values())


def test_pages_that_are_not_in_place_are_noticed():
    region = Encoding(1 << 20)
    region.content[:] = 7
    everything = random_bitmap(region.pages, 1.0, np.random.default_rng(1))
    tables = region.encode(everything)
    with pytest.raises(RuntimeError, match="rejected"):
        region.commit(tables)
