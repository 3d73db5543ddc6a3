"""Whole migrations in virtual time, with links and guests that a test machine does not have."""

from __future__ import annotations

import pytest

from sterna.core import sending
from sterna.core.events import Persist
from sterna.core.policy import PolicySettings
from sterna.errors import GuestError
from sterna.registry import ErrorCode
from sterna.sim import Hosts, LinkSettings, Migration, Writes

MIB, GIB = 1 << 20, 1 << 30
SLOW = LinkSettings(12.5e6, 0.001)


def test_a_quiet_guest_moves_in_the_time_that_its_memory_takes():
    found = Migration(64 * MIB, Writes(), SLOW).run()
    assert found.moved
    assert found.code is None
    assert len(found.rounds) == 1
    assert found.seconds == pytest.approx(64 * MIB / 12.5e6, rel=0.05)
    assert found.downtime_s == pytest.approx(0.02, abs=0.01)
    assert found.stale_pages == 0


def test_a_writing_guest_takes_rounds():
    found = Migration(64 * MIB, Writes(6e6, 32 * MIB), SLOW).run()
    assert found.moved
    assert len(found.rounds) > 2
    assert found.downtime_s < 0.35
    assert found.downtime_s == pytest.approx(found.predicted_s, abs=0.05)
    assert found.carried_bytes > 64 * MIB


def test_zeros_cost_nothing():
    found = Migration(GIB, Writes(), SLOW, filled=0.01).run()
    assert found.moved
    assert found.carried_bytes < 0.02 * GIB


def test_a_guest_that_is_too_fast_stays():
    policy = PolicySettings(max_throttle=0, max_rounds=3)
    migration = Migration(64 * MIB, Writes(100e6, 64 * MIB), SLOW, policy)
    found = migration.run()
    assert not found.moved
    assert found.code is ErrorCode.NOT_CONVERGING
    assert len(found.rounds) == 3
    assert found.downtime_s is None
    assert migration.guest.running


def test_what_is_written_again_before_its_turn_is_not_sent(monkeypatch):
    """A guest that writes twice as fast as the link carries costs a third less, and moves sooner."""
    link, policy = LinkSettings(125e6, 0.0002), PolicySettings(allowed_downtime_s=0.05)
    found = []
    for look_bytes in (1 << 60, MIB):
        monkeypatch.setattr(sending, "LOOK_BYTES", look_bytes)
        found.append(Migration(64 * MIB, Writes(250 * MIB, 32 * MIB), link, policy).run())
    without, looking = found
    assert without.moved
    assert looking.moved
    assert looking.stale_pages == 0
    assert looking.carried_bytes < 0.75 * without.carried_bytes
    assert looking.seconds < 0.75 * without.seconds
    assert looking.downtime_s < 0.06


def test_the_same_seed_gives_the_same_migration():
    link = LinkSettings(12.5e6, 0.001, jitter_s=0.02)
    first, again, other = (
        Migration(8 * MIB, Writes(6e6, 4 * MIB), link, seed=seed).run().seconds for seed in (1, 1, 2)
    )
    assert first == again != other


def test_slow_hosts_make_the_downtime_longer():
    quick = Migration(8 * MIB, Writes(), SLOW).run()
    slow = Migration(8 * MIB, Writes(), SLOW, hosts=Hosts(request_s=0.02, state_bytes=1 * MIB)).run()
    assert slow.downtime_s > quick.downtime_s + 8 * 0.019 + 0.08


def test_time_of_a_collect_may_grow_with_the_memory():
    quick = Migration(8 * MIB, Writes(), SLOW).run()
    slow = Migration(8 * MIB, Writes(), SLOW, hosts=Hosts(page_s=0.001)).run()
    # One is made while the last pages and ROUND_ACK are on their way, the other one while the guest stands.
    assert slow.seconds > quick.seconds + 1.5 * 0.1
    assert slow.downtime_s > quick.downtime_s + 0.1


def test_a_slow_link_is_no_silence():
    """A batch may be on its way for longer than silence is allowed: its parts are signs of life [CON-75]."""
    policy = PolicySettings(allowed_downtime_s=5.0)
    found = Migration(4 * MIB, Writes(), LinkSettings(100e3, 0.3, 0.1), policy).run()
    assert found.moved
    assert found.seconds > 40


def test_what_hosts_cannot_do_is_told(monkeypatch):
    def full(self, request):
        if isinstance(request, Persist):
            raise GuestError("no room", ErrorCode.RECORD_FAILED)
        return original(self, request)

    original = Migration._of_source
    monkeypatch.setattr(Migration, "_of_source", full)
    found = Migration(MIB, Writes(), SLOW).run()
    assert found.code is ErrorCode.RECORD_FAILED
    assert not found.moved


def test_stale_pages_are_counted(monkeypatch):
    monkeypatch.setattr("sterna.sim.guest.PhantomGuest.commit", lambda self, table, *, hashed: [])
    assert Migration(MIB, Writes(), SLOW).run().stale_pages == 16


def test_a_migration_without_an_end_is_given_up(monkeypatch):
    monkeypatch.setattr("sterna.sim.migration._EVENTS_MAX", 10)
    with pytest.raises(RuntimeError, match="no end after 10 events"):
        Migration(MIB, Writes(), SLOW).run()
    migration = Migration(MIB, Writes(), SLOW)
    monkeypatch.setattr(migration.destination, "poll_timeout", lambda: None)
    with pytest.raises(RuntimeError, match="nothing will ever happen again"):
        migration._next_event()


@pytest.mark.slow
def test_a_guest_far_larger_than_this_machine():
    """[CON-36] 16 GiB over 100 Gbit/s."""
    found = Migration(16 * GIB, Writes(1e9, 2 * GIB, 0.01), LinkSettings(12.5e9, 0.0001), filled=0.1).run()
    assert found.moved
    assert found.stale_pages == 0
    assert found.downtime_s < 0.3
