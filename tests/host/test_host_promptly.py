from __future__ import annotations

import threading

import pytest
import trio

from sterna.host import promptly
from sterna.host.promptly import run_promptly


async def test_a_short_call_is_waited_for_as_a_thread_waits() -> None:
    here = threading.get_ident()
    assert await run_promptly(threading.get_ident) != here


async def test_what_it_raises_is_raised() -> None:
    def fail() -> None:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        await run_promptly(fail)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_event_loop_does_not_stand_still_for_a_long_one(
    monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """And cancellation does not cut it short."""
    monkeypatch.setattr(promptly, "AT_ONCE_S", 0.0)
    may_end, ended = threading.Event(), False

    def work() -> str:
        may_end.wait()
        return "done"

    async def let_it_end() -> None:
        may_end.set()

    async with trio.open_nursery() as nursery:
        if cancelled:
            nursery.start_soon(lambda: _cancel(nursery))
        nursery.start_soon(let_it_end)
        assert await run_promptly(work) == "done"
        ended = True
    assert ended


async def test_an_interrupt_does_not_come_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows would be made beside a call that goes on."""
    start, protected = trio.lowlevel.start_thread_soon, []

    def begun(*arguments: object) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())
        start(*arguments)

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", begun)
    await run_promptly(int)
    assert protected == [True]


async def _cancel(nursery: trio.Nursery) -> None:
    nursery.cancel_scope.cancel()


async def test_nothing_is_begun_for_who_is_cancelled() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await run_promptly(lambda: pytest.fail("it was begun"))
    assert scope.cancelled_caught
