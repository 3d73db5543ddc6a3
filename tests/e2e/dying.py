"""A `sterna` command that is killed at a moment that no signal from outside could hit.

``python dying.py POINT ARGUMENTS`` runs the command; at the point it sends itself SIGKILL: no handler runs,
no file is closed, as when the power goes. Points are ``mark``, ``claim`` (the store has named the slot),
``run`` (before the holder is asked) and the kinds of durable records, each right behind what it names.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable

from sterna.cli.main import main
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.host.agent import HostSession
from sterna.host.records_keeper import GuestRecords


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def behind(kind: type, method: str, dies: Callable[..., bool]) -> None:
    """Die when this method has done its work."""
    done: Callable[..., Awaitable[object]] = getattr(kind, method)

    async def do(self: object, *arguments: object) -> object:
        answer = await done(self, *arguments)
        if dies(*arguments):
            die()
        return answer

    setattr(kind, method, do)


def arm(point: str) -> None:
    match point:
        case "mark":
            behind(HolderSourceGuest, "mark_granted", lambda _: True)
        case "claim":
            behind(HostSession, "claim", lambda *_: True)
        case "run":

            async def run(*_: object) -> None:
                die()

            HolderDestinationGuest.run = run  # type: ignore[method-assign,assignment]
        case _:
            behind(GuestRecords, "append", lambda record: record.kind == point)


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
