"""What the tests of `sterna.core` share: one machine with a scripted peer, and small guests for two of them.

A rig drives a machine by hand, frame by frame and answer by answer, into any state that can be reached from
outside. What it sends is built without checks, so a frame can be wrong in exactly one way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sterna.core import events as e
from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.negotiate import BASE_FEATURES, VERSION, offer
from sterna.core.policy import PolicySettings
from sterna.core.session import Session
from sterna.core.source import SourceConfig, SourceMachine
from sterna.core.state import fragments
from sterna.core.style import offer_for
from sterna.core.tables import TERMINAL, DestinationState, SourceState, State
from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, WithoutPostCopy
from sterna.limits import HANDSHAKE_BODY_BYTES, Limits
from sterna.memory.bitmap import PageBitmap
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import EncodedBatch, RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import (
    BitmapEncoding,
    Checksum,
    ErrorCode,
    Feature,
    Mode,
    Owner,
    StateKind,
    Style,
    Transfer,
)
from sterna.testing.pair import Pair, source_config_of
from sterna.wire import (
    FrameReader,
    FrameReceived,
    PagesAnnounced,
    PagesReceived,
    UnknownFrame,
    state_digest,
    unchecked,
)
from sterna.wire import records as r

PAGE = 4096
ID = bytes(range(16))
SESSION, TOKEN = bytes(range(1, 17)), bytes(range(32))
HERE, THERE = r.Runner("source.test", b"\x11" * 16), r.Runner("destination.test", b"\x22" * 16)
ADMISSION = e.Admission(SESSION, TOKEN, THERE)
EPOCH = 5
REGION = r.Region(0, 0, 4 * PAGE)
GUEST = r.Guest("guest", 0, 1, 4096, (REGION,))
VERDICT = r.Verdict(Owner.DESTINATION, EPOCH + 1, THERE)
IMAGE = b"\x11" * PAGE + b"\x22" * PAGE + bytes(2 * PAGE)
SECTION = r.StateSection(StateKind.WORKLOAD, 1, b"registers")
BITMAP_FEATURES = tuple(r.FeatureChoice(each.id, each.parameter) for each in offer_for("bitmap"))
ALL_FEATURES = tuple(r.FeatureChoice(each.id, each.parameter) for each in offer())

_SENDING = {SourceState.ROUND, SourceState.BLACKOUT}  # there, what is taken leads on


def is_early(request: e.Request) -> bool:
    """Whether it is a record that is not needed yet."""
    return isinstance(request, e.Persist) and request.early


class Rig:
    """A machine and whoever is at the other end of its connection.

    Attributes:
        machine: under test.
        now: the time that every call is given.
        heard: what the machine has said so far; PAGES as their tables.
        bulk: the bulk parts of these, in order.
        unknown: types of the frames that a receiver skips.
        asked: the requests that were taken from the machine so far.
    """

    script: Sequence[tuple[State, Callable[[Rig], None]]]

    def __init__(self, machine: Session) -> None:
        self.machine = machine
        self.now = 100.0
        self.heard: list[r.Record] = []
        self.bulk: list[bytes] = []
        self.unknown: list[int] = []
        self.asked: list[e.Request] = []
        self.said = 0
        self.preface = True
        self._done = 0  # steps of the script
        self._reader = FrameReader()
        self._reader.set_limits(Limits())
        self._reader.set_regions({region.id: region for region in GUEST.regions})

    # ---- the peer ----

    def encode(self, record: r.Record, bulk: bytes = b"") -> bytes:
        """A record as the next frame of the peer, with the preface before the first."""
        start = unchecked.preface() if self.preface else b""
        self.preface = False
        frame = unchecked.frame(record.type, unchecked.body(record), bulk, sequence=self.said)
        self.said += 1
        return start + frame

    def say(self, *records: r.Record) -> None:
        """Let the machine receive these frames, each in one piece."""
        for record in records:
            self.machine.receive_data(self.encode(record), self.now)

    def say_bytes(self, data: bytes) -> None:
        """Let the machine receive these bytes."""
        self.machine.receive_data(data, self.now)

    def drain(self, *, leave: bool = True, units: int | None = None) -> list[r.Record]:
        """Take everything that the machine has to say, or some units of it; what was new."""
        before = len(self.heard)
        for _ in range(units) if units is not None else iter(int, 1):
            if not (buffers := self.machine.poll_transmit(self.now)):
                break
            data = b"".join(bytes(buffer) for buffer in buffers)
            if leave:
                self.machine.transmitted(len(data), self.now)
            self._reader.receive_data(data)
            while (event := self._reader.next_event()) is not None:
                match event:
                    case FrameReceived():
                        self.heard.append(event.record)
                    case PagesAnnounced():
                        self.bulk.append(b"")
                        if event.header.bulk_bytes:
                            place = bytearray(event.header.bulk_bytes)
                            self._reader.supply_bulk([place])
                            self.bulk[-1] = place
                    case PagesReceived():
                        self.heard.append(event.record)
                    case UnknownFrame():
                        self.unknown.append(event.header.type)
        return self.heard[before:]

    def last(self) -> r.Record:
        """The last thing that the machine has said."""
        self.drain()
        return self.heard[-1]

    # ---- the driver ----

    def take(self, kind: type | None = None) -> e.Request:
        """The next request, which must be of this kind; a record that is noted early is noted.

        By itself nobody here keeps notes.
        """
        while (request := self.machine.poll_request()) is not None and (
            is_early(request) or (isinstance(request, e.KeepNotes) and kind not in {None, e.KeepNotes})
        ):
            self.machine.complete(request, None, self.now)
        assert request is not None
        assert kind is None or isinstance(request, kind), request
        self.asked.append(request)
        return request

    def do(self, kind: type, answer: object = None) -> None:
        """Carry out the next request, which must be of this kind."""
        self.machine.complete(self.take(kind), answer, self.now)

    def answer(self, request: e.Request) -> object:
        """What this request asks for."""
        return None

    def break_(self, kind: type, error: Exception | None = None) -> None:
        """Fail the next request, which must be of this kind."""
        self.machine.fail(self.take(kind), error or GuestError("broken"), self.now)

    @property
    def wishes(self) -> list[type]:
        """Classes of the requests that nobody has taken, without records that are noted early."""
        return [type(request) for request in self.machine._requests if not is_early(request)]

    def events(self, kind: type | None = None) -> list:
        """The events that came since, of one kind or all."""
        found = []
        while (event := self.machine.poll_event()) is not None:
            if kind is None or isinstance(event, kind):
                found.append(event)
        return found

    # ---- the way ----

    def until(self, state: State):
        """Follow the script, from where it is, to a state."""
        while self.machine.state is not state:
            reached, step = self.script[self._done]
            self._done += 1
            step(self)
            if self.machine.state is not reached or reached not in _SENDING:
                self.drain()
            assert self.machine.state is reached, self.machine.result
        return self

    def pass_time(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass, with the machine's timers acting in it; what it says leaves at once."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + step, end)
            self.machine.handle_timeout(self.now)
            self.drain()


class SourceRig(Rig):
    """A source, whose destination is scripted."""

    machine: SourceMachine

    def __init__(self, image: bytes = IMAGE, *, guest: r.Guest = GUEST, **changes: object) -> None:
        self.memory = bytearray(image)
        self.table = RegionTable(guest.regions)
        views = {region.id: memoryview(self.memory)[: region.size_bytes] for region in self.table.copied}
        config = SourceConfig(guest=guest, guest_id=ID, epoch=EPOCH, runner=HERE, **changes)
        super().__init__(SourceMachine(config, RegionPages(self.table, views), 100.0))

    def welcome(self, **changes: object) -> r.Welcome:
        """A WELCOME that selects everything."""
        fields = {
            "version": VERSION,
            "session": SESSION,
            "token": TOKEN,
            "features": ALL_FEATURES,
            "limits": {},
            "agent": "rig",
        }
        return r.Welcome(**fields | changes)

    def answer(self, request: e.Request) -> object:
        """What this request asks for."""
        return {e.CollectDirty: self.clean(), e.SaveState: (SECTION,)}.get(type(request))

    def clean(self) -> dict[int, PageBitmap]:
        """What a tracker answers if nothing was written."""
        return {region.id: PageBitmap(region.pages) for region in self.table.copied}

    def dirty(self, *pages: int) -> dict[int, PageBitmap]:
        """What a tracker answers if these pages of the first region were written."""
        answer = self.clean()
        for page in pages:
            answer[self.table.copied[0].id].set(page, 1)
        return answer

    def ack(self, *rejected: r.PageRange, **changes: object) -> r.RoundAck:
        """The answer to the last ROUND_END."""
        end = next(each for each in reversed(self.heard) if isinstance(each, r.RoundEnd))
        count = sum(pages.count for pages in rejected)
        fields = {
            "attempt": end.attempt,
            "round": end.round,
            "pages": end.pages - count,
            "receive_rate_bytes_s": 0,
            "rejected": rejected,
        }
        return r.RoundAck(**fields | changes)

    def start(self) -> None:
        """Open the session."""
        self.machine.start(self.now)

    def acknowledge(self) -> None:
        """Nothing was rejected."""
        self.say(self.ack())

    def collect_and_note(self) -> None:
        """Nothing was written, so it is time; the session is on record."""
        self.do(e.CollectDirty, self.clean())
        self.do(e.Persist)

    def running(self) -> None:
        """RUNNING, and the decision is on record."""
        self.say(r.Running(EPOCH + 1, THERE))
        self.do(e.Persist)

    def loaded(self) -> None:
        """The right LOADED."""
        self.say(r.Loaded(1, self.machine.digest))


class DestinationRig(Rig):
    """A destination, whose source is scripted."""

    machine: DestinationMachine

    def __init__(self, *, guest: r.Guest = GUEST, **changes: object) -> None:
        super().__init__(DestinationMachine(DestinationConfig(**changes), 100.0))
        self.guest = guest
        self.table = RegionTable(guest.regions)
        self.image = bytearray(IMAGE)
        self.memory = {region.id: bytearray(region.size_bytes) for region in self.table.copied}
        self.digest = MemoryDigest(self.table)
        self.attempt = 1
        self.round = 0
        self.end = r.RoundEnd(1, 1, 0, 0)

    def hello(self, **changes: object) -> r.Hello:
        """A HELLO that offers everything."""
        fields = {
            "mode": Mode.OPEN,
            "versions": (VERSION,),
            "features": offer(),
            "limits": {},
            "guest": ID,
            "epoch": EPOCH,
            "runner": HERE,
            "agent": "rig",
        }
        return r.Hello(**fields | changes)

    def sink(self) -> RegionPages:
        """Memory that reads as zeros."""
        views = {number: memoryview(memory) for number, memory in self.memory.items()}
        return RegionPages(self.table, views)

    def answer(self, request: e.Request) -> object:
        """What this request asks for."""
        answers = {e.Admit: ADMISSION, e.Reserve: self.sink(), e.Claim: THERE, e.AnswerVerdict: VERDICT}
        return answers.get(type(request))

    def begin(self) -> None:
        """The next ROUND."""
        self.round += 1
        self.end = r.RoundEnd(self.attempt, self.round, 0, 0)
        self.say(r.Round(self.attempt, self.round, 4))

    def batch(self, starts: Sequence[int] = (0,), counts: Sequence[int] = (4,)) -> EncodedBatch:
        """Pages of the image, encoded."""
        pages = RegionPages(self.table, {0: memoryview(self.image)})
        return pages.encode(0, starts, counts)

    def pages(
        self, starts: Sequence[int] = (0,), counts: Sequence[int] = (4,), *, damage: bool = False
    ) -> None:
        """A PAGES frame; `damage`: its bytes differ from their hashes."""
        batch = self.batch(starts, counts)
        table = batch.table(self.attempt, self.round)
        bulk = bytearray(b"".join(batch.buffers))
        if damage:
            bulk[0] ^= 1
        sequence = self.said
        self.say_bytes(self.encode(table, bytes(bulk)))
        self.digest.record(table)
        self.end = r.RoundEnd(
            self.attempt,
            self.round,
            self.end.pages + batch.page_count,
            self.end.bulk_bytes + batch.bulk_bytes,
            ((0, sequence),),
        )

    def finish_round(self) -> None:
        """ROUND_END with the right counts."""
        self.say(self.end)

    def whole_round(self) -> None:
        """A round with all pages."""
        self.begin()
        self.pages()
        self.finish_round()

    def switchover(self) -> None:
        """SWITCHOVER of the current attempt."""
        self.say(r.Switchover(self.attempt, Style.STOP_AND_COPY))

    def switchover_noted(self) -> None:
        """SWITCHOVER, and the session is on record."""
        self.switchover()
        self.do(e.Persist)

    def claim_won(self) -> None:
        """The slot holds our runner, and the storage locks are ours."""
        self.do(e.Claim, THERE)
        self.do(e.TakeStorage)

    def release(self) -> None:
        """RELEASE, and it is on record."""
        self.say(r.Release(EPOCH + 1))
        self.do(e.Persist)

    def state(self, *sections: r.StateSection) -> None:
        """STATE frames."""
        for section in sections:
            self.say(*fragments(section, self.attempt, HANDSHAKE_BODY_BYTES))

    def seal(self, **changes: object) -> r.Seal:
        """SEAL for the image and one section."""
        fields = {
            "attempt": self.attempt,
            "algorithm": Checksum.XXH3_128,
            "digest": self.digest.value(),
            "state_digest": state_digest((SECTION,)),
            "state_sections": 1,
            "state_bytes": len(SECTION.data),
            "last_sequences": self.end.last_sequences,
        }
        return r.Seal(**fields | changes)


class ServingRig(SourceRig):
    """A source whose guest runs before pages 1 and 2 are there; `batch` is what it sends of them."""

    def __init__(self, **changes: object) -> None:
        policy = PolicySettings(switchover="bitmap", max_rounds=1)
        super().__init__(policy=policy, features=offer_for("bitmap"), **changes)

    def welcome(self, **changes: object) -> r.Welcome:
        """A WELCOME that selects everything that is offered."""
        return super().welcome(**{"features": BITMAP_FEATURES, **changes})

    def running_early(self) -> None:
        """RUNNING; what follows stays in the machine."""
        self.say(r.Running(EPOCH + 1, THERE))
        self.do(e.Persist)


class FetchingRig(DestinationRig):
    """A destination whose guest runs before pages 1 and 2 are there."""

    def __init__(self, **changes: object) -> None:
        features = BASE_FEATURES | {Feature.BITMAP, Feature.POST_COPY}
        super().__init__(**{"features": features, **changes})

    def hello(self, **changes: object) -> r.Hello:
        """A HELLO that offers all styles."""
        more = {Feature.BITMAP: 0, Feature.POST_COPY: 0}
        return super().hello(**{"features": offer(more=more), **changes})

    def switchover(self, style: Style = Style.BITMAP) -> None:
        """SWITCHOVER of the current attempt."""
        self.say(r.Switchover(self.attempt, style))

    def bitmap(self, first: int = 0, pages: bytes = b"\x06", bits: int = 4, **changes: object) -> None:
        """DIRTY_BITMAP of some pages of the region."""
        fields = {"attempt": self.attempt, "region": 0, "encoding": BitmapEncoding.PLAIN}
        self.say(r.DirtyBitmap(**fields | {"first": first, "bits": bits, "data": pages} | changes))

    def declare(self) -> None:
        """Pages 1 and 2 are stale."""
        self.bitmap()
        self.digest.mark_stale(0, [1], [2])

    def expect_and_load(self) -> None:
        """Accesses are held, and the state is loaded."""
        self.do(e.Expect)
        self.do(e.LoadState)

    def follow(
        self, starts: Sequence[int] = (1,), counts: Sequence[int] = (2,), *, damage: bool = False
    ) -> None:
        """Pages that follow the guest, each run as a whole."""
        pages = RegionPages(self.table, {0: memoryview(self.image)})
        batch = pages.encode(0, starts, counts, whole=True)
        table = batch.table(self.attempt, self.round + 1)
        bulk = bytearray(b"".join(batch.buffers))
        if damage:
            bulk[0] ^= 1
        self.say_bytes(self.encode(table, bytes(bulk)))
        self.digest.record(table)


class StoreRig(SourceRig):
    """A source whose session has a lease store."""

    def __init__(self, **changes: object) -> None:
        more = {Feature.LEASE_STORE: 0}
        super().__init__(**{"features": offer(more=more, required=more), **changes})

    def welcome(self, **changes: object) -> r.Welcome:
        """A WELCOME that selects that, too."""
        chosen = (*ALL_FEATURES, r.FeatureChoice(Feature.LEASE_STORE))
        return super().welcome(**{"features": chosen, **changes})

    def collect_and_note(self) -> None:
        """The session is on record, and the store has answered."""
        super().collect_and_note()
        self.do(e.ProbeStore)


class AskingRig(SourceRig):
    """A source that has nothing left but a question."""

    def ask(self) -> None:
        """Who owns the guest?"""
        self.machine.ask(SESSION, TOKEN, self.now)


class AskedRig(DestinationRig):
    """A destination that is asked who owns the guest."""

    def ask(self, **changes: object) -> None:
        """The question."""
        self.say(self.hello(mode=Mode.VERDICT, session=SESSION, token=TOKEN, **changes))


class HandingBackRig(DestinationRig):
    """A destination that has won its claim and does not get the guest's storage."""

    def claim_in_vain(self) -> None:
        """The slot holds our runner, but the storage locks are somebody else's."""
        self.do(e.Claim, THERE)
        self.break_(e.TakeStorage, GuestError("the locks are held"))


def _scripts() -> None:
    s, d = SourceState, DestinationState
    SourceRig.script = (
        (s.GREETING, SourceRig.start),
        (s.DESCRIBING, lambda rig: rig.say(rig.welcome())),
        (s.ARMING, lambda rig: rig.say(r.Accept(4 * PAGE))),
        (s.ROUND, lambda rig: rig.do(e.StartTracking)),
        (s.ACKING, lambda rig: rig.drain()),
        (s.COLLECTING, SourceRig.acknowledge),
        (s.PREPARING, lambda rig: rig.collect_and_note()),
        (s.PAUSING, lambda rig: rig.say(r.Ready(1))),
        (s.FREEZING, lambda rig: rig.do(e.Pause)),
        (s.BLACKOUT, lambda rig: rig.do(e.CollectDirty, rig.dirty(1))),
        (s.SEALED, lambda rig: rig.do(e.SaveState, (SECTION,))),
        (s.GRANTING, SourceRig.loaded),
        (s.RECORDING, lambda rig: rig.do(e.MarkGranted)),
        (s.HANDED_OVER, lambda rig: rig.do(e.Persist)),
        (s.MOVED, SourceRig.running),
        (s.RELEASING, lambda rig: rig.say(r.Complete(EPOCH + 1, rig.machine.digest))),
        (s.CLOSING, lambda rig: rig.do(e.ReleaseImage)),
        (s.CLOSED, lambda rig: rig.say(r.Bye())),
    )
    DestinationRig.script = (
        (d.ADMITTING, lambda rig: rig.say(rig.hello())),
        (d.WELCOMED, lambda rig: rig.do(e.Admit, ADMISSION)),
        (d.RESERVING, lambda rig: rig.say(rig.guest)),
        (d.STANDBY, lambda rig: rig.do(e.Reserve, rig.sink())),
        (d.RECEIVING, DestinationRig.begin),
        (d.RECEIVING, DestinationRig.pages),
        (d.STANDBY, DestinationRig.finish_round),
        (d.PREPARING, DestinationRig.switchover_noted),
        (d.READY, lambda rig: rig.do(e.Prepare)),
        (d.BLACKOUT, DestinationRig.begin),
        (d.FROZEN, DestinationRig.finish_round),
        (d.FROZEN, lambda rig: rig.state(SECTION)),
        (d.LOADING, lambda rig: rig.say(rig.seal())),
        (d.LOADED, lambda rig: rig.do(e.LoadState)),
        (d.RECORDING, lambda rig: rig.say(r.Handover(1, EPOCH))),
        (d.CLAIMING, lambda rig: rig.do(e.Persist)),
        (d.COMMITTING, DestinationRig.claim_won),
        (d.STARTING, lambda rig: rig.do(e.Persist)),
        (d.COMPLETING, lambda rig: rig.do(e.RunGuest)),
        (d.RUNNING, lambda rig: rig.do(e.Persist)),
        (d.RELEASED, DestinationRig.release),
        (d.CLOSED, lambda rig: rig.say(r.Bye())),
    )
    states = [state for state, _ in SourceRig.script]
    StoreRig.script = (
        *SourceRig.script[: states.index(s.GRANTING)],
        (s.CONFIRMING, SourceRig.loaded),
        (s.GRANTING, lambda rig: rig.do(e.ProbeStore)),
        *SourceRig.script[states.index(s.RECORDING) :],
    )
    ServingRig.script = tuple(
        {
            s.BLACKOUT: (s.BLACKOUT, lambda rig: rig.do(e.CollectDirty, rig.dirty(1, 2))),
            s.MOVED: (s.MOVED, ServingRig.running_early),
        }.get(state, (state, step))
        for state, step in SourceRig.script[: 1 + states.index(s.MOVED)]
    )
    states = [state for state, _ in DestinationRig.script]
    seal, run = states.index(d.LOADING), states.index(d.COMPLETING)
    FetchingRig.script = (
        *DestinationRig.script[: seal - 1],
        (d.FROZEN, FetchingRig.declare),
        *DestinationRig.script[seal - 1 : seal + 1],
        (d.LOADED, FetchingRig.expect_and_load),
        *DestinationRig.script[seal + 2 : run],
        (d.FETCHING, lambda rig: rig.do(e.RunGuest)),
        (d.FETCHING, FetchingRig.follow),
        (d.COMPLETING, lambda rig: rig.do(e.Installed)),
        *DestinationRig.script[run + 1 :],
    )
    AskingRig.script = ((s.ASKING, AskingRig.ask), (s.ANSWERED, lambda rig: rig.say(VERDICT)))
    AskedRig.script = (
        (d.ANSWERING, AskedRig.ask),
        (d.ANSWERED, lambda rig: rig.do(e.AnswerVerdict, VERDICT)),
    )
    states = [state for state, _ in DestinationRig.script]
    HandingBackRig.script = (
        *DestinationRig.script[: states.index(d.COMMITTING)],
        (d.HANDING_BACK, HandingBackRig.claim_in_vain),
        (d.DISCARDING, lambda rig: rig.do(e.Persist)),
        (d.ENDED, lambda rig: rig.do(e.Discard)),
    )


_scripts()

# The states in which a rig can stop and look, in order.
SOURCE_STATES = (SourceState.IDLE, *dict.fromkeys(state for state, _ in SourceRig.script))
DESTINATION_STATES = (DestinationState.IDLE, *dict.fromkeys(state for state, _ in DestinationRig.script))
BOTH: list[tuple[type[Rig], State]] = [
    *((SourceRig, state) for state in SOURCE_STATES),
    *((DestinationRig, state) for state in DESTINATION_STATES),
    (ServingRig, SourceState.MOVED),
    (FetchingRig, DestinationState.FETCHING),
    (StoreRig, SourceState.CONFIRMING),
    (AskingRig, SourceState.ASKING),
    (AskedRig, DestinationState.ANSWERING),
    (HandingBackRig, DestinationState.HANDING_BACK),
]
LIVE = [(rig, state) for rig, state in BOTH if state not in TERMINAL]


def code_of(rig: Rig) -> ErrorCode | None:
    """The code with which the machine has ended the session in its last frame."""
    last = rig.last()
    assert isinstance(last, (r.Abort, r.Refuse)), last
    return ErrorCode(last.code)


def rolled_back(rig: SourceRig, code: ErrorCode, *, by_peer: bool = False) -> e.Result:
    """The guest is set running here again, and the result says why."""
    rig.do(e.RollBack)
    result = rig.machine.result
    assert result is not None
    assert (result.outcome, result.code, result.by_peer) == (e.Outcome.ROLLED_BACK, code, by_peer)
    assert result.epoch == EPOCH
    return result


def discarded(rig: DestinationRig, code: ErrorCode, *, by_peer: bool = False) -> e.Result:
    """Everything that was reserved is freed, and the result says why."""
    rig.do(e.Discard)
    result = rig.machine.result
    assert result is not None
    assert (result.outcome, result.code, result.by_peer) == (e.Outcome.ROLLED_BACK, code, by_peer)
    assert e.RunGuest not in [type(each) for each in rig.asked]
    return result


# ---- guests ----


class PlainSource:
    """Any regions, any content; `write` is all that it does. Every page that is written is reported once."""

    def __init__(
        self,
        regions: Sequence[r.Region] = (REGION,),
        *,
        sections: Sequence[r.StateSection] = (SECTION,),
        state_bytes: int = 4096,
        seed: int | None = None,
    ) -> None:
        self.description = GuestDescription(ID, "plain", tuple(regions), state_bytes=state_bytes)
        self.table = RegionTable(regions)
        self.bytes = {region.id: bytearray(region.size_bytes) for region in regions}
        self.sections = tuple(sections)
        self.running = True
        self.tracked = False
        self.share = 0.0
        self.granted: int | None = None
        self.released = False
        self.image: dict[int, bytes] = {}
        self.calls: list[str] = []
        self.dirty = {region.id: PageBitmap(region.pages) for region in regions}
        if seed is not None:
            random = np.random.default_rng(seed)
            for region in regions:
                self.bytes[region.id][:] = random.bytes(region.size_bytes)

    tracker = "plain"

    def write(self, region: int, page: int, value: int) -> None:
        """Fill a page."""
        assert self.running
        size = 1 << next(each for each in self.description.regions if each.id == region).granule_log2
        self.bytes[region][page * size : (page + 1) * size] = bytes([value]) * size
        self.dirty[region].set(page, 1)

    def memory(self, region: int) -> memoryview:
        return memoryview(self.bytes[region])

    async def start_tracking(self) -> None:
        self.calls.append("start_tracking")
        self.tracked = True

    async def collect_dirty(self) -> dict[int, PageBitmap]:
        self.calls.append("collect_dirty")
        found, self.dirty = self.dirty, {id_: PageBitmap(each.bits) for id_, each in self.dirty.items()}
        return found

    async def stop_tracking(self) -> None:
        self.calls.append("stop_tracking")
        self.tracked = False

    async def pause(self) -> None:
        self.calls.append("pause")
        self.running = False
        self.image = {number: bytes(memory) for number, memory in self.bytes.items()}

    async def resume(self) -> None:
        self.calls.append("resume")
        assert self.granted is None
        self.running = True

    async def throttle(self, share: float) -> None:
        self.calls.append(f"throttle {share:.2f}")
        self.share = share

    async def save_state(self) -> Sequence[r.StateSection]:
        self.calls.append("save_state")
        assert not self.running
        return self.sections

    async def mark_granted(self, epoch: int) -> None:
        self.calls.append("mark_granted")
        self.granted = epoch

    async def revoke_grant(self, epoch: int) -> None:
        self.calls.append("revoke_grant")
        self.granted = None

    async def release(self) -> None:
        self.calls.append("release")
        assert not self.running
        self.released = True


class PlainDestination(WithoutPostCopy):
    """Room for a plain guest."""

    def __init__(self) -> None:
        self.bytes: dict[int, bytearray] = {}
        self.sections: tuple[r.StateSection, ...] | None = None
        self.running = False
        self.runs: list[tuple[int, r.Runner]] = []
        self.discarded = False
        self.calls: list[str] = []
        self.prepare_errors: list[GuestError] = []
        self.image: dict[int, bytes] = {}

    async def reserve(self, description: GuestDescription) -> None:
        self.calls.append("reserve")
        copied = (each for each in description.regions if each.transfer is Transfer.COPY)
        self.bytes = {region.id: bytearray(region.size_bytes) for region in copied}

    def memory(self, region: int) -> memoryview:
        return memoryview(self.bytes[region])

    async def prepare(self) -> None:
        self.calls.append("prepare")
        if self.prepare_errors:
            raise self.prepare_errors.pop(0)

    async def load_state(self, sections: Sequence[r.StateSection]) -> None:
        self.calls.append("load_state")
        self.sections = tuple(sections)

    async def take_storage(self) -> None:
        pass

    async def run(self, epoch: int, runner: r.Runner) -> None:
        self.calls.append("run")
        self.running = True
        self.runs.append((epoch, runner))
        self.image = {number: bytes(memory) for number, memory in self.bytes.items()}

    async def discard(self) -> None:
        self.calls.append("discard")
        assert not self.running
        self.discarded = True


def plain_pair(
    source: PlainSource | None = None, between: Callable[[Pair], None] = lambda _: None, **changes: object
) -> Pair:
    """Two plain guests and their machines; `changes` are of the source's configuration."""
    source = source or PlainSource()
    config = source_config_of(source.description, epoch=EPOCH, runner=HERE, **changes)
    return Pair(source, PlainDestination(), source_config=config, between=between)
