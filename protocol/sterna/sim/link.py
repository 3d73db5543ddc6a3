"""One direction of a connection with a bandwidth, a latency and jitter. It carries sizes and times, no bytes.

Bytes leave in order at the bandwidth of the link and arrive a latency later; jitter delays them further, but
what was sent first arrives first, as on TCP. Like a socket the link takes more than it has sent, up to its
buffer, and then no more until there is room.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

# A part of what is sent in one piece that arrives by itself: so long a unit is a sign of life on its way.
PART_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What a link is like, the same in both directions.

    Attributes:
        bandwidth_bytes_s: of each direction.
        latency_s: from one end to the other.
        jitter_s: the most that is added to the latency, evenly distributed.
        buffer_bytes: what the sending side takes beyond what has been sent.
    """

    bandwidth_bytes_s: float = 125e6
    latency_s: float = 0.0005
    jitter_s: float = 0.0
    buffer_bytes: int = 1 << 20

    @property
    def rtt_s(self) -> float:
        """Without jitter."""
        return 2 * self.latency_s


class Link:
    """One direction.

    Attributes:
        settings: of the link.
        carried_bytes: what was handed to it so far.
    """

    def __init__(self, settings: LinkSettings, dice: random.Random) -> None:
        self.settings: Final = settings
        self.carried_bytes = 0
        self._dice: Final = dice
        self._sent_at = 0.0  # when everything that was taken will have been sent
        self._arrived_at = 0.0

    def room_at(self, now: float) -> float:
        """When the next unit can be handed over: now, if it is not later."""
        full_s = self.settings.buffer_bytes / self.settings.bandwidth_bytes_s
        return max(now, self._sent_at - full_s)

    def send(self, size: int, now: float) -> list[tuple[float, int]]:
        """Hand over so many bytes; when which part of them arrives, in order."""
        settings = self.settings
        self.carried_bytes += size
        part = max(math.ceil(settings.bandwidth_bytes_s * PART_S), 1)
        start = max(now, self._sent_at)
        arrivals = []
        for at in range(0, size, part):
            count = min(part, size - at)
            start += count / settings.bandwidth_bytes_s
            delay = settings.latency_s + self._dice.uniform(0.0, settings.jitter_s)
            self._arrived_at = max(self._arrived_at, start + delay)
            arrivals.append((self._arrived_at, count))
        self._sent_at = start
        return arrivals
