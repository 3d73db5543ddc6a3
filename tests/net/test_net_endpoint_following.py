"""Endpoints whose guests run before all of their pages are there."""

from __future__ import annotations

import pytest
import trio
from test_net_endpoint import Scene

from sterna.core.events import Expect, Installed, Outcome, PagesFollow
from sterna.core.policy import PolicySettings
from sterna.errors import GuestError
from sterna.net.transport import SOON_BYTES, YIELD_BYTES
from sterna.registry import ErrorCode, Style

MIB = 1 << 20


def scene(switchover: str, *, rate_bytes_s: float = 30e6, post_copy: bool = True, **more: object) -> Scene:
    policy = PolicySettings(switchover=switchover, max_rounds=3, allowed_downtime_s=0.03)
    return Scene(
        memory_bytes=4 * MIB,
        rate_bytes_s=rate_bytes_s,
        source_options={"policy": policy},
        destination_options={"post_copy": post_copy},
        **more,
    )


@pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])
async def test_the_guest_runs_before_its_pages_are_there(switchover, autojump_clock) -> None:
    """[same-memory] [PCY-9] [PCY-13] What it waits for is asked for, and everything comes."""
    done = await scene(switchover).run()
    assert done.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)
    result = done.results["source"]
    assert result.style is (Style.BITMAP if switchover == "bitmap" else Style.POST_COPY)
    assert result.after is not None
    assert result.after.stale == result.after.demanded + result.after.pushed > 0
    assert done.results["destination"].after.requests == result.after.requests
    assert result.after.requests > 0 or switchover == "bitmap"
    assert done.room.workload.audit().errors == done.room.workload.errors == 0


async def test_a_host_that_cannot_is_not_asked_to(autojump_clock) -> None:
    """[NEG-4] [NEG-10] What the operator insists on is refused; a source that may choose does without."""
    done = await scene("bitmap", post_copy=False).run()
    assert done.outcomes[0] is Outcome.ROLLED_BACK
    assert done.results["source"].code is ErrorCode.MISSING_FEATURE
    done = await scene("auto", rate_bytes_s=1e5, post_copy=False).run()
    assert done.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert done.results["source"].style is Style.STOP_AND_COPY


async def test_auto_takes_the_bitmap_where_the_guest_is_too_fast(autojump_clock) -> None:
    """[CON-36] [converges]"""
    done = await scene("auto", rate_bytes_s=400e6, link_rate_bytes_s=20e6).run()
    assert done.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert done.results["source"].style is Style.BITMAP
    assert done.guest.machine.throttle == 0.0


async def test_a_guest_that_can_is_seen_to_between_two_receives(autojump_clock) -> None:
    """[PCY-12] The last pages are for the performer."""
    made, seen, let_gone = scene("post-copy"), [], []

    def let_go(region: int, first: int, count: int) -> bool:
        stale = made.room._expected()
        stale.installed(region, first, count)
        let_gone.append((first, count))
        return stale.any

    made.room.waited_for = lambda: ()
    made.room.let_go = let_go
    object.__setattr__(
        made.destination._options, "on_request", lambda request, **_: seen.append(type(request))
    )
    done = await made.run()
    assert done.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert len(let_gone) > 10
    assert seen.count(Installed) == 2  # before and after
    assert done.room.workload.audit().errors == 0


async def test_while_pages_follow_nobody_waits_long_for_a_turn(autojump_clock) -> None:
    for style, bytes_moved in (("post-copy", SOON_BYTES), ("stop-and-copy", YIELD_BYTES)):
        made = scene(style)
        await made.run()
        assert made.source.transport.yield_bytes == bytes_moved
        assert made.destination.transport.yield_bytes == bytes_moved


async def test_a_guest_that_falls_silent_gets_its_pages_all_the_same(autojump_clock, monkeypatch) -> None:
    """[PCY-13]"""
    said: list[str] = []
    monkeypatch.setattr("sterna.net.room._log.exception", said.append)
    made = scene("post-copy")

    async def faults() -> object:
        raise GuestError("nobody is there")

    made.room.faults = faults
    done = await made.run()
    assert done.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert done.results["destination"].after.requests == 0
    assert said


async def test_a_link_lost_while_pages_follow_strands_the_guest(autojump_clock) -> None:
    """[CON-64] [ONE-38]"""
    made = scene("post-copy", link_rate_bytes_s=5e6)
    told = made.destination._options.on_event

    def on_event(event: object) -> None:
        told(event)
        if isinstance(event, PagesFollow):
            trio.lowlevel.spawn_system_task(cut)

    async def cut() -> None:
        await trio.sleep(0.2)
        made.ends["source"].abort()

    object.__setattr__(made.destination._options, "on_event", on_event)
    made.check_one_runner = lambda: None  # it looks at all pages, and some are not there
    done = await made.run()
    assert done.outcomes == (Outcome.MOVED, Outcome.STRANDED)
    assert not done.guest.released
    assert done.room.running
    after = done.results["destination"].after
    assert 0 < after.demanded + after.pushed < after.stale


async def test_what_is_expected_and_installed_are_requests(autojump_clock) -> None:
    """[PCY-5] [PCY-12]"""
    seen: list[type] = []

    def on_request(request: object, *, done: bool) -> None:
        if done:
            seen.append(type(request))

    made = Scene(
        memory_bytes=MIB,
        source_options={"policy": PolicySettings(switchover="post-copy")},
        destination_options={"post_copy": True, "on_request": on_request},
    )
    await made.run()
    assert seen.index(Expect) < seen.index(Installed)
