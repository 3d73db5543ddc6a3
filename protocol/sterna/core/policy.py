"""When to pause the guest: the pre-copy policy, a pure function of what the rounds measured.

Round n sends what was written during round n - 1. With bandwidth B and a guest that dirties distinct
pages at the rate D, a round that begins with `x` bytes takes ``x / B + c`` seconds (`c`: round trip and
collecting) and leaves ``D * (x / B + c)``. Below D = B that shrinks to a small rest, above it never does.
The policy runs this recursion forward from the newest measurements and answers one of four things:

- the predicted downtime fits: SWITCHOVER, unless one more cheap round would make it noticeably shorter;
- the rest will fit within the rounds that are left: CONTINUE;
- it will not, and this has been so for `patience` rounds: THROTTLE, by `throttle_step` at least, to the least
  throttle at which the recursion ends soon;
- the rounds are used up, or the strongest throttle has not helped: what `on_exhausted` says.

What makes an estimate worth deciding on:

- *Bandwidth* is what the receiver measured, as a mean over the last `BANDWIDTH_WINDOW_S` seconds of
  transmission. Short rounds are mostly latency; weighted by time they cannot move the mean. The round's
  acknowledgement proves a lower bound on our own clock, and a claim far above that is cut: the number
  comes from the peer.
- *Dirty rate* counts distinct pages, so a long round understates it (a hot page counts once). It is the
  worse of the newest round and of a mean in which the newest rounds weigh most: a burst passes within
  `patience` rounds, a lull is not trusted at once. Each round is divided by the running time that its
  throttle left to the guest: what it would write unthrottled can be extrapolated to another throttle.
- *Predicted downtime* counts everything between the pause and the guest's next instruction: the pages, the
  state, the round trips, and `fixed_cost_s` for digest, durable records and the claim. Rounds make the first
  of these smaller and nothing else. So whether one more pays is asked of the time for the pages; and round
  trips that take most of what is allowed, measured perhaps where all processors were busy, are told to the
  operator, but keep nobody waiting for rounds that cannot help: `PAGES_SHARE` of what is allowed is for pages
  in any case.

An expectation is held against what came of the last one. Where processors are shared, rounds and writes come
in bursts, and rates say for many rounds that the next one will leave much less. So a round that can be done
without is made only if one of the last `patience` rounds has cut what is left.

*Soon* is within `SOON_ROUNDS`: a throttle that is only just strong enough is the dearest, because it lasts
longest, and the guest loses more of its time than by a stronger one that is over soon.

A guest's throttle is never loosened before the end: that would only write the pages again.
Statistics may be degenerate or hostile (a peer's rate, a clock that stands still): every number is clamped
to a finite range on the way in, and so everything that comes out is finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import Final, Literal, TypeAlias

from sterna.core.words import duration_text, rate_text, share_text, size_text
from sterna.errors import LocalProtocolError
from sterna.limits import DOWNTIME_LEAST_S, DOWNTIME_MOST_S, ROUNDS_MOST
from sterna.registry import ErrorCode, Style

BANDWIDTH_WINDOW_S: Final = 2.0
# The first round also pays for memory that is touched for the first time. It is left out once others have
# carried pages for so long.
FIRST_ROUND_WITHIN_S: Final = 0.15
# Gigabit Ethernet is assumed for what transmission lacks of `MEASURED_S`: less is mostly latency, and would
# make a nearly empty round look like a slow link. The error is harmless: all memory went in that time.
UNMEASURED_BANDWIDTH_BYTES_S: Final = 125e6
MEASURED_S: Final = 0.05
# A receiver's rate is believed up to this multiple of what our own clock saw: the sender's clock also
# counts the scan for zero pages and the round trip, which the receiver does not see.
CREDIBLE_FACTOR: Final = 4.0
DIRTY_RATE_GAIN: Final = 0.6  # weight of the newest round in the mean
DIRTY_RATE_ROUNDS: Final = 4
# Both rates are measured to some percent. A guest that writes nearly as fast as the link would look
# convergent every other round, and use up the rounds without ever being slowed down.
DIRTY_RATE_MARGIN: Final = 1.1
SOON_ROUNDS: Final = 5  # in which a guest that is slowed down is to be moved
# A round that shortens the downtime by less than this share, or time, is not worth its own.
NOTICEABLE: Final = 0.1
NOTICEABLE_S: Final = 0.001
# Of the allowed downtime, what pages may take whatever the round trips do.
PAGES_SHARE: Final = 0.25
# Last pages there, LOADED back, HANDOVER there: three times half a round trip.
BLACKOUT_ROUND_TRIPS: Final = 1.5

# Ranges that every number is clamped to. Nothing real is outside; products of them stay finite.
_BYTES_MAX: Final = 2.0**64
_RATE_MIN, _RATE_MAX = 1.0, 1e15
_SECONDS_MAX: Final = 1e6
_CLOCK_S: Final = 1e-4  # a shorter round tells nothing about rates
_THROTTLE_MAX: Final = 0.99  # what a guest must be able to take (guest/api.py)

# Digest: a u64 and a byte for each page, hashed on both sides, one after the other. Cold memory.
_DIGEST_BYTES_PAGE: Final = 2 * 9
_DIGEST_BYTES_S: Final = 5e9
_STORE_ANSWERS: Final = 2
_FIXED_COST_MOST_S: Final = 3600.0
_RECORDS_S: Final = 0.010  # two fsyncs in the way of the guest, on a disk rather than in memory


Switchover: TypeAlias = Literal["stop-and-copy", "bitmap", "post-copy", "auto"]
SWITCHOVERS: Final[tuple[Switchover, ...]] = ("stop-and-copy", "bitmap", "post-copy", "auto")


class Action(Enum):
    """What to do after a round."""

    CONTINUE = "continue"
    THROTTLE = "throttle"
    SWITCHOVER = "switchover"
    GIVE_UP = "give_up"


@dataclass(frozen=True, slots=True)
class RoundStats:
    """What one acknowledged round measured.

    Attributes:
        round: number of the round; for people, the policy counts the entries of the history.
        pages: pages sent.
        bulk_bytes: encoded bytes of these pages on the wire.
        seconds: from ROUND until ROUND_ACK has come and the writes are collected, on the source's clock.
        dirty_pages: pages found dirty when the round had been sent, or behind its acknowledgement.
        dirty_bytes: bytes of these pages.
        rejected_pages: pages that ROUND_ACK lists.
        receive_rate_bytes_s: ROUND_ACK's rate; 0 if the receiver could not measure one.
        throttle: share of the guest's running time that was taken away during the round.
        unpacked_bytes: what the bulk bytes stand for; 0 if they are the pages' own.
        versions_asked: source: pages of which a version that was sent was looked for, to send a change of it.
        versions_found: those of them of which one was there.
        written_s: source: how long the guest took to write the dirty pages; 0 for as long as the round took.
    """

    round: int
    pages: int
    bulk_bytes: int
    seconds: float
    dirty_pages: int
    dirty_bytes: int
    rejected_pages: int = 0
    receive_rate_bytes_s: float = 0.0
    throttle: float = 0.0
    unpacked_bytes: int = 0
    versions_asked: int = 0
    versions_found: int = 0
    written_s: float = 0.0

    def in_pages(self) -> RoundStats:
        """The same round as if its pages had not been packed, and the link as much faster."""
        if not self.bulk_bytes < self.unpacked_bytes:
            return self
        rate = self.receive_rate_bytes_s * self.unpacked_bytes / max(self.bulk_bytes, 1)
        return replace(self, bulk_bytes=self.unpacked_bytes, receive_rate_bytes_s=rate)


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What the operator wants.

    Attributes:
        allowed_downtime_s: the guest may stand still for this long.
        max_rounds: rounds of one migration, the first full copy included; 1 to 1000.
        max_throttle: the most running time that may be taken away; 0 forbids throttling.
        throttle_start: the first throttle.
        throttle_step: the least increase of a throttle; from 0.01.
        patience: rounds in a row that must look hopeless before the guest is slowed down (further).
        worthwhile_gain: with the downtime already allowed, another round is still made if it is expected
            to cut the pages' part of it by this share; 1 switches over at the first opportunity.
        fixed_cost_s: downtime that does not depend on the bytes that are left, without round trips, state
            and lease store; `estimate_fixed_cost_s` gives a figure.
        on_exhausted: "abort" leaves the guest at the source, "switch" moves it at any downtime.
        switchover: "stop-and-copy"; "bitmap" sends after the rounds which pages are missing, and the pages
            when the guest runs; "post-copy" does that without any round; "auto" is stop-and-copy where that
            meets the allowed downtime, and bitmap where it would have to slow the guest down or give up.

    Raises:
        LocalProtocolError: BAD_VALUE, for a setting out of its range.
    """

    allowed_downtime_s: float = 0.3
    max_rounds: int = 30
    max_throttle: float = _THROTTLE_MAX
    throttle_start: float = 0.2
    throttle_step: float = 0.1
    patience: int = 2
    worthwhile_gain: float = 0.25
    fixed_cost_s: float = 0.02
    on_exhausted: Literal["abort", "switch"] = "abort"
    switchover: Switchover = "stop-and-copy"

    def __post_init__(self) -> None:
        ranges: list[tuple[str, float, float]] = [
            ("allowed_downtime_s", DOWNTIME_LEAST_S, DOWNTIME_MOST_S),
            ("max_rounds", 1, ROUNDS_MOST),
            ("max_throttle", 0, _THROTTLE_MAX),
            ("throttle_start", 0.01, _THROTTLE_MAX),
            ("throttle_step", 0.01, _THROTTLE_MAX),
            ("patience", 1, 1000),
            ("worthwhile_gain", 0.1, 1),
            ("fixed_cost_s", 0, _FIXED_COST_MOST_S),
        ]
        for name, least, most in ranges:
            if not least <= getattr(self, name) <= most:
                message = f"policy: {name} must be from {least} to {most}, not {getattr(self, name)!r}"
                raise LocalProtocolError(ErrorCode.BAD_VALUE, message)
        if self.on_exhausted not in {"abort", "switch"}:
            message = f"policy: on_exhausted must be 'abort' or 'switch', not {self.on_exhausted!r}"
            raise LocalProtocolError(ErrorCode.BAD_VALUE, message)
        if self.switchover not in SWITCHOVERS:
            names = ", ".join(SWITCHOVERS)
            message = f"policy: switchover must be one of {names}, not {self.switchover!r}"
            raise LocalProtocolError(ErrorCode.BAD_VALUE, message)


DEFAULT_SETTINGS: Final = PolicySettings()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next, and why.

    Attributes:
        throttle: share of running time to take from the guest from now on; 0 after GIVE_UP.
        predicted_downtime_s: if the guest were paused now.
        bandwidth_bytes_s: the estimate that this rests on.
        dirty_rate_bytes_s: distinct pages, in bytes a second, under the throttle of the last round.
        verdict: one sentence for people.
        style: of a SWITCHOVER.
    """

    action: Action
    throttle: float
    predicted_downtime_s: float
    bandwidth_bytes_s: float
    dirty_rate_bytes_s: float
    verdict: str
    style: Style = Style.STOP_AND_COPY


def estimate_fixed_cost_s(pages: int) -> float:
    """Downtime, in seconds, that digest and durable records of a guest of so many pages cost."""
    return _RECORDS_S + max(0, pages) * _DIGEST_BYTES_PAGE / _DIGEST_BYTES_S


def with_store(settings: PolicySettings, store_s: float) -> PolicySettings:
    """The same, with what a lease store costs that took so many seconds to answer.

    The guest waits for it twice: it is asked once more before the grant [ONE-64], and it decides the claim,
    which takes no less.
    """
    cost_s = settings.fixed_cost_s + _STORE_ANSWERS * max(0.0, store_s)
    return replace(settings, fixed_cost_s=min(cost_s, _FIXED_COST_MOST_S))


def decide(
    history: Sequence[RoundStats],
    remaining_bytes: int,
    state_bytes: int,
    rtt_s: float,
    settings: PolicySettings = DEFAULT_SETTINGS,
) -> Decision:
    """What to do after the last round of `history`.

    Args:
        history: every acknowledged round of this migration, oldest first.
        remaining_bytes: what would have to be sent if the guest were paused now: dirty and rejected pages.
        state_bytes: about how much CPU and device state will be sent in the blackout.
        rtt_s: round trip time.
        settings: what the operator wants.

    Returns:
        The decision; all its numbers are finite and not negative.
    """
    view = View.of(history, state_bytes, rtt_s, settings)
    remaining = _clamp(remaining_bytes, 0, _BYTES_MAX)
    action, throttle, verdict = _choose(history, view, remaining, settings)
    return Decision(
        action, throttle, view.downtime_s(remaining), view.bandwidth, view.dirty_rate(view.throttle), verdict
    )


def _choose(
    history: Sequence[RoundStats], view: View, remaining: float, settings: PolicySettings
) -> tuple[Action, float, str]:
    used, throttle = len(history), view.throttle
    left = max(0, settings.max_rounds - used)
    if not history:
        return Action.CONTINUE, throttle, "nothing has been sent yet: copy all memory while the guest runs"
    allowed = duration_text(settings.allowed_downtime_s)
    facts = (
        f"{_left(remaining)}; at {rate_text(view.bandwidth)} and "
        f"{duration_text(view.fixed_s)} of fixed cost the guest would stop for "
        f"{duration_text(view.downtime_s(remaining))} (allowed {allowed})"
    )
    if view.fits(remaining):
        if view.downtime_s(remaining) > settings.allowed_downtime_s:
            facts += f", with round trips of {duration_text(view.rtt_s)} that no round changes"
        following = view.after_another_round(remaining)
        worthwhile = _worthwhile(view, remaining, settings) and still_shrinks(history, remaining, settings)
        if throttle > 0 or used > settings.max_rounds // 2 or not worthwhile:
            return Action.SWITCHOVER, throttle, f"{facts}: switch over"
        hope = duration_text(view.downtime_s(following))
        return Action.CONTINUE, throttle, f"{facts}; another round should bring that to {hope}: go on"
    if not left:
        return _exhausted(f"{facts}, and no round is left", throttle, settings)
    if view.room_s <= 0:
        # Slowing the guest down would not help; what is left when the rounds end decides.
        why = "the fixed cost alone is too much, which only faster records or less state would change"
        return Action.CONTINUE, throttle, f"{facts}; {why}: go on"
    writes = f"the guest writes {rate_text(view.dirty_rate(throttle))}"
    if throttle > 0:
        writes += f" with {share_text(throttle)} of its time taken away"
    needed = view.rounds_needed(remaining, throttle, left)
    if needed is not None:
        return Action.CONTINUE, throttle, f"{facts}; {writes}, which takes about {_rounds(needed)}: go on"
    return _slow_down(history, view, remaining, settings, f"{facts}; {writes}, too much for {_rounds(left)}")


def _slow_down(
    history: Sequence[RoundStats], view: View, remaining: float, settings: PolicySettings, facts: str
) -> tuple[Action, float, str]:
    """The guest writes too fast: wait a little, throttle it (more), or see that this has not helped."""
    hopeless = _hopeless_rounds(history, view, settings)
    if view.throttle >= settings.max_throttle - 1e-9:
        if settings.max_throttle == 0:
            return Action.CONTINUE, view.throttle, f"{facts}, and it may not be slowed down: go on"
        if hopeless < 2 * settings.patience:
            return Action.CONTINUE, view.throttle, f"{facts}, at the strongest throttle: go on"
        return _exhausted(f"{facts}, and the strongest throttle has not helped", view.throttle, settings)
    if hopeless < settings.patience and len(history) <= settings.max_rounds // 2:
        return Action.CONTINUE, view.throttle, f"{facts}: look at another round before slowing it down"
    throttle = _next_throttle(view, remaining, settings.max_rounds - len(history), settings)
    return Action.THROTTLE, throttle, f"{facts}: take {share_text(throttle)} of its time away"


def _exhausted(facts: str, throttle: float, settings: PolicySettings) -> tuple[Action, float, str]:
    if settings.on_exhausted == "switch":
        return Action.SWITCHOVER, throttle, f"{facts}: switch over all the same"
    return Action.GIVE_UP, 0.0, f"{facts}: give up, the guest stays here"


def _left(remaining: float) -> str:
    return f"{size_text(remaining)} are left" if remaining else "nothing is left"


def _rounds(count: int) -> str:
    return "one more round" if count == 1 else f"{count} more rounds"


def _worthwhile(view: View, remaining: float, settings: PolicySettings) -> bool:
    """Whether one more round is expected to cut the pages' part enough, and that is enough of it all."""
    now, then = remaining, view.after_another_round(remaining)
    much = then <= now * (1 - settings.worthwhile_gain)
    return much and (now - then) / view.bandwidth >= max(NOTICEABLE_S, NOTICEABLE * view.downtime_s(now))


def still_shrinks(history: Sequence[RoundStats], remaining: float, settings: PolicySettings) -> bool:
    """Whether one of the newest `patience` rounds has left as much less as a round has to be worth.

    Of a round that was cut short, so that more is left than was written, nothing is known.
    """
    newest, gain = history[-settings.patience - 1 :], settings.worthwhile_gain
    if len(newest) <= settings.patience or remaining > newest[-1].dirty_bytes * (1 + gain):
        return True
    return any(last.dirty_bytes <= before.dirty_bytes * (1 - gain) for before, last in pairwise(newest))


def _hopeless_rounds(history: Sequence[RoundStats], view: View, settings: PolicySettings) -> int:
    """How many of the newest rounds, under the throttle of today, looked as hopeless as the last one."""
    count, most = 1, 2 * settings.patience  # nobody asks for more
    for used in range(len(history) - 1, max(0, len(history) - most), -1):
        earlier, last = history[:used], history[used - 1]
        if not math.isclose(_share(last.throttle), view.throttle, abs_tol=1e-6):
            break
        then = View.of(earlier, view.state_bytes, view.rtt_s, settings)
        dirty = _clamp(last.dirty_bytes, 0, _BYTES_MAX)
        if then.rounds_needed(dirty, then.throttle, settings.max_rounds - used) is not None:
            break
        count += 1
    return count


def _next_throttle(view: View, remaining: float, left: int, settings: PolicySettings) -> float:
    """What should be enough, as the guest writes now, and one step up at least."""
    now, most, soon = view.throttle, settings.max_throttle, min(left, SOON_ROUNDS)
    enough = now
    while enough < most and view.rounds_needed(remaining, enough, soon) is None:
        enough = min(most, enough + settings.throttle_step)
    step = now + settings.throttle_step if now > 0 else settings.throttle_start
    return min(most, round(max(step, enough), 6))


@dataclass(frozen=True, slots=True)
class View:
    """What the rounds so far say, in clamped numbers.

    `writing_rate` is the dirty rate of the unthrottled guest, `round_cost_s` what a round takes besides
    its bytes, `fixed_s` the downtime that does not depend on the remaining pages, and `room_s` what of the
    allowed downtime is left for these.
    """

    bandwidth: float
    writing_rate: float
    round_cost_s: float
    throttle: float
    fixed_s: float
    room_s: float
    state_bytes: float
    rtt_s: float

    @classmethod
    def of(
        cls, history: Sequence[RoundStats], state_bytes: float, rtt_s: float, settings: PolicySettings
    ) -> View:
        """The view after these rounds; arguments as for `decide`."""
        rtt = _clamp(rtt_s, 0, _SECONDS_MAX)
        state = _clamp(state_bytes, 0, _BYTES_MAX)
        bandwidth = _bandwidth(history, rtt)
        costs = [
            max(0.0, _seconds(stats) - _clamp(stats.bulk_bytes, 0, _BYTES_MAX) / bandwidth)
            for stats in history[-3:]
        ]
        certain = settings.fixed_cost_s + state / bandwidth
        room = settings.allowed_downtime_s - certain
        return cls(
            bandwidth=bandwidth,
            writing_rate=_writing_rate(history),
            # The least of a few: a stall, or the first round's search for zero pages, is not the rule.
            round_cost_s=min(costs, default=0.0),
            throttle=_share(history[-1].throttle) if history else 0.0,
            fixed_s=certain + BLACKOUT_ROUND_TRIPS * rtt,
            room_s=max(
                room - BLACKOUT_ROUND_TRIPS * rtt, min(room, PAGES_SHARE * settings.allowed_downtime_s)
            ),
            state_bytes=state,
            rtt_s=rtt,
        )

    def downtime_s(self, remaining: float) -> float:
        """Seconds from pause to the next instruction with so many bytes to send."""
        return min(_SECONDS_MAX, self.fixed_s + remaining / self.bandwidth)

    def fits(self, remaining: float) -> bool:
        """Whether so many bytes may be sent while the guest stands still."""
        return remaining / self.bandwidth <= self.room_s

    def dirty_rate(self, throttle: float) -> float:
        """Bytes a second that the guest would dirty under `throttle`."""
        return self.writing_rate * (1 - throttle)

    def after_another_round(self, remaining: float, throttle: float | None = None) -> float:
        """Bytes that are left after a round that sends `remaining` bytes."""
        rate = self.dirty_rate(self.throttle if throttle is None else throttle)
        return DIRTY_RATE_MARGIN * rate * (remaining / self.bandwidth + self.round_cost_s)

    def rounds_needed(self, remaining: float, throttle: float, most: int) -> int | None:
        """Rounds until the rest fits the allowed downtime; None if more than `most` or never."""
        for rounds in range(most + 1):
            if self.fits(remaining):
                return rounds
            following = self.after_another_round(remaining, throttle)
            if following >= remaining:
                return None
            remaining = following
        return None


def _bandwidth(history: Sequence[RoundStats], rtt_s: float) -> float:
    """Mean rate over the last `BANDWIDTH_WINDOW_S` of transmission, bytes a second."""
    carried, window = 0.0, 0.0
    for index, stats in reversed(list(enumerate(history))):
        if index == 0 and window >= FIRST_ROUND_WITHIN_S:
            break
        bulk = _clamp(stats.bulk_bytes, 0, _BYTES_MAX)
        rate = _round_rate(stats, bulk, rtt_s)
        taken = min(bulk / rate, BANDWIDTH_WINDOW_S - window)
        carried += rate * taken
        window += taken
        if window >= BANDWIDTH_WINDOW_S:
            break
    assumed = max(0.0, MEASURED_S - window)
    mean = (carried + UNMEASURED_BANDWIDTH_BYTES_S * assumed) / (window + assumed)
    return _clamp(mean, _RATE_MIN, _RATE_MAX)


def _round_rate(stats: RoundStats, bulk: float, rtt_s: float) -> float:
    """The receiver's rate of one round, between what its acknowledgement proves and what is credible."""
    seconds = _seconds(stats)
    proven = bulk / seconds
    sending_s = max(seconds - rtt_s, seconds / 10)  # the wait for the acknowledgement carries no bytes
    claimed = _clamp(stats.receive_rate_bytes_s, 0, _RATE_MAX) or bulk / sending_s
    return _clamp(min(max(claimed, proven), CREDIBLE_FACTOR * bulk / sending_s), _RATE_MIN, _RATE_MAX)


def _writing_rate(history: Sequence[RoundStats]) -> float:
    """Bytes of distinct pages a second that the guest would dirty at full speed."""
    mean = sample = 0.0
    for index, stats in enumerate(history[-DIRTY_RATE_ROUNDS:]):
        dirty = _clamp(stats.dirty_bytes, 0, _BYTES_MAX)
        seconds = _clamp(stats.written_s or stats.seconds, _CLOCK_S, _SECONDS_MAX)
        sample = _clamp(dirty / seconds / (1 - _share(stats.throttle)), 0, _RATE_MAX)
        mean = sample if index == 0 else mean + DIRTY_RATE_GAIN * (sample - mean)
    return max(mean, sample)


def _seconds(stats: RoundStats) -> float:
    return _clamp(stats.seconds, _CLOCK_S, _SECONDS_MAX)


def _share(throttle: float) -> float:
    return _clamp(throttle, 0, _THROTTLE_MAX)


def _clamp(value: float, least: float, most: float) -> float:
    """`value` within the range as a float; what is no number counts as the least."""
    # Compared before it is converted: an int may be too large for a float.
    if not value > least:
        return float(least)
    return float(most) if value > most else float(value)
