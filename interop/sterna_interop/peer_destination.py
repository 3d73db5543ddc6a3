"""The honest conversation of a destination, as small as chapter 8 lets it be."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from sterna.registry import Encoding, ErrorCode, Feature, Style
from sterna.wire import (
    Accept,
    Bye,
    Complete,
    FeatureChoice,
    Guest,
    Handover,
    Hello,
    Loaded,
    NotReady,
    PageRange,
    Pages,
    Ready,
    Record,
    Refuse,
    Release,
    Round,
    RoundAck,
    RoundEnd,
    Runner,
    Running,
    Seal,
    State,
    StateSection,
    Switchover,
    Welcome,
    state_digest,
)
from sterna.wire.header import VERSION
from sterna_interop.guest import GuestSpec
from sterna_interop.peer import AGENT, Frame, Peer
from sterna_interop.peer_image import Image, LastSequences, PageName, pages_of
from sterna_interop.peer_steps import Breach, Over

RUNNER: Final = Runner("scripted-destination", b"scripted dest...")
SESSION: Final = b"scripted session"
TOKEN: Final = b"scripted token, 32 bytes long..."
_NEEDED: Final = (Feature.STOP_AND_COPY, Feature.HASH_XXH3_64)
_ENCODINGS: Final[Mapping[int, Encoding]] = {Feature.ENCODING_ZERO: Encoding.ZERO}


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationPlan:
    """What a destination does, all of it legal.

    Attributes:
        guest, epoch, runner: what the endpoint was told to send away, and under which name.
        features: what is selected beside that which every session needs, if it is offered.
        refuse_hello, refuse_guest: how the session or the guest is refused.
        not_ready: how many times SWITCHOVER is answered with NOT_READY.
        unhashed: whether the endpoint was told to go without page hashes.
        rejects: how many pages of the first round are rejected, whatever they are.
    """

    guest: GuestSpec = field(default_factory=GuestSpec)
    epoch: int = 7
    runner: Runner = field(default_factory=lambda: Runner("kit.invalid", bytes(range(0x50, 0x60))))
    features: tuple[Feature, ...] = (Feature.ENCODING_ZERO,)
    refuse_hello: Refuse | None = None
    refuse_guest: Refuse | None = None
    not_ready: int = 0
    unhashed: bool = False
    rejects: int = 0


class Destination:
    """A conversation: `await Destination(plan)(peer)`."""

    def __init__(self, plan: DestinationPlan) -> None:
        self._plan: Final = plan
        self._image = Image(())
        self._attempt = 1
        self._round = 0
        self._epoch = 0
        self._sections: list[StateSection] = []
        self._open = b""  # of a section that is not whole
        self._style = Style.STOP_AND_COPY
        self._stale: set[PageName] = set()  # pages that follow the guest

    async def __call__(self, peer: Peer) -> None:
        """The whole of it."""
        await self._greet(peer)
        await self._rounds(peer)
        await self._blackout(peer)
        await self._take_over(peer)

    async def _greet(self, peer: Peer) -> None:
        hello = await peer.hear(Hello)
        self._epoch = hello.epoch
        offered = {each.id: each.parameter for each in hello.features}
        if VERSION not in hello.versions:
            raise Breach(f"HELLO does not list version {VERSION:#x}")
        if not {Feature.HASH_XXH3_64, Feature.STOP_AND_COPY} <= {
            each.id for each in hello.features if each.required
        }:
            raise Breach("HELLO does not require page hashes and stop-and-copy [MEM-17]")
        if Feature.UNHASHED in offered and not self._plan.unhashed:
            raise Breach("HELLO offers to go without page hashes, which nobody has asked for [MEM-21]")
        if (hello.guest, hello.epoch, hello.runner) != (
            self._plan.guest.id,
            self._plan.epoch,
            self._plan.runner,
        ):
            raise Breach("HELLO names another guest, epoch or runner than the parameters [HEL-7]")
        await self._refuse(peer, self._plan.refuse_hello)
        wanted = (*_NEEDED, *self._plan.features)
        chosen = tuple(FeatureChoice(each, offered[each]) for each in wanted if each in offered)
        welcome = Welcome(VERSION, SESSION, TOKEN, chosen, peer.manner.limits.to_wire(), AGENT)
        peer.announced()
        peer.account.features = frozenset(each.id for each in chosen)
        hashed = Feature.UNHASHED not in peer.account.features
        encodings = {Encoding.RAW, *(_ENCODINGS[each.id] for each in chosen if each.id in _ENCODINGS)}
        peer.selected(frozenset(encodings), hashed=hashed)
        peer.reports = Feature.PROGRESS in wanted and Feature.PROGRESS in offered
        await peer.say(welcome)
        peer.greeted = True
        guest = await peer.hear(Guest)
        peer.described(guest)
        if guest != self._plan.guest.description.to_record():
            raise Breach("GUEST describes another guest than the parameters")
        await self._refuse(peer, self._plan.refuse_guest)
        self._image = Image(guest.regions, hashed=hashed)
        await self._accept(peer)

    async def _accept(self, peer: Peer) -> None:
        """There is room for the guest."""
        await peer.say(Accept(self._image.size_bytes))

    async def _refuse(self, peer: Peer, refusal: Refuse | None) -> None:
        if refusal is not None:
            await peer.say(refusal)
            raise Over

    # ---- rounds ----

    async def _rounds(self, peer: Peer) -> None:
        """Rounds until a SWITCHOVER has been answered with READY."""
        refusals = self._plan.not_ready
        while True:
            heard = (await peer.hear_frame(Round, Switchover)).record
            if isinstance(heard, Round):
                ended, rejected = await self._round_of(peer, heard, rejects=self._plan.rejects)
                lost = sum(each.count for each in rejected)
                await peer.say(RoundAck(ended.attempt, ended.round, ended.pages - lost, 0, rejected))
                continue
            assert isinstance(heard, Switchover)
            if heard.attempt != self._attempt:
                raise Breach(f"SWITCHOVER of attempt {heard.attempt} instead of {self._attempt} [CON-23]")
            if heard.style not in self._styles(peer):
                raise Breach("SWITCHOVER of a style that was not selected [SWI-1]")
            if not refusals:
                self._style = Style(heard.style)
                await peer.say(Ready(self._attempt))
                return
            refusals -= 1
            await peer.say(NotReady(self._attempt, ErrorCode.NOT_READY, "not yet"))
            self._attempt += 1

    def _styles(self, peer: Peer) -> Collection[int]:
        """In which it may be switched over."""
        return {Style.STOP_AND_COPY}

    async def _round_of(
        self, peer: Peer, begun: Round, *, rejects: int = 0
    ) -> tuple[RoundEnd, tuple[PageRange, ...]]:
        """PAGES up to ROUND_END, and which of them are rejected."""
        self._round += 1
        if (begun.attempt, begun.round) != (self._attempt, self._round):
            raise Breach(
                f"{begun} where round {self._round} of attempt {self._attempt} is due [CON-20] [CON-23]"
            )
        seen: set[PageName] = set()
        wrong: set[PageName] = set()
        bulk_bytes = 0
        sequences: dict[int, int] = {}
        heard: RoundEnd | None = None
        async with aclosing(self._frames(peer)) as frames:
            async for stream, frame in frames:
                record = frame.record
                assert isinstance(record, Pages | RoundEnd)
                if (record.attempt, record.round) != (self._attempt, self._round):
                    raise Breach(f"{record.type.name} of another round or attempt [CON-21]")
                if isinstance(record, RoundEnd):
                    heard = record
                    continue
                names = _names(record)
                if seen & names:
                    raise Breach(f"pages {sorted(seen & names)[:3]} twice in a round [CON-27]")
                seen |= names
                wrong |= {name for each in self._image.take(record, frame.bulk) for name in pages_of(each)}
                bulk_bytes += len(frame.bulk)
                sequences[stream] = frame.sequence
        assert heard is not None
        last: LastSequences = tuple(sorted(sequences.items()))
        stated = heard.pages, heard.bulk_bytes, tuple(sorted(heard.last_sequences))
        if stated != (len(seen), bulk_bytes, last):
            raise Breach(
                f"ROUND_END states {stated}, heard were {(len(seen), bulk_bytes, last)} [RND-3] [STR-8]"
            )
        if self._round == 1:
            wrong |= set(sorted(seen)[:rejects])
        rejected = tuple(ranges_of(wrong))
        self._image.forget(rejected)
        return heard, rejected

    async def _frames(self, peer: Peer) -> AsyncGenerator[tuple[int, Frame], None]:
        """PAGES of a round and its ROUND_END, with the streams on which they came."""
        while True:
            frame = await peer.hear_frame(Pages, RoundEnd)
            yield 0, frame
            if isinstance(frame.record, RoundEnd):
                return

    # ---- switchover ----

    async def _blackout(self, peer: Peer) -> None:
        ended, rejected = await self._round_of(peer, await peer.hear(Round))
        if rejected:
            raise Breach(f"pages {rejected} of a paused guest differ from their hashes [PGS-13]")
        while not isinstance(heard := (await peer.hear_frame(*self._sealed, Seal)).record, Seal):
            self._take_in(heard)
        self._check_seal(heard, ended)
        self._check_image()
        await peer.say(Loaded(self._attempt, self._image.digest()))

    @property
    def _sealed(self) -> tuple[type[Record], ...]:
        """What may come before SEAL."""
        return (State,)

    def _take_in(self, record: Record) -> None:
        assert isinstance(record, State)
        self._assemble(record)

    def _assemble(self, fragment: State) -> None:
        if fragment.attempt != self._attempt or fragment.offset != len(self._open):
            raise Breach(f"a STATE fragment at {fragment.offset}, due is {len(self._open)} [STA-5]")
        self._open += fragment.data
        if fragment.last:
            self._sections.append(
                StateSection(
                    fragment.kind,
                    fragment.version,
                    self._open,
                    fragment.architecture,
                    fragment.vcpu,
                    fragment.instance,
                )
            )
            self._open = b""

    def _check_seal(self, seal: Seal, ended: RoundEnd) -> None:
        sizes = len(self._sections), sum(len(section.data) for section in self._sections)
        if seal.attempt != self._attempt or seal.last_sequences != ended.last_sequences:
            raise Breach("SEAL does not repeat attempt and last sequences of the blackout round [STR-8]")
        if (seal.state_sections, seal.state_bytes) != sizes or self._open:
            raise Breach("SEAL does not count the state that was sent [SEA-3]")
        if (missing := self._image.missing()) != len(self._stale):
            raise Breach(
                f"{missing} pages are not held at SEAL, {len(self._stale)} are stale [MEM-11] [PCY-2]"
            )
        if seal.digest != self._image.digest():
            raise Breach("SEAL's digest is not that of what was sent [MEM-14]")
        if seal.state_digest != state_digest(self._sections):
            raise Breach("SEAL's state digest is not that of what was sent [MEM-19]")

    def _check_image(self) -> None:
        """What came is the guest as it was paused, and its whole state [CON-48]."""
        if not self._stale:
            self._check_memory()
        if sorted(map(repr, self._sections)) != sorted(map(repr, self._plan.guest.state)):
            raise Breach("the state that was sealed is not the guest's [CON-48]")

    def _check_memory(self) -> None:
        if self._image.memory != self._plan.guest.image():
            raise Breach("the image that was sealed is not the guest's, all of its script written [MEM-12]")

    async def _take_over(self, peer: Peer) -> None:
        handover = await peer.hear(Handover)
        if (handover.attempt, handover.epoch) != (self._attempt, self._epoch):
            raise Breach(f"{handover}, due is epoch {self._epoch} of attempt {self._attempt} [HND-1]")
        await peer.say(Running(self._epoch + 1, RUNNER))
        await self._wait_for_rest(peer)
        await peer.say(Complete(self._epoch + 1, self._image.digest()))
        release = await peer.hear(Release)
        if release.epoch != self._epoch + 1:
            raise Breach(f"RELEASE of epoch {release.epoch} [CMP-4]")
        await peer.hear(Bye)
        await peer.say(Bye())

    async def _wait_for_rest(self, peer: Peer) -> None:
        """The guest runs, and has all of its pages when this returns."""


def _names(table: Pages) -> set[PageName]:
    rows = zip(table.runs["first"].tolist(), table.runs["count"].tolist(), strict=True)
    return {(table.region, page) for first, count in rows for page in range(first, first + count)}


def ranges_of(names: set[PageName]) -> list[PageRange]:
    """The pages as ranges in ascending order, each as long as can be [RAK-3]."""
    found: list[PageRange] = []
    for region, page in sorted(names):
        if found and found[-1].region == region and found[-1].first + found[-1].count == page:
            found[-1] = PageRange(region, found[-1].first, found[-1].count + 1)
        else:
            found.append(PageRange(region, page, 1))
    return found
