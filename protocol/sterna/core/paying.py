"""Which encoding pays at the rate of the link: as few seconds as possible for each byte of pages.

Sent as they are, pages take 1/L seconds a byte on a link of L bytes a second. Packed to a share r of their
size by somebody who packs C bytes a second they take as long as the slower of the two: max(1/C, r/L), for a
batch is packed while the one before it is on its way. C and r are measured, for each level, on the pages of
this guest; L is measured whenever the link, and not the packer, was what others had to wait for.

What is not in use has to be tried now and then, or nobody would learn that memory which did not compress now
does. A trial takes a known time, so as many are made as take `TRIAL_SHARE` of all of it. That bounds what a
wrong guess may cost: a migration of random memory is slower by that share and not by more.

A change has to gain `GAIN`, so that two that are as good do not take turns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

LEVELS: Final = (-5, 1, 3)
TRIAL_SHARE: Final = 0.01
GAIN: Final = 0.05
# How much newer figures count than older ones: after so many bytes of pages one has lost half its weight.
_HALF_BYTES: Final = 8 << 20
_HALF_S: Final = 0.5
# After so long without a look at the bare link, what is known of it is doubtful.
LINK_AGE_S: Final = 3.0
# Pages that are sent as they are to learn about the link. A socket takes some MiB at once, and tells nothing.
LINK_BYTES: Final = 16 << 20


@dataclass(slots=True)
class _Level:
    """What is known of a level: sums that fade."""

    page_bytes: float = 0.0
    packed_bytes: float = 0.0
    seconds: float = 0.0

    def add(self, page_bytes: int, packed_bytes: int, seconds: float) -> None:
        fading = 0.5 ** (page_bytes / _HALF_BYTES)
        self.page_bytes = self.page_bytes * fading + page_bytes
        self.packed_bytes = self.packed_bytes * fading + packed_bytes
        self.seconds = self.seconds * fading + seconds


class Paying:
    """See the module's text. Times are seconds of any clock that does not run backwards.

    Attributes:
        level: what pays, None for the bytes as they are.
    """

    def __init__(self, workers: int = 1, cap_bytes_s: float = math.inf) -> None:
        """Begin.

        Args:
            workers: how many pack at the same time.
            cap_bytes_s: what the link does not exceed.
        """
        self.level: int | None = None
        self._workers: Final = workers
        self._cap_bytes_s: Final = cap_bytes_s
        self._levels: Final = {level: _Level() for level in LEVELS}
        self._link_bytes = self._link_s = 0.0
        self._link_at: float | None = None  # when it was measured last
        self._try_at = -math.inf
        self._trials = 0

    @property
    def link_bytes_s(self) -> float:
        """What the link carries, as far as is known."""
        return min(self._link_bytes / self._link_s if self._link_s else math.inf, self._cap_bytes_s)

    def carried(self, wire_bytes: int, seconds: float, now: float) -> None:
        """The link has carried so much in a time in which there always was more to send."""
        fading = 0.5 ** (seconds / _HALF_S)
        self._link_bytes = self._link_bytes * fading + wire_bytes
        self._link_s = self._link_s * fading + seconds
        self._link_at = now
        self._choose()

    def tried(
        self,
        level: int,
        page_bytes: int,
        packed_bytes: int,
        seconds: float,
        now: float,
        *,
        trial: bool = True,
    ) -> None:
        """Pages were packed. `trial`: to learn what comes of it."""
        self._levels[level].add(page_bytes, packed_bytes, seconds)
        if trial:
            self._try_at = now + seconds / TRIAL_SHARE
        self._choose()

    def is_trial_due(self, now: float) -> bool:
        """Whether it is time to try some level."""
        return now >= self._try_at

    def trial(self) -> int:
        """The level that is to be tried next."""
        self._trials += 1
        others = [level for level in LEVELS if level != self.level]
        unknown = [level for level in others if not self._levels[level].page_bytes]
        if unknown:
            return min(unknown, key=abs)
        return others[self._trials % len(others)]

    def doubts_link(self, now: float) -> bool:
        """Whether pages should be sent as they are for a while, to learn what the link carries.

        A cap is as good as a measurement: a link that is slower shows.
        """
        return self._cap_bytes_s == math.inf and (self._link_at is None or now - self._link_at > LINK_AGE_S)

    def seconds_a_byte(self, level: int | None) -> float:
        """What a byte of pages takes; for a level of which nothing is known, for ever."""
        link_bytes_s = self.link_bytes_s
        if level is None:
            return 1 / link_bytes_s
        known = self._levels[level]
        if not known.page_bytes:
            return math.inf
        packing_s = known.seconds / known.page_bytes / self._workers
        return max(packing_s, known.packed_bytes / known.page_bytes / link_bytes_s)

    def _choose(self) -> None:
        choices: tuple[int | None, ...] = (None, *LEVELS)
        best = min(choices, key=self.seconds_a_byte)
        if self.seconds_a_byte(best) < self.seconds_a_byte(self.level) * (1 - GAIN):
            self.level = best
