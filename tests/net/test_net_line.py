"""Migrations over several connections: every one is a pair of memory transports."""

from __future__ import annotations

import pytest
from resume_net_support import Resuming
from trio.abc import Clock

from sterna.core import shares
from sterna.core.events import Outcome, StreamAttached

NEVER = 1 << 40


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    return autojump_clock


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    monkeypatch.setattr(shares, "BLOCK_BYTES", 2 * 4096)


def migration(streams: int, **changes) -> Resuming:
    options = {"streams": streams}
    return Resuming(
        **{"cuts": (NEVER,), "source_options": dict(options), "destination_options": dict(options)} | changes
    )


@pytest.mark.parametrize("streams", [1, 4])
async def test_a_migration_over_data_connections(virtual_time, streams):
    """[STR-1] [STR-2] [same-memory]"""
    moved = await migration(streams).run()
    moved.check_moved()
    moved.check_moved()
    attached = [event for event in moved.events if isinstance(event, StreamAttached)]
    assert sorted(event.stream for event in attached) == list(range(1, streams + 1))
    assert [other.result.outcome for other in moved.others] == [Outcome.JOINED] * streams
    assert all(other.took_up for other in moved.others)
