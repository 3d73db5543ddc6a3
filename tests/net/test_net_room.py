"""The room of a guest at its destination. Whole migrations: test_net_endpoint_following.py."""

from __future__ import annotations

import pytest
import trio

from sterna.errors import GuestError
from sterna.net.room import Room, tell_faults
from sterna.wire.records import PageRange


class Told:
    """A machine and its pump, as far as they are told of faults."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, int, int, float]] = []
        self.kicks = 0

    def fault(self, region: int, first: int, count: int, now: float) -> None:
        self.faults.append((region, first, count, now))

    def kick(self) -> None:
        self.kicks += 1


class Waiting:
    """A guest that waits for these pages, then for nothing, or breaks."""

    def __init__(self, *answers: list[PageRange] | GuestError) -> None:
        self.answers = list(answers)

    async def faults(self) -> list[PageRange]:
        if not self.answers:
            await trio.sleep_forever()
        answer = self.answers.pop(0)
        if isinstance(answer, GuestError):
            raise answer
        return answer


async def test_what_a_guest_waits_for_is_told(autojump_clock) -> None:
    """[PCY-9] Until the session is over."""
    told, guest = Told(), Waiting([PageRange(0, 3, 1), PageRange(1, 5, 2)], [PageRange(0, 9, 1)])
    with trio.move_on_after(5):
        await tell_faults(guest, told, told.kick, lambda: 7.0)
    assert told.faults == [(0, 3, 1, 7.0), (1, 5, 2, 7.0), (0, 9, 1, 7.0)]
    assert told.kicks == 2


async def test_a_guest_that_breaks_is_told_of_and_not_asked_again(monkeypatch) -> None:
    told, said = Told(), []
    monkeypatch.setattr("sterna.net.room._log.exception", said.append)
    await tell_faults(Waiting(GuestError("gone")), told, told.kick, lambda: 0.0)
    assert said == ["the guest does not say any more what it waits for"]
    assert told.kicks == 0


def test_a_room_that_is_closed_takes_nothing() -> None:
    room = Room(object())
    room.close()
    for use in (room.targets, room.commit):
        with pytest.raises(AssertionError):
            use(object())
