"""Pace and wishes, with a guest that is a counter. In virtual time where time matters."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from sterna.errors import GuestError
from sterna.guest import guest_thread as module
from sterna.guest.guest_thread import GRANT_PAGES, GuestThread, Wish, holder_cpu_s

WITHIN_S = 30.0


class Clock:
    """Time that passes where a guest writes or sleeps, and a nanosecond a look."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        self.now += 1e-9
        return self.now

    def thread_time(self) -> float:
        """What a thread has spent at its end."""
        return 0.25

    def process_time(self) -> float:
        return 1.0

    def pthread_getcpuclockid(self, _: int) -> int:
        return 7

    def clock_gettime(self, clock: int) -> float:
        """What a thread has spent that goes on."""
        return {7: 0.125}[clock]


class Counter(GuestThread):
    """Writes `pace_s` a page; ends itself when `until_s` have passed."""

    def __init__(self, clock: Clock, rate_pages_s: float, pace_s: float, until_s: float) -> None:
        super().__init__("a counter", rate_pages_s, self.note)
        self.clock = clock
        self.pace_s = pace_s
        self.until_s = until_s
        self.events: list[str] = []
        self.written = 0
        self.wrong: BaseException | None = None
        self._thread.start()

    def note(self, event: str) -> None:
        self.events.append(event)

    def _written(self) -> int:
        return self.written

    def _run_until_told(self) -> None:
        self._begin()
        first = True
        while granted := self._grant(first=first):
            if self.wrong is not None:
                raise self.wrong
            first = False
            self.clock.now += granted * self.pace_s
            self.written += granted
            self._wrote()
            self._look()
        self._end()

    def _sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.clock.now += seconds
        self._look()

    def _look(self) -> None:
        if self.clock.now >= 100.0 + self.until_s:
            self._wish = Wish.PARK


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def run(
    clock: Clock, rate_pages_s: float, pace_s: float, share: float = 0.0, until_s: float = 2.0
) -> Counter:
    counter = Counter(clock, rate_pages_s, pace_s, until_s)
    counter.throttle(share)
    counter.run("run")
    with counter._condition:
        assert counter._condition.wait_for(lambda: counter.written and counter._parked, WITHIN_S)
    counter.stop()
    assert not counter._thread.is_alive()
    return counter


@pytest.mark.parametrize(
    ("rate", "pace_s", "share", "expected"),
    [
        (10_000, 1e-6, 0.0, 10_000),
        (10_000, 1e-6, 0.75, 2_500),
        (10_000, 1e-3, 0.0, 1_000),  # it does not come up to its rate
        (10_000, 1e-3, 0.75, 250),  # and is throttled all the same
        (0, 1e-4, 0.0, 10_000),
        (0, 1e-4, 0.9, 1_000),
        (1e9, 1e-6, 0.99, 10_000),
    ],
)
def test_rates_and_shares(clock: Clock, rate: float, pace_s: float, share: float, expected: int) -> None:
    counter = run(clock, rate, pace_s, share)
    assert abs(counter.written / 2.0 - expected) <= 0.02 * expected + GRANT_PAGES
    (start, first), (end, last) = counter.samples
    assert 0.0 <= start < end <= counter.running_s
    assert first < last == counter.written
    assert counter.events[0] == "run"
    assert {"run", "beat"} == set(counter.events)


def test_the_first_write_stands_alone_and_costs_like_any_other(clock: Clock) -> None:
    counter = run(clock, 0.1, 1e-6, until_s=19.0)
    assert counter.written == 1
    assert run(Clock(), 0.0, 1e-6, until_s=0.0).written == 1


def test_a_thread_that_was_held_up_catches_up_on_a_tenth_of_a_second(clock: Clock) -> None:
    counter = Counter(clock, 10_000, 0.0, 1.0)
    counter._earned_until = counter._granted_at = clock.now
    clock.now += 50.0
    written = 0
    while counter._earned(clock.monotonic())[1] <= 0:
        counter._tokens -= GRANT_PAGES
        written += GRANT_PAGES
    assert 1_000 - GRANT_PAGES <= written <= 1_001 + GRANT_PAGES
    counter.stop()


def test_what_is_given_back_can_be_granted_again(clock: Clock) -> None:
    counter = Counter(clock, 10_000, 0.0, 1.0)
    before = counter._tokens
    counter._tokens -= 5
    counter._give_back(5)
    assert counter._tokens == before
    counter.stop()


def test_a_wait_counts_as_parked(clock: Clock) -> None:
    counter = Counter(clock, 0, 1e-6, 0.0)
    with counter._condition:
        counter._condition.wait_for(lambda: counter._parked, WITHIN_S)
        counter._wish, counter._parked = Wish.RUN, False  # the thread does not get to see this
        seen: list[bool] = []
        assert counter._wait_as_if_parked(lambda: seen.append(counter._parked))
        assert (seen, counter._parked) == ([True], False)
        for told in (
            counter.tell_to_park,
            lambda: (counter.tell_to_park(), counter._set(Wish.RUN)),
        ):
            counter._wish, counter._parked = Wish.RUN, False
            assert not counter._wait_as_if_parked(told)
            assert counter._parked
        counter._wish = Wish.PARK
        assert not counter._wait_as_if_parked(lambda: seen.append(True))
    assert seen == [True]
    counter.stop()


def test_a_failure_is_named_and_ends_it(clock: Clock) -> None:
    counter = Counter(clock, 0, 1e-6, 1.0)
    counter.wrong = ZeroDivisionError("with words that are nobody's business")
    counter.run()
    counter._thread.join(WITHIN_S)
    for ask in (counter.run, counter.park):
        with pytest.raises(GuestError, match=r"a counter failed: ZeroDivisionError$"):
            ask()


def test_one_that_does_not_stop_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-10] A pause that was refused does not happen later, when nobody would resume it."""
    monkeypatch.setattr(module, "_STOP_WITHIN_S", 0.001)
    held, go_on = threading.Event(), threading.Event()

    class Holding(Counter):
        def _look(self) -> None:
            held.set()
            go_on.wait(WITHIN_S)

    counter = Holding(Clock(), 0, 1e-6, 1.0)
    counter.run("run")
    assert held.wait(WITHIN_S)
    with pytest.raises(GuestError, match="a counter does not stop"):
        counter.park()
    assert counter._wish is Wish.RUN
    go_on.set()
    monkeypatch.setattr(module, "_STOP_WITHIN_S", WITHIN_S)
    counter.park()
    counter.stop()
    assert not counter._thread.is_alive()


def test_what_a_guest_has_spent_is_not_the_holders(clock: Clock) -> None:
    """And is known when its thread has ended, too."""
    counter = Counter(clock, 10_000, 1e-6, 1.0)
    assert counter.cpu_s == 0.125
    counter.stop()
    assert counter.cpu_s == 0.25
    assert holder_cpu_s([counter, counter]) == 0.5
