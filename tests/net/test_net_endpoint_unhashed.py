"""Endpoints whose pages go without hashes, because both were told so."""

from __future__ import annotations

import pytest
import trio
from endpoint_support import Migration, at_once
from trio.abc import Clock

from sterna.memory import packing, pages, unpacking
from sterna.net import steady
from sterna.net.options import Compress

BARE: dict[str, object] = {"verified": False}


@pytest.mark.parametrize("compress", list(Compress))
async def test_nobody_hashes_a_page(
    compress: Compress, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[MEM-20] [PGS-26] Compressed or not, and then without changes of what was sent before."""
    for module in (pages, packing, unpacking, steady):
        monkeypatch.delattr(module, "xxh3_64_intdigest")
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)  # a worker's time would not be virtual
    there = BARE | {"post_copy": True}
    migration = Migration(source_options=BARE | {"compress": compress}, destination_options=there)
    await migration.run()
    migration.check_moved()
    assert [result.verified for result in migration.results.values()] == [False, False]


@pytest.mark.parametrize("sides", [(BARE, {}), ({}, BARE)], ids=["source", "destination"])
async def test_one_side_alone_changes_nothing(
    sides: tuple[dict[str, object], dict[str, object]], autojump_clock: Clock
) -> None:
    """[MEM-21] [NEG-5]"""
    migration = Migration(source_options=sides[0], destination_options=sides[1])
    await migration.run()
    migration.check_moved()
    assert [result.verified for result in migration.results.values()] == [True, True]
