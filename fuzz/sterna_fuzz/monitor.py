"""What a side says, heard where its bytes leave it, and held against the rules of the conversation.

A monitor knows nothing of the machine that it listens to, not even its state: it reads frames, and what the
specification says about their order, numbers and sums is written here once more, in other words. It hears
what was said before anything could happen to it on its way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from sterna.core.negotiate import encodings_of
from sterna.limits import Limits
from sterna.registry import FRAMES, Feature, FrameType, Sender
from sterna.wire import FrameReader, FrameReceived, Header, PagesAnnounced, PagesReceived
from sterna.wire.records import (
    Abort,
    Bye,
    Complete,
    Guest,
    Handover,
    Hello,
    Loaded,
    NotReady,
    Pages,
    Ping,
    Pong,
    Progress,
    Ready,
    Record,
    Refuse,
    Release,
    Round,
    RoundAck,
    RoundEnd,
    Running,
    Seal,
    State,
    Switchover,
    Welcome,
)

F = FrameType
_EARLY: Final = frozenset({F.PING, F.PONG, F.PROGRESS})
_LAST: Final = frozenset({F.ABORT, F.REFUSE, F.BYE})
# What may come behind what, on the way of a session that goes well; an ABORT may come anywhere.
_ORDER: Final[dict[Sender, dict[FrameType | None, frozenset[FrameType]]]] = {
    Sender.SOURCE: {
        None: frozenset({F.HELLO}),
        F.HELLO: frozenset({F.GUEST}),
        F.GUEST: frozenset({F.ROUND, F.SWITCHOVER}),
        F.ROUND: frozenset({F.PAGES, F.ROUND_END}),
        F.PAGES: frozenset({F.PAGES, F.ROUND_END}),
        F.ROUND_END: frozenset({F.ROUND, F.SWITCHOVER, F.STATE, F.SEAL}),
        F.SWITCHOVER: frozenset({F.ROUND, F.SWITCHOVER}),
        F.STATE: frozenset({F.STATE, F.SEAL}),
        F.SEAL: frozenset({F.HANDOVER}),
        F.HANDOVER: frozenset({F.RELEASE}),
        F.RELEASE: frozenset({F.BYE}),
    },
    Sender.DESTINATION: {
        None: frozenset({F.WELCOME, F.REFUSE}),
        F.WELCOME: frozenset({F.ACCEPT, F.REFUSE}),
        F.ACCEPT: frozenset({F.ROUND_ACK, F.READY, F.NOT_READY}),
        F.ROUND_ACK: frozenset({F.ROUND_ACK, F.READY, F.NOT_READY}),
        F.NOT_READY: frozenset({F.ROUND_ACK, F.READY, F.NOT_READY}),
        F.READY: frozenset({F.LOADED}),
        F.LOADED: frozenset({F.RUNNING, F.HANDBACK}),
        F.RUNNING: frozenset({F.COMPLETE}),
        F.COMPLETE: frozenset({F.BYE}),
    },
}


class Monitor:
    """Listens to one side.

    Attributes:
        peer: the monitor of the other side, set by whoever makes both.
        said: frames so far, by type.
        attempt: the current one, as far as this side's words and the answers to them tell.
        paused: source: whether it has said that it is in the blackout's round.
    """

    peer: Monitor

    def __init__(self, role: Sender, limits: Limits, now: Callable[[], float]) -> None:
        """Listen to `role`, whose peer has announced `limits`."""
        self.role: Final = role
        self.said: Counter[FrameType] = Counter()
        self.attempt = 1
        self.digest = b""
        self.features: dict[int, int] = {}
        self._limits: Final = limits
        self._now: Final = now
        self._reader: Final = FrameReader()
        self._before: FrameType | None = None
        self._round = 0
        self._pages = self._bulk_bytes = 0
        self._sequence: int | None = None
        self._sent: set[tuple[int, int]] = set()
        self._told: Progress | None = None
        self._told_at = 0.0
        self.round_end: RoundEnd | None = None

    def hear(self, data: bytes) -> None:
        """Bytes have left the side. Everything in them is a frame that it may say."""
        self._reader.receive_data(data)
        while (event := self._reader.next_event()) is not None:
            match event:
                case PagesAnnounced(header):
                    if header.bulk_bytes:
                        self._reader.discard_bulk()
                case FrameReceived(header, record) | PagesReceived(header, record):
                    self._frame(header, record)
                case _:
                    pass

    def greeted(self) -> None:
        """WELCOME has left the destination: what was announced holds."""
        self._reader.set_limits(self._limits)
        hashed = Feature.UNHASHED not in self.features
        self._reader.set_encodings(encodings_of(self.features), hashed=hashed)

    def _frame(self, header: Header, record: Record) -> None:
        kind = record.type
        sender = FRAMES[kind].sender
        assert sender in {self.role, Sender.BOTH}, (
            f"{kind.name} is not for the {self.role.name.lower()} to say"
        )
        assert not any(self.said[last] for last in _LAST), f"{kind.name} behind the last word [ABT-1]"
        self.said[kind] += 1
        if kind in _EARLY:
            assert self._destination.said[F.WELCOME], f"{kind.name} before WELCOME [CON-2]"
            self._sign_of_life(record)
        elif kind is not F.ABORT:
            allowed = _ORDER[self.role].get(self._before, frozenset())
            before = self._before.name if self._before else "nothing"
            assert kind in allowed, f"{kind.name} behind {before} [CON-3]"
            self._before = kind
            self._say(header, record)

    @property
    def _destination(self) -> Monitor:
        return self if self.role is Sender.DESTINATION else self.peer

    def _sign_of_life(self, record: Record) -> None:
        match record:
            case Pong():
                assert self.said[F.PONG] <= self.peer.said[F.PING], "more PONGs than PINGs [PNG-2]"
            case Progress():
                assert Feature.PROGRESS in self._destination.features, "PROGRESS was not selected [PRG-1]"
                if self._told is not None:
                    least_s = self._destination.features[Feature.PROGRESS] / 1000
                    assert self._now() - self._told_at >= least_s - 1e-9, "PROGRESS too often [PRG-1]"
                    before = (self._told.round, self._told.bulk_bytes)
                    assert record.round >= before[0], f"round {record.round} after {before[0]} [CON-80]"
                    assert record.bulk_bytes >= before[1], f"{record.bulk_bytes} after {before[1]} [CON-80]"
                self._told, self._told_at = record, self._now()
            case _:
                assert isinstance(record, Ping)

    def _say(self, header: Header, record: Record) -> None:
        """Numbers and sums, and what must have been heard before."""
        match record:
            case Hello():
                self.features = {each.id: each.parameter for each in record.features}
            case Welcome():
                assert self.peer.said[F.HELLO], "WELCOME without HELLO [CON-8]"
                self.features = {each.id: each.parameter for each in record.features}
                assert self.features.items() <= self.peer.features.items(), "more than was offered [NEG-5]"
                self.peer.features = self.features
                self.greeted()
                self.peer.greeted()
            case Guest():
                assert self.peer.said[F.WELCOME], "GUEST without WELCOME [CON-7]"
                for monitor in (self, self.peer):
                    monitor._reader.set_regions({region.id: region for region in record.regions})
            case Round() | Pages() | RoundEnd():
                self._in_a_round(header, record)
            case RoundAck():
                self._acknowledge(record)
            case Switchover() | State():
                assert record.attempt == self.attempt, f"attempt {record.attempt} of {self.attempt} [CON-23]"
            case Ready() | NotReady():
                self._answer(record)
            case Seal():
                assert self.peer.said[F.READY], "SEAL without READY [CON-44]"
                self.digest = record.digest
            case Loaded():
                assert record.digest == self.peer.digest, "LOADED names another digest [CON-53]"
            case Handover():
                assert self.peer.said[F.LOADED], "HANDOVER without LOADED [ONE-17]"
            case Running() | Complete():
                assert self.peer.said[F.HANDOVER], f"{record.type.name} without HANDOVER [ONE-25]"
            case Release():
                assert self.peer.said[F.COMPLETE], "RELEASE without COMPLETE [CMP-2]"
            case Bye() | Abort() | Refuse() | _:
                pass

    def _in_a_round(self, header: Header, record: Round | Pages | RoundEnd) -> None:
        assert record.attempt == self.attempt, f"attempt {record.attempt} of {self.attempt} [CON-23]"
        if isinstance(record, Round):
            assert record.round == self._round + 1, f"round {record.round} after {self._round} [CON-20]"
            unanswered = self.said[F.ROUND] - 1 - self.peer.said[F.ROUND_ACK]
            assert not unanswered, "ROUND without ROUND_ACK [CON-26]"
            if self._asked:
                assert self.peer.said[F.READY], "ROUND behind SWITCHOVER without READY [CON-41]"
            self._round, self._pages, self._bulk_bytes, self._sequence = record.round, 0, 0, None
            self._sent.clear()
            return
        assert record.round == self._round, f"{record.type.name} of round {record.round} [CON-21]"
        if isinstance(record, Pages):
            self._pages += record.page_count
            self._bulk_bytes += record.bulk_bytes
            self._sequence = header.sequence
            for first, count in zip(
                record.runs["first"].tolist(), record.runs["count"].tolist(), strict=True
            ):
                pages = {(record.region, page) for page in range(first, first + count)}
                assert not pages & self._sent, "a page twice in a round [CON-27]"
                self._sent |= pages
            return
        assert (record.pages, record.bulk_bytes) == (self._pages, self._bulk_bytes), "other sums [RND-3]"
        last = () if self._sequence is None else ((0, self._sequence),)
        assert record.last_sequences == last, f"{record.last_sequences} instead of {last} [STR-8]"
        self.round_end = record

    @property
    def _asked(self) -> bool:
        """Whether a SWITCHOVER of this attempt was said."""
        return self.said[F.SWITCHOVER] > self.peer.said[F.NOT_READY]

    def _acknowledge(self, record: RoundAck) -> None:
        ended = self.peer.round_end
        assert ended is not None, "ROUND_ACK without ROUND_END [CON-31]"
        assert record.round == ended.round, f"ROUND_ACK of round {record.round} [CON-30]"
        rejected = {
            (each.region, each.first + page) for each in record.rejected for page in range(each.count)
        }
        assert record.pages == ended.pages - len(rejected), "other counts [CON-32]"
        assert rejected <= self.peer._sent, "pages that were not sent [CON-33]"
        assert self.said[F.ROUND_ACK] <= self.peer.said[F.ROUND_END], "two answers to a round [CON-30]"

    def _answer(self, record: Ready | NotReady) -> None:
        answers = self.said[F.READY] + self.said[F.NOT_READY]
        assert answers <= self.peer.said[F.SWITCHOVER], "an answer without a question [CON-38]"
        assert record.attempt == self.peer.attempt, (
            f"attempt {record.attempt} of {self.peer.attempt} [CON-22]"
        )
        if isinstance(record, NotReady):
            self.attempt += 1
            self.peer.attempt += 1
