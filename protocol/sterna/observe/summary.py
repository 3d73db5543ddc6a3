"""What a session came to: counted while its frames pass, whether or not they are right."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sterna.observe.direction import Frame
from sterna.registry import Feature, FrameType, Sender
from sterna.wire.records import Guest, Hello, Pages, Round, RoundAck, RoundEnd, Seal, Welcome

# Rounds that are told one by one; a session may have any number of them.
ROUNDS_TOLD: Final = 256


def names_unhashed(record: Hello | Welcome) -> bool:
    """Whether it offers or selects to go without page hashes [MEM-20]."""
    return any(each.id == Feature.UNHASHED for each in record.features)


@dataclass(slots=True)
class RoundSeen:
    """A round as it passed. Times in nanoseconds, by the recording's clock.

    Attributes:
        number: of the round.
        pages: that its PAGES carried.
        bulk_bytes: of those.
        rejected: pages that ROUND_ACK listed.
        started_ns: when ROUND passed.
        ended_ns: when ROUND_END passed; None if it did not.
        last: whether it is the blackout's.
    """

    number: int
    started_ns: int
    last: bool
    pages: int = 0
    bulk_bytes: int = 0
    rejected: int = 0
    ended_ns: int | None = None

    @property
    def seconds(self) -> float | None:
        """From ROUND to ROUND_END; None if it did not end."""
        return None if self.ended_ns is None else (self.ended_ns - self.started_ns) / 1e9


@dataclass(slots=True)
class Summary:
    """One session.

    Attributes:
        frames: by sender, skipped ones included.
        skipped: frames of unknown type.
        rounds: the first `ROUNDS_TOLD` of them.
        round_count: all of them.
        rejected: pages, in all rounds.
        digest: memory digest of the pause image, as SEAL states it.
        ready_ns: when READY passed: the source pauses its guest then.
        running_ns: when RUNNING passed.
        first_ns: when the first frame passed.
        last_ns: when the last one did.
    """

    frames: dict[Sender, int] = field(default_factory=lambda: {Sender.SOURCE: 0, Sender.DESTINATION: 0})
    skipped: int = 0
    hello: Hello | None = None
    welcome: Welcome | None = None
    guest: Guest | None = None
    rounds: list[RoundSeen] = field(default_factory=list)
    round_count: int = 0
    rejected: int = 0
    pages: int = 0
    bulk_bytes: int = 0
    digest: bytes = b""
    ready_ns: int | None = None
    running_ns: int | None = None
    first_ns: int | None = None
    last_ns: int = 0
    _round: RoundSeen | None = None
    _early_pages: int = 0
    _early_bytes: int = 0

    def add(self, sender: Sender, frame: Frame, time_ns: int) -> None:
        """A frame has passed."""
        self.frames[sender] += 1
        self.first_ns = time_ns if self.first_ns is None else self.first_ns
        self.last_ns = time_ns
        match frame.record:
            case None:
                self.skipped += 1
            case Hello() as hello:
                self.hello = self.hello or hello
            case Welcome() as welcome:
                self.welcome = self.welcome or welcome
            case Guest() as guest:
                self.guest = self.guest or guest
            case Round(round=number):
                self._begin(number, time_ns)
            case Pages() as table:
                self.carry(table)
            case RoundEnd() if self._round is not None:
                self._round.ended_ns = time_ns
            case RoundAck(rejected=rejected) if self._round is not None:
                self._round.rejected = sum(each.count for each in rejected)
                self.rejected += self._round.rejected
            case Seal(digest=digest):
                self.digest = digest
            case record if record.type is FrameType.READY:
                self.ready_ns = time_ns
            case record if record.type is FrameType.RUNNING:
                self.running_ns = time_ns
            case _:
                pass

    def carry(self, table: Pages) -> None:
        """Pages have passed, on whatever connection of the session; perhaps before their ROUND."""
        self.pages += table.page_count
        self.bulk_bytes += table.bulk_bytes
        now = self._round
        if self.running_ns is None and table.round == (0 if now is None else now.number) + 1:
            self._early_pages += table.page_count
            self._early_bytes += table.bulk_bytes
        elif now is not None:
            now.pages += table.page_count
            now.bulk_bytes += table.bulk_bytes

    @property
    def hashed(self) -> bool | None:
        """Whether pages have hashes [MEM-20]; None if nothing that passed tells."""
        if self.welcome is not None:
            return not names_unhashed(self.welcome)
        return None if self.hello is None or names_unhashed(self.hello) else True

    @property
    def blackout_ns(self) -> int | None:
        """From READY to RUNNING as they passed here; None if one of them did not."""
        if self.ready_ns is None or self.running_ns is None:
            return None
        return self.running_ns - self.ready_ns

    def _begin(self, number: int, time_ns: int) -> None:
        self._round = RoundSeen(number, time_ns, last=self.ready_ns is not None)
        self._round.pages, self._early_pages = self._early_pages, 0
        self._round.bulk_bytes, self._early_bytes = self._early_bytes, 0
        self.round_count += 1
        if len(self.rounds) < ROUNDS_TOLD:
            self.rounds.append(self._round)
