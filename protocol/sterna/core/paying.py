"""Which encoding pays: the one by which most bytes of pages pass in a second.

That is measured for what is in use, as it is, with all that takes part: the link, the packer, and whoever
else needs the machine. Of what is not in use it is foretold. Pages as they are pass at the link's L bytes a
second; packed to a share r of their size, by somebody who packs C bytes a second, they pass at the lower of C
and L/r, for a batch is packed while the one before it is on its way. What was foretold and turned out to be
wrong is not believed again for a while, and each time for longer.

C and r have to be tried now and then, or nobody would learn that memory which did not compress now does. A
few pages are packed for nothing; if they shrink, so are more of them, or a whole batch in earnest where
batches are packed already. What a trial costs is known, so as many are made as take `TRIAL_SHARE` of all
time. That bounds what a wrong guess costs: random memory is slower by that share and not by more. A short
session would never earn that back, so nothing is tried before the link is known, nor on one that carries more
than packers take in (`FASTEST_BYTES_S`).

On a busy machine pages pass slowly however fast the link is, and a packer gets as little of the machine as
who sends. A trial is too short to see that: it tells what a processor does. So what is foretold is for the
share of a processor that the sender has got while pages passed as they are.

A change has to gain `GAIN`, so that two that are as good do not take turns. To begin with
packing has to gain `PACKING_GAIN`: what packers take of the machine those who send and receive may miss, and
no trial shows that.

What pays leaves the machine idle where the link is what others wait for. So a batch is packed more densely as
long as that is done before what waits for the link has left (`level_of`): it costs no time then. From a level
at which the packers keep up with the link, that is one step farther, at which they need not. What waits
dwindles then, and the next batch is packed as it pays; so levels mix as the machine allows, from batch to
batch, and a machine that is busy with other things falls back by itself.

What the link carries is seen only by pages as they are. Where what goes over it packed is less than that, or
more, and after `BELIEVED_MOST_S` in any case, a few batches go so, to look at it again.

Memory that does not compress is found out by samples that come more and more seldom.

Where pages are to be packed in any case, the question is only how densely. The bare link is never seen then;
it carries at least what has gone over it lately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

LEVELS: Final = (-5, 2, 5)
# What pages are packed with in time that is left over, beside those.
DENSEST: Final = 8
TRIAL_SHARE: Final = 0.01
GAIN: Final = 0.05
PACKING_GAIN: Final = 0.3
# What a few pages have to shrink to, or no more of them are tried.
PROMISING: Final = 0.9
# A batch that is packed while another leaves costs nothing but the machine: count this share of the time.
_BESIDE: Final = 0.1
# No level packs much more of common memory a second on a core. A link that carries more than all packers
# together take in is seen by its rate alone, and nothing is tried there.
FASTEST_BYTES_S: Final = 0.5e9
# How much newer figures count than older ones: after so many bytes of pages one counts half.
_HALF_BYTES: Final = 8 << 20
# How long what was measured is believed without a look; twice as long each time that it was a disappointment.
BELIEVED_S: Final = 3.0
BELIEVED_MOST_S: Final = 60.0
# How much longer a denser level is taken to need than the one before it, unless that was seen so lately.
_SLOWER: Final = 4
_LATELY_S: Final = 1.0
# The most that went over the wire is believed so much less with each look: it may have been a burst.
_FADES: Final = 0.9
# How often in a row the wait for the next sample doubles when one has not shrunk.
_DOUBLINGS: Final = 6
# A packer that fills the link to this share is not what others wait for; the bare link would not be faster.
# One that sends more than the link was seen to carry, by as much, shows that it is another by now.
_FULL: Final = 0.8


@dataclass(slots=True)
class _Packing:
    """What is known of packing at a level: sums that fade."""

    page_bytes: float = 0.0
    packed_bytes: float = 0.0
    seconds: float = 0.0
    at: float = -math.inf

    def add(self, page_bytes: int, packed_bytes: int, seconds: float, now: float) -> None:
        fading = 0.5 ** (page_bytes / _HALF_BYTES)
        self.page_bytes = self.page_bytes * fading + page_bytes
        self.packed_bytes = self.packed_bytes * fading + packed_bytes
        self.seconds = self.seconds * fading + seconds
        self.at = now

    def seconds_for(self, page_bytes: int) -> float:
        """How long it takes one packer; infinite if that is not known."""
        return page_bytes * self.seconds / self.page_bytes if self.page_bytes else math.inf

    def keeps_up(self, workers: int, link_bytes_s: float) -> bool:
        """Whether so many packers together fill the link."""
        return self.packed_bytes * workers >= link_bytes_s * self.seconds and self.page_bytes > 0


@dataclass(slots=True)
class _Passed:
    """How many bytes of pages a second passed by something, when that was, and how long it is believed."""

    rate_bytes_s: float = math.inf
    at: float = -math.inf
    believed_s: float = BELIEVED_S


class Paying:
    """See the module's text. Times are seconds of any clock that does not run backwards.

    Attributes:
        level: what pays, None for the bytes as they are.
    """

    def __init__(self, workers: int = 1, cap_bytes_s: float = math.inf, *, least: int | None = None) -> None:
        """Begin.

        Args:
            workers: how many pack at the same time.
            cap_bytes_s: what the link does not exceed.
            least: pages are packed in any case, at this level of `LEVELS` or a higher one.
        """
        self.level = least
        self._choices: Final[tuple[int | None, ...]] = (
            (None, *LEVELS) if least is None else LEVELS[LEVELS.index(least) :]
        )
        self._most_bytes_s = 0.0  # that went over the wire while pages had to be packed
        self._workers: Final = workers
        self._cap_bytes_s: Final = cap_bytes_s
        self._packing: Final = {level: _Packing() for level in (*LEVELS, DENSEST)}
        self._passed: Final[dict[int | None, _Passed]] = {each: _Passed() for each in (None, *LEVELS)}
        self._wire_bytes_s = math.inf  # when pages passed last
        self._try_at = -math.inf
        self._chosen_at = -math.inf
        self._machine_share = 1.0
        self._trials = 0
        self._in_vain = 0  # samples in a row

    @property
    def link_bytes_s(self) -> float:
        """What the link carries, as far as is known."""
        bare = self._most_bytes_s or self._passed[None].rate_bytes_s
        return min(bare, self._cap_bytes_s)

    def passed(
        self, page_bytes: int, wire_bytes: int, seconds: float, now: float, machine_share: float = 1.0
    ) -> None:
        """By what is in use so much has passed, in a time in which there always was more to send.

        `machine_share`: of the time in which the sender could have run, the part in which it had a processor.
        """
        known = self._passed[self.level]
        is_first, rate = known.at == -math.inf, page_bytes / seconds
        known.rate_bytes_s = rate if is_first else (known.rate_bytes_s + rate) / 2
        if self.level is None:
            self._machine_share = machine_share if is_first else (self._machine_share + machine_share) / 2
        known.at = now
        self._wire_bytes_s = wire_bytes / seconds
        if None not in self._choices:
            self._most_bytes_s = max(self._most_bytes_s * _FADES, self._wire_bytes_s)
        self._choose(now)

    def sampled(self, page_bytes: int, packed_bytes: int, seconds: float, now: float) -> bool:
        """Some pages were packed for nothing. Whether more are to be, at the level of `next_trial`."""
        promising = packed_bytes < page_bytes * PROMISING
        self._in_vain = 0 if promising else min(self._in_vain + 1, _DOUBLINGS)
        self._try_at = now + seconds / TRIAL_SHARE * 2**self._in_vain
        return promising

    def packed(
        self,
        level: int,
        page_bytes: int,
        packed_bytes: int,
        seconds: float,
        now: float,
        *,
        trial: bool = False,
    ) -> None:
        """So much was packed. `trial`: to learn what comes of it."""
        self._packing[level].add(page_bytes, packed_bytes, seconds, now)
        if trial:
            late_s = seconds - page_bytes / self.link_bytes_s
            self._try_at = now + max(late_s, seconds * _BESIDE) / TRIAL_SHARE
            self._choose(now)

    def level_of(self, page_bytes: int, waiting_bytes: int, now: float) -> int | None:
        """The level for the next batch, of so many bytes of pages, while so much waits for the link."""
        level = self.level
        if level is None or self.link_bytes_s == math.inf:
            return level
        slack_s = waiting_bytes / self.link_bytes_s
        for denser in (*LEVELS[LEVELS.index(level) + 1 :], DENSEST):
            known, next_known = self._packing[level], self._packing[denser]
            if now - next_known.at <= _LATELY_S:
                expected_s = next_known.seconds_for(page_bytes)
            else:
                expected_s = known.seconds_for(page_bytes) * _SLOWER
            if expected_s > slack_s or not known.keeps_up(self._workers, self.link_bytes_s):
                break
            level = denser
        return level

    def is_trial_due(self, now: float) -> bool:
        """Whether it is time to try some level, what is in use was measured, and another may be better."""
        is_measured = self._passed[self.level].at >= self._chosen_at
        return now >= self._try_at and is_measured and self.link_bytes_s <= FASTEST_BYTES_S * self._workers

    def next_trial(self) -> int:
        """The level that is to be tried next."""
        self._trials += 1
        others = [level for level in self._choices if level not in {None, self.level}]
        unknown = [level for level in others if not self._packing[level].page_bytes]
        if unknown:
            return min(unknown, key=abs)
        return others[self._trials % len(others)]

    def expected_bytes_s(self, level: int | None, now: float) -> float:
        """Bytes of pages that would pass in a second; infinite for a link that nobody knows (any more)."""
        known = self._passed[level]
        if now - known.at <= known.believed_s:
            return known.rate_bytes_s
        if level is None:
            link_bytes_s = self.link_bytes_s
            is_full = link_bytes_s * _FULL <= self._wire_bytes_s <= link_bytes_s / _FULL
            is_known = is_full and now - known.at <= BELIEVED_MOST_S
            is_capped = link_bytes_s >= self._cap_bytes_s * _FULL
            return link_bytes_s if is_known or is_capped else math.inf
        packing = self._packing[level]
        if not packing.page_bytes or self.link_bytes_s == math.inf:
            return 0.0
        packs = packing.page_bytes / packing.seconds * self._workers * self._machine_share
        return min(packs, self.link_bytes_s * packing.page_bytes / packing.packed_bytes)

    def _choose(self, now: float) -> None:
        best = max(self._choices, key=lambda level: self.expected_bytes_s(level, now))
        expected = self.expected_bytes_s(best, now)
        gain = PACKING_GAIN if self.level is None else GAIN
        if expected <= self.expected_bytes_s(self.level, now) * (1 + gain):
            return
        if self.level is not None and expected < math.inf:
            known = self._passed[self.level]
            known.believed_s = min(known.believed_s * 2, BELIEVED_MOST_S)
        self.level, self._chosen_at = best, now
