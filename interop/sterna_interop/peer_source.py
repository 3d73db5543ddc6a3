"""The honest conversation of a source, as small as chapter 8 lets it be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from sterna.limits import Limits
from sterna.registry import Feature, Mode, Owner, Style
from sterna.wire import (
    DIGEST_ALGORITHM,
    Accept,
    Bye,
    Complete,
    FeatureOffer,
    Handover,
    Hello,
    Loaded,
    NotReady,
    PageRange,
    Ready,
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
    Verdict,
    Welcome,
    state_digest,
)
from sterna.wire.header import VERSION
from sterna_interop.guest import GuestSpec
from sterna_interop.peer import AGENT, Peer
from sterna_interop.peer_image import Batch, Image, LastSequences, PageName, pages_of
from sterna_interop.peer_steps import Breach

REQUIRED: Final = (Feature.STOP_AND_COPY, Feature.HASH_XXH3_64)
_FRAGMENT_BYTES: Final = 256


Packs: TypeAlias = Callable[[Batch, Callable[[int], bytes]], Batch]
_PACKED: Final = frozenset({Feature.ENCODING_ZSTD, Feature.ENCODING_DELTA})


@dataclass(frozen=True, slots=True)
class Question:
    """A HELLO of mode verdict, about a session that the endpoint does not know.

    Attributes:
        session, token: of the session.
        versions: that the source speaks.
        features: that it offers; None for the plan's.
        goes_on: whether it describes its guest behind the answer. (Nobody listens.)
    """

    session: bytes
    token: bytes
    versions: tuple[int, ...] = (VERSION,)
    features: tuple[FeatureOffer, ...] | None = None
    goes_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePlan:
    """What a source does; the defaults are legal.

    Attributes:
        guest: what is moved. Of its script one entry is written after each round, the rest in the pause.
        rounds: rounds before the switchover.
        rejected: what the ROUND_ACK of `rejected_round` has to reject: exactly this.
        packed: the round whose first batch is packed, and how, if the destination takes it so: a function of
            the batch and of what a page of it held at first.
        needs: the features without which it goes as it is.
        unhashed: whether the endpoint was told to go without page hashes.
        unasked: whether they are packed though nothing was selected.
        resends: whether what was rejected is sent again. (It has to be.)
        omitted: pages that are never sent. (There may be none.)
        not_ready: how many NOT_READY there have to be.
        takes_back: whether it opens a round, and then begins the next attempt instead [CON-58].
        question: what is asked instead of all that.
    """

    guest: GuestSpec = field(default_factory=GuestSpec)
    epoch: int = 7
    runner: Runner = field(default_factory=lambda: Runner("kit.invalid", bytes(range(0x50, 0x60))))
    features: tuple[FeatureOffer, ...] = (FeatureOffer(Feature.ENCODING_ZERO),)
    rounds: int = 2
    rejected: tuple[PageRange, ...] = ()
    rejected_round: int = 1
    packed: tuple[int, Packs] | None = None
    needs: frozenset[Feature] = _PACKED
    unhashed: bool = False
    unasked: bool = False
    resends: bool = True
    omitted: tuple[PageName, ...] = ()
    not_ready: int = 0
    takes_back: bool = False
    question: Question | None = None

    def hello(self, limits: Limits) -> Hello:
        """The first frame."""
        return Hello(
            Mode.OPEN,
            (VERSION,),
            (*(FeatureOffer(each, required=True) for each in REQUIRED), *self.features),
            limits.to_wire(),
            self.guest.id,
            self.epoch,
            self.runner,
            AGENT,
        )


class Source:
    """A conversation: `await Source(plan)(peer)`."""

    def __init__(self, plan: SourcePlan) -> None:
        self._plan: Final = plan
        self._image: Final = Image(plan.guest.regions)
        self._attempt = 1
        self._style = Style.STOP_AND_COPY
        self._round = 0
        self._limits = Limits()  # the destination's
        self._entries = 0  # of the guest's script
        self._waiting: set[PageName] = set(self._image.all_pages())  # dirty: to be sent
        for region, page in self._waiting:
            content = plan.guest.page(self._image.regions[region], page, 0)
            self._image.write((region, page), content)
        self._waiting -= set(plan.omitted)

    async def __call__(self, peer: Peer) -> None:
        """The whole of it."""
        if self._plan.question is not None:
            await self._ask(peer, self._plan.question)
            return
        await self._greet(peer)
        await self._move(peer)

    async def _move(self, peer: Peer) -> None:
        """What follows ACCEPT."""
        for number in range(self._plan.rounds):
            if self._plan.takes_back and number == 1:
                self._round += 1
                await peer.say(Round(self._attempt, self._round, len(self._waiting)))
                self._attempt += 1
            rejects = number + 1 == self._plan.rejected_round
            await self._running_round(peer, self._plan.rejected if rejects else ())
        await self._switch_over(peer)
        await self._blackout(peer)
        await self._hand_over(peer)

    async def _ask(self, peer: Peer, question: Question) -> None:
        hello = replace(
            self._plan.hello(peer.manner.limits),
            mode=Mode.VERDICT,
            session=question.session,
            token=question.token,
            versions=question.versions,
        )
        if question.features is not None:
            hello = replace(hello, features=question.features)
        await peer.say(hello)
        verdict = await peer.hear(Verdict)
        if verdict.owner is not Owner.UNDECIDED:
            raise Breach(f"VERDICT{{{verdict.owner.name.lower()}}} about a session that never was [ONE-46]")
        if question.goes_on:
            await peer.say(self._plan.guest.description.to_record())

    async def _greet(self, peer: Peer) -> None:
        hello = self._plan.hello(peer.manner.limits)
        await peer.say(hello)
        peer.announced()
        welcome = await peer.hear(Welcome)
        peer.greeted = True
        self._check_welcome(hello, welcome)
        peer.welcome = welcome
        peer.account.features = frozenset(each.id for each in welcome.features)
        self._image.hashed = Feature.UNHASHED not in peer.account.features
        self._limits = Limits.from_wire(welcome.limits)
        peer.reports = Feature.PROGRESS in peer.account.features
        await peer.say(self._plan.guest.description.to_record())
        accept = await peer.hear(Accept)
        if accept.reserved_bytes < self._image.size_bytes:
            raise Breach(
                f"ACCEPT reserves {accept.reserved_bytes} of {self._image.size_bytes} bytes [CON-17]"
            )
        await self._accepted(peer, accept)

    async def _accepted(self, peer: Peer, accept: Accept) -> None:
        """What follows ACCEPT, before the first round."""
        if accept.data_streams:
            raise Breach("ACCEPT asks for data connections, which were not selected [ACC-3]")

    def _check_welcome(self, hello: Hello, welcome: Welcome) -> None:
        offered = {each.id: each.parameter for each in hello.features}
        chosen = {each.id: each.parameter for each in welcome.features}
        if welcome.version not in hello.versions:
            raise Breach(f"WELCOME selects version {welcome.version:#x}, which HELLO does not list [NEG-2]")
        if not chosen.keys() <= offered.keys():
            raise Breach(f"WELCOME selects features {sorted(chosen.keys() - offered.keys())} [NEG-5]")
        more = {each for each, parameter in chosen.items() if parameter > offered[each]}
        oftener = chosen.get(Feature.PROGRESS, 1 << 64) < offered.get(Feature.PROGRESS, 0)
        if more - {Feature.PROGRESS} or oftener:
            raise Breach("WELCOME selects a parameter that asks for more than the offered one [NEG-8]")
        if Feature.UNHASHED in chosen and not self._plan.unhashed:
            raise Breach("WELCOME selects to go without page hashes, which nobody has asked for [MEM-21]")
        if Feature.EARLY_PAGES in chosen and not chosen.keys() & {Feature.BITMAP, Feature.POST_COPY}:
            raise Breach("WELCOME selects early pages where no page follows the guest [PCY-25]")
        if not chosen.keys() >= set(REQUIRED):
            raise Breach("WELCOME lacks a required feature [NEG-4]")

    # ---- rounds ----

    async def _running_round(self, peer: Peer, rejected: Sequence[PageRange]) -> None:
        attempt, sent = self._attempt, len(self._waiting)
        await self._pages(peer)
        if self._plan.packed is not None and not peer.account.acted:
            rejected = ()  # it does not take packed pages, and has got them as they are
        ack = await peer.hear(RoundAck)
        lost = sum(each.count for each in rejected)
        if (ack.attempt, ack.round, ack.pages) != (attempt, self._round, sent - lost):
            raise Breach(
                f"ROUND_ACK says {ack}, where {sent} pages went and {lost} are wrong [CON-30] [CON-32]"
            )
        if ack.rejected != tuple(rejected):
            raise Breach(f"ROUND_ACK rejects {ack.rejected} instead of {tuple(rejected)} [CON-35]")
        self._image.forget(ack.rejected)
        if self._plan.resends:
            self._waiting = {name for each in ack.rejected for name in pages_of(each)}
        self._write()

    async def _pages(self, peer: Peer) -> LastSequences:
        """A round of all that waits; the last sequences that ROUND_END stated."""
        self._round += 1
        where = self._attempt, self._round
        count = len(self._waiting)
        await peer.say(Round(*where, count))
        last: LastSequences = ()
        bulk_bytes = 0
        for batch in self._image.batches(*where, self._waiting, self._limits):
            said = self._packed(peer, batch) if not last else batch
            last = ((0, await peer.say(said.table, said.bulk)),)
            bulk_bytes += len(said.bulk)
        self._waiting.clear()
        await peer.say(RoundEnd(*where, count, bulk_bytes, last))
        return last

    def _packed(self, peer: Peer, batch: Batch) -> Batch:
        """A round's first batch as the plan packs it."""
        assert peer.welcome is not None
        takes = self._plan.unasked or {each.id for each in peer.welcome.features} >= self._plan.needs
        if self._plan.packed is None or self._round != self._plan.packed[0] or not takes:
            return batch
        peer.account.acted = True
        region, guest = self._image.regions[batch.table.region], self._plan.guest
        packed = self._plan.packed[1](batch, lambda page: guest.page(region, page, 0))
        self._image.note(packed.table)
        return packed

    def _write(self) -> None:
        """The guest does the next entry of its script, if there is one."""
        script = self._plan.guest.writes
        for write in script[self._entries : self._entries + 1]:
            self._entries += 1
            for each in write:
                for page in range(each.first, each.first + each.count):
                    content = self._plan.guest.page(self._image.regions[each.region], page, self._entries)
                    self._image.write((each.region, page), content)
                    self._waiting.add((each.region, page))

    # ---- switchover ----

    async def _switch_over(self, peer: Peer) -> None:
        due = self._plan.not_ready
        while True:
            await peer.say(Switchover(self._attempt, self._style))
            answer = (await peer.hear_frame(Ready, NotReady)).record
            assert isinstance(answer, Ready | NotReady)
            if answer.attempt != self._attempt:
                raise Breach(f"{answer.type.name} of attempt {answer.attempt} [SWI-3]")
            if isinstance(answer, Ready) != (due == 0):
                raise Breach(f"{answer.type.name} where the endpoint was told to be ready {due} times later")
            if isinstance(answer, Ready):
                return
            due -= 1
            self._attempt += 1

    async def _blackout(self, peer: Peer) -> None:
        while self._entries < len(self._plan.guest.writes):
            self._write()
        last = await self._pages(peer)
        sections = self._plan.guest.state
        for section in sections:
            for fragment in fragments(section, self._attempt):
                await peer.say(fragment)
        seal = Seal(
            self._attempt,
            DIGEST_ALGORITHM,
            self._image.digest(),
            state_digest(sections),
            len(sections),
            sum(len(section.data) for section in sections),
            last,
        )
        await peer.say(seal)
        loaded = await peer.hear(Loaded)
        if (loaded.attempt, loaded.digest) != (seal.attempt, self._image.digest()):
            raise Breach("LOADED does not carry the digest of what was sent [CON-52] [SEA-4]")

    async def _hand_over(self, peer: Peer) -> None:
        await peer.say(Handover(self._attempt, self._plan.epoch))
        epoch = self._plan.epoch + 1
        running = await peer.hear(Running)
        if running.epoch != epoch:
            raise Breach(f"RUNNING under epoch {running.epoch}, granted was {epoch} [RUN-1]")
        complete = await self._completed(peer)
        if (complete.epoch, complete.digest) != (epoch, self._image.digest()):
            raise Breach("COMPLETE does not carry the granted epoch and the image's digest [CMP-1] [CMP-4]")
        await peer.say(Release(epoch))
        await peer.say(Bye())
        await peer.hear(Bye)

    async def _completed(self, peer: Peer) -> Complete:
        """What the guest lacks is sent, and it has everything."""
        return await peer.hear(Complete)


def fragments(section: StateSection, attempt: int, step: int = _FRAGMENT_BYTES) -> Iterator[State]:
    """The STATE frames of a section [STA-5]."""
    total = len(section.data)
    for offset in range(0, max(total, 1), step):
        data = section.data[offset : offset + step]
        name = section.architecture, section.vcpu, section.kind, section.version, section.instance
        yield State(attempt, *name, total, offset, offset + len(data) == total, data)
