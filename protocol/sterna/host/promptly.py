"""A short blocking call for which a guest stands still: made in a thread, and waited for as a thread waits.

To go back to the event loop, and to be woken by it, takes longer than a disk takes for a record. So the loop
stands still as well, but for no more than `AT_ONCE_S`: a call that takes longer is waited for as any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

# More than a good disk needs; no peer, holder or person notices that nobody has answered for so long. A guest
# does that runs already, if its pages come by way of the same loop: it waits for one for as much longer.
AT_ONCE_S: Final = 0.002


@trio.lowlevel.enable_ki_protection
async def run_promptly(work: Callable[[], T]) -> T:
    """Make the call in a thread; what it returns or raises.

    Neither a cancellation nor an interrupt cuts it short: who makes the next call may rely on this one's end.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    made: list[T] = []
    failed: list[BaseException] = []
    ended = threading.Lock()
    ended.acquire()

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            failed.append(error)

    trio.lowlevel.start_thread_soon(run, lambda _: ended.release())
    if not ended.acquire(timeout=AT_ONCE_S):
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(ended.acquire)
    if failed:
        raise failed.pop()
    return made.pop()
