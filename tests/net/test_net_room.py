"""The room of a guest at its destination. Whole migrations: test_net_endpoint_following.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from sterna.core.events import Installed, Request, SaveState
from sterna.errors import GuestError
from sterna.guest.api import PromptGuest
from sterna.net.room import Prompt, Room, tell_faults
from sterna.wire.records import PageRange


class Told:
    """A machine and its pump, as far as they are told of faults."""

    def __init__(self, *requests: Request) -> None:
        self.faults: list[tuple[int, int, int, float]] = []
        self.kicks = 0
        self.requests = list(requests)
        self.answers: list[tuple[Request, object]] = []

    @property
    def prompt_request(self) -> Request | None:
        return self.requests[0] if self.requests else None

    def poll_request(self) -> Request:
        return self.requests.pop(0)

    def complete(self, request: Request, answer: object, now: float) -> None:
        self.answers.append((request, answer))

    fail = complete

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


class Quick:
    """A guest that waits for one page, and where letting pages of region 9 go takes its time."""

    def __init__(self, error: GuestError | None = None) -> None:
        self.waits = [PageRange(0, 3, 1)]
        self.let_gone: list[tuple[int, int, int]] = []
        self.error = error

    def waited_for(self) -> list[PageRange]:
        if self.error is not None:
            raise self.error
        waits, self.waits = self.waits, []
        return waits

    def let_go(self, region: int, first: int, count: int) -> bool:
        if self.error is not None:
            raise self.error
        self.let_gone.append((region, first, count))
        return region != 9


def test_a_guest_is_seen_to_at_once() -> None:
    """[PCY-12] What has to wait stays with who may wait, and what comes behind it too."""
    now = Installed((PageRange(0, 0, 16), PageRange(1, 0, 1)))
    later = Installed((PageRange(9, 0, 1),))
    told, guest = Told(now, later, now), Quick()
    assert isinstance(guest, PromptGuest)
    prompt = Prompt(guest, told, lambda: 7.0)
    assert prompt.tell()
    prompt.see_to()
    assert told.faults == [(0, 3, 1, 7.0)]
    assert told.answers == [(now, None)]
    assert told.requests == [later, now]
    told = Told(SaveState(), now)
    prompt = Prompt(guest, told, lambda: 7.0)
    assert not prompt.tell()
    prompt.see_to()
    assert told.faults == told.answers == []


def test_a_guest_that_cannot_be_seen_to(monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("sterna.net.room._log.exception", said.append)
    request = Installed((PageRange(0, 0, 16),))
    told, guest = Told(request, request), Quick(GuestError("gone"))
    prompt = Prompt(guest, told, lambda: 7.0)
    for _ in range(2):
        assert not prompt.tell()
        prompt.see_to()
    assert told.answers == [(request, guest.error)] * 2
    assert len(said) == 1


def test_a_room_that_is_closed_takes_nothing() -> None:
    room = Room(SimpleNamespace(early_pages=3))
    room.close()
    assert room.early_pages == 3
    room.spare(object())  # does no harm any more
    for use in (room.targets, room.commit):
        with pytest.raises(AssertionError):
            use(object())
