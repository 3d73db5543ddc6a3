"""What is done about a session whose end is not known, by what holder, store and peer say."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
from trio.abc import Clock

from holder_support import GUEST_ID, holder
from records_support import ARRIVING, GUEST, IMAGE, ONE, OTHERS, RECEIVING, SENDING, STORED
from sterna.core.history import History
from sterna.core.records import (
    Claiming,
    Complete,
    Decided,
    Granted,
    HandBack,
    Record,
    Resolved,
    RunnerRecord,
    SessionRecord,
    Start,
)
from sterna.core.verdict import Step
from sterna.errors import (
    GuestError,
    RecordError,
    SternaError,
    StoreDamaged,
    StoreUnavailable,
    TransportError,
)
from sterna.guest.holder_client import HolderConnection, HolderSilent, HolderStatus, connect_holder
from sterna.host import recovery as recovery_module
from sterna.host.lease import LeaseStore
from sterna.host.lease_memory import MemoryLeaseStore
from sterna.host.records_shelf import MemoryRecords
from sterna.host.recovery import HeldImage, Recovered, Recovery, arriving, attach_to, guest_in, held_image
from sterna.registry import ErrorCode, Owner
from sterna.testing.faulty_store import Fault, FaultyStore
from sterna.wire.records import NO_ID, Runner, Verdict

HERE = "here"
FIRST = Runner(HERE, b"f" * 16)
CLAIM = Claiming(ONE, 2, Runner(HERE, b"c" * 16), ONE)
THERE = Verdict(Owner.DESTINATION, 2, OTHERS)
BACK = Verdict(Owner.SOURCE, 1, OTHERS, handed_back=True)


class FakeImage(HeldImage):
    """A holder as its status tells; None is one that has ended."""

    def __init__(self, state: str | None, *, epoch: int = 1, mark: int = 0, image: bytes = IMAGE) -> None:
        super().__init__(None, GUEST)
        self.state, self.epoch, self.mark, self.image = state, epoch, mark, image
        self.runner = FIRST
        self.missing = 0
        self.calls: list[str] = []

    async def status(self) -> HolderStatus | None:
        await trio.lowlevel.checkpoint()
        if self.state is None:
            return None
        return HolderStatus(
            self.state, self.epoch, self.mark, self.runner, "", False, {}, self.image, missing=self.missing
        )

    async def run(self, epoch: int, runner: Runner) -> None:
        assert epoch >= self.mark
        self.calls.append("run")
        self.state, self.epoch, self.mark, self.runner = "running", epoch, 0, runner

    async def run_on(self) -> None:
        self.calls.append("run on")
        self.state = "running"

    async def discard(self) -> None:
        self.calls.append("discard")
        self.state, self.image = "empty", NO_ID


@dataclass
class Scene:
    """One host after a crash."""

    image: FakeImage
    records: Sequence[Record]
    store: LeaseStore | None = None
    answers: list[Verdict | SternaError] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    asked: list[SessionRecord] = field(default_factory=list)
    within_s: float = 60.0
    mapped: bool = False
    keeper: MemoryRecords = field(default_factory=lambda: MemoryRecords(GUEST))

    def recovery(self) -> Recovery:
        return Recovery(
            HERE,
            self.keeper,
            self.image,
            store=self.store,
            ask=self.ask if self.answers else None,
            within_s=self.within_s,
            tell=self.said.append,
            mapped=self.mapped,
        )

    async def note(self) -> None:
        for record in self.records:
            await self.keeper.append(record)

    async def run(self) -> Recovered:
        await self.note()
        recovered = await self.recovery().run()
        assert recovered is not None
        return recovered

    async def ask(self, session: SessionRecord, runner: Runner) -> Verdict:
        self.asked.append(session)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, SternaError):
            raise answer
        return answer

    @property
    def kinds(self) -> list[str]:
        return [record.kind for record in self.keeper.history.records]


async def filled(*runners: Runner) -> MemoryLeaseStore:
    store = MemoryLeaseStore()
    for epoch, runner in enumerate(runners, 1):
        await store.claim(GUEST, epoch, runner)
    return store


def granted() -> FakeImage:
    return FakeImage("granted", mark=2)


# ---- a source without a store ----


async def test_a_guest_that_was_handed_back_runs_again_two_epochs_on() -> None:
    """[ONE-43] [ONE-48] By the destination's word, under a runner that is on record before."""
    scene = Scene(granted(), (SENDING, Granted(ONE, 2)), answers=[BACK])
    recovered = await scene.run()
    assert recovered.runs_here
    assert recovered.acted
    assert (scene.image.state, scene.image.epoch) == ("running", 3)
    assert scene.kinds == ["session", "granted", "runner", "decided"]
    assert scene.image.runner in scene.keeper.history.runners(3, IMAGE)
    # Once more, and nothing happens any more.
    again = await scene.recovery().run()
    assert again is not None
    assert again.runs_here
    assert scene.image.calls == ["run"]


async def test_what_the_connection_has_told_need_not_be_asked_again() -> None:
    """[ONE-43] HANDBACK is final: the destination that has sent it may be gone by now."""
    scene = Scene(
        granted(), (SENDING, Granted(ONE, 2)), answers=[TransportError(ErrorCode.CONNECT_FAILED, "")]
    )
    await scene.note()
    recovered = await scene.recovery().anew(BACK).run()
    assert recovered is not None
    assert recovered.runs_here
    assert (scene.image.epoch, scene.asked) == (3, [])


async def test_who_must_know_where_it_stands_is_told() -> None:
    """Around each act; so is whoever recovers anew."""
    told: list[tuple[str, bool]] = []
    scene = Scene(granted(), (SENDING, Granted(ONE, 2)))
    await scene.note()
    image, on_act = scene.image, lambda act, /, *, done: told.append((type(act).__name__, done))
    await Recovery(HERE, scene.keeper, image, on_act=on_act).anew(BACK).run()
    assert told == [(name, done) for name in ("Note", "Note", "RunHere") for done in (False, True)]


async def test_an_image_that_an_earlier_migration_has_left_behind_never_runs() -> None:
    """[ONE-52] The guest came back into another holder and was sent on; that one's runner is not for this."""
    came_back = replace(SENDING, epoch=3)
    stored = replace(came_back, store=True)
    for records, store in (
        ((came_back, Granted(ONE, 4)), None),
        ((stored, Granted(ONE, 4)), await filled(FIRST, OTHERS, CLAIM.runner, Runner("there", b"4" * 16))),
        (
            (
                stored,
                Granted(ONE, 4),
                RunnerRecord(ONE, 4, Runner(HERE, b"4" * 16), b"other image".ljust(16)),
            ),
            await filled(FIRST, OTHERS, CLAIM.runner, Runner(HERE, b"4" * 16)),
        ),
    ):
        scene = Scene(granted(), records, store=store, answers=[BACK])
        recovered = await scene.run()
        assert recovered.lost is (store is not None)
        assert (scene.image.state, scene.image.calls) == ("granted", [])
    newer = FakeImage("granted", epoch=3, mark=4)
    scene = Scene(newer, records, store=store)
    assert (await scene.run()).lost
    assert newer.calls == []


async def test_a_mark_without_a_record_tells_whom_to_ask() -> None:
    """[ONE-61] [ONE-19] The record of the session was there before the order to mark."""
    scene = Scene(granted(), (SENDING,), answers=[BACK])
    assert (await scene.run()).runs_here
    assert scene.asked == [SENDING]


async def test_a_destination_that_has_started_it_keeps_it() -> None:
    """[ONE-45] The image stays, frozen, until somebody releases it [ONE-38]."""
    scene = Scene(granted(), (SENDING, Granted(ONE, 2)), answers=[THERE])
    recovered = await scene.run()
    assert (recovered.judgement.owner, recovered.runs_here) == (Owner.DESTINATION, False)
    assert scene.keeper.history.decision(ONE) == Decided(ONE, 2, Owner.DESTINATION)
    assert (scene.image.state, scene.image.calls) == ("granted", [])


async def test_a_destination_that_is_silent_is_asked_again_and_in_the_end_nothing_is_done(
    autojump_clock: Clock,
) -> None:
    """[ONE-20] [ONE-47] No time that passes lets the guest run."""
    gone = TransportError(ErrorCode.CONNECT_FAILED, "nobody listens")
    scene = Scene(granted(), (SENDING, Granted(ONE, 2)), answers=[gone], within_s=30)
    started = trio.current_time()
    recovered = await scene.run()
    assert trio.current_time() - started == pytest.approx(30)
    assert recovered.judgement.owner is Owner.UNDECIDED
    assert len(scene.asked) > 5
    assert any("nobody listens" in each for each in scene.said)
    assert (scene.image.state, scene.image.calls) == ("granted", [])
    scene.answers = [gone, gone, BACK]
    assert (await scene.run()).runs_here


async def test_waiting_can_be_ended(autojump_clock: Clock) -> None:
    scene = Scene(granted(), (SENDING, Granted(ONE, 2)), answers=[TransportError(ErrorCode.CONNECT_FAILED)])
    await scene.note()
    recovery = scene.recovery()
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await trio.sleep(3)
            recovery.stop()

        nursery.start_soon(stop)
        recovered = await recovery.run()
    assert recovered is not None
    assert recovered.judgement.step is Step.ASK
    recovery = scene.recovery().anew()
    recovery.stop()  # before it waits: it does what needs nobody
    recovered = await recovery.run()
    assert recovered is not None
    assert recovered.judgement.owner is Owner.UNDECIDED


async def test_what_was_handed_back_in_the_session_need_not_be_asked_again() -> None:
    """[ONE-37] HANDBACK itself is the permission; its sender may have ended by now."""
    scene = Scene(granted(), (SENDING, Granted(ONE, 2)))
    await scene.note()
    for said, owner in ((THERE, Owner.UNDECIDED), (BACK, Owner.SOURCE)):
        recovered = await scene.recovery().anew(said).run()
        assert recovered is not None
        assert recovered.judgement.owner is owner
    assert scene.image.state == "running"


async def test_where_nobody_can_be_asked_it_is_undecided() -> None:
    for answers in ([], [Verdict(Owner.UNDECIDED, 1, OTHERS)]):
        scene = Scene(granted(), (SENDING, Granted(ONE, 2)), answers=list(answers))
        recovered = await scene.run()
        assert (recovered.judgement.owner, recovered.lost) == (Owner.UNDECIDED, False)
        assert scene.image.calls == []


async def test_an_operator_s_word_is_acted_upon() -> None:
    """[ONE-59]"""
    scene = Scene(granted(), (SENDING, Granted(ONE, 2), Resolved(ONE, 2, Owner.SOURCE, "there")))
    assert (await scene.run()).runs_here
    assert scene.image.epoch == 3


async def test_nothing_to_recover() -> None:
    scene = Scene(FakeImage("running"), (SENDING,))
    await scene.note()
    assert await scene.recovery().run() is None


async def test_a_holder_that_is_gone_or_has_another_guest_runs_nothing() -> None:
    """[ONE-34]"""
    for image in (FakeImage(None), FakeImage("released")):
        scene = Scene(image, (SENDING, Granted(ONE, 2)), answers=[BACK])
        recovered = await scene.run()
        assert (recovered.judgement.owner, recovered.lost) == (Owner.UNDECIDED, False)
        recovered = await scene.recovery().anew(BACK).run()
        assert recovered is not None
        assert (recovered.lost, recovered.runs_here) == (True, False)
    image = granted()
    image.guest = b"x" * 16
    await Scene(image, (SENDING, Granted(ONE, 2)), answers=[BACK]).run()
    assert image.calls == []


# ---- a source with a store ----


async def test_a_source_claims_what_it_has_granted(autojump_clock: Clock) -> None:
    """[ONE-21] [ONE-5] [ONE-7] [ONE-31] With a runner that is on record, as often as it takes."""
    real = await filled(FIRST)
    silence = [Fault.OUTAGE, Fault.NONE, Fault.NONE, Fault.OUTAGE, Fault.LOST_REPLY]
    scene = Scene(granted(), (STORED, Granted(ONE, 2)), store=FaultyStore(real, silence))
    recovered = await scene.run()
    assert recovered.runs_here
    assert scene.image.epoch == 2
    assert await real.read(GUEST, 2) == scene.image.runner
    assert scene.kinds == ["session", "granted", "runner", "decided"]
    assert any("does not answer" in each for each in scene.said)


async def test_a_recorded_claim_is_repeated_and_no_other_made() -> None:
    """[ONE-7] [ONE-8]"""
    made = RunnerRecord(ONE, 2, Runner(HERE, b"m" * 16), IMAGE)
    store = await filled(FIRST)
    scene = Scene(granted(), (STORED, Granted(ONE, 2), made), store=store)
    assert (await scene.run()).runs_here
    assert scene.image.runner == made.runner


async def test_a_claim_that_is_lost_leaves_the_guest_to_the_destination(autojump_clock: Clock) -> None:
    """[ONE-20] [ONE-38] Nothing final is noted before it has everything: it may hand the guest back."""
    store = await filled(FIRST, OTHERS)
    silent = TransportError(ErrorCode.CONNECT_FAILED)
    scene = Scene(granted(), (STORED, Granted(ONE, 2)), store=store, answers=[silent], within_s=5)
    recovered = await scene.run()
    assert recovered.judgement.owner is Owner.DESTINATION
    assert scene.keeper.history.decision(ONE) is None
    scene.answers = [Verdict(Owner.DESTINATION, 2, OTHERS, complete=True, digest=b"d" * 16)]
    await scene.run()
    assert scene.keeper.history.decision(ONE) == Decided(ONE, 2, Owner.DESTINATION)
    assert scene.image.calls == []


async def test_what_was_handed_back_is_claimed_behind(autojump_clock: Clock) -> None:
    """[ONE-37]"""
    store = await filled(FIRST, OTHERS)
    scene = Scene(granted(), (STORED, Granted(ONE, 2)), store=store, answers=[BACK])
    assert (await scene.run()).runs_here
    assert scene.image.epoch == 3
    assert await store.read(GUEST, 3) == scene.image.runner


def nothing_left(**changes: object) -> Scene:
    """A source whose holder has died with pages that were to follow, and whose process has them mapped."""
    scene = Scene(FakeImage("empty"), (STORED, Granted(ONE, 2, follows=True)), mapped=True)
    return replace(scene, **changes)


async def test_a_process_that_has_the_pages_waits_for_who_claims_the_guest(autojump_clock: Clock) -> None:
    """[ONE-42] Its holder is gone; the claim of the destination may be on its way, and comes to be."""
    store = await filled(FIRST)
    scene, found = nothing_left(store=store, answers=[THERE]), []

    async def run() -> None:
        found.append(await scene.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(20)
        assert found == []
        await store.claim(GUEST, 2, OTHERS)
    assert found[0].judgement.owner is Owner.DESTINATION
    assert scene.image.calls == []


async def test_who_never_claims_the_guest_is_not_waited_for_for_ever(autojump_clock: Clock) -> None:
    """[ONE-42] [ONE-30] It is not known then who owns it. Without its process the pages are gone."""
    scene = nothing_left(store=await filled(FIRST), within_s=30)
    recovered = await scene.run()
    assert (recovered.judgement.step, recovered.lost) == (Step.CLAIM_NEXT, False)
    assert (await nothing_left(store=scene.store, mapped=False).run()).lost


async def test_without_a_store_the_destination_has_time_to_start_the_guest(autojump_clock: Clock) -> None:
    """[ONE-44] [ONE-42] Asked at once, it would give up what it is about to run, and nobody else can."""
    records, began = (SENDING, Granted(ONE, 2, follows=True)), trio.current_time()
    scene = nothing_left(records=records, answers=[THERE])
    assert (await scene.run()).judgement.owner is Owner.DESTINATION
    assert trio.current_time() >= began + recovery_module._START_WITHIN_S
    began = trio.current_time()
    scene = nothing_left(records=records, answers=[THERE])
    await scene.note()
    recovery = scene.recovery()
    recovery.stop()  # who wishes to end asks now [CON-72]
    assert await recovery.run() is not None
    assert trio.current_time() == began


async def test_a_session_without_a_store_is_not_decided_by_one() -> None:
    """[ONE-65] The guest has a slot, and its session went without: the empty one behind it says nothing.

    The destination may have started the guest. Who claimed that slot would run it a second time.
    """
    store = await filled(FIRST)
    scene = Scene(granted(), (SENDING, Granted(ONE, 2)), store=store, answers=[THERE])
    recovered = await scene.run()
    assert (recovered.judgement.owner, recovered.judgement.clause) == (Owner.DESTINATION, "ONE-53")
    assert (scene.asked, scene.image.calls) == ([SENDING], [])
    assert await store.read(GUEST, 2) is None


@pytest.mark.parametrize(("noted", "claimed"), [(STORED, ()), (ARRIVING, (CLAIM,))])
@pytest.mark.parametrize("store", [None, MemoryLeaseStore()])
async def test_a_session_with_a_store_is_decided_by_that_alone(
    noted: SessionRecord, claimed: Sequence[Record], store: LeaseStore | None
) -> None:
    """[ONE-65] [ONE-20] No store, or an empty one, is at hand: the word of the peer is none."""
    image = loaded() if claimed else granted()
    scene = Scene(image, (noted, *(claimed or (Granted(ONE, 2),))), store=store, answers=[BACK])
    with pytest.raises(StoreDamaged, match="--store" if store is None else "name the one that it had"):
        await scene.run()
    assert (scene.asked, scene.image.calls) == ([], [])
    assert len(scene.kinds) == 2


@pytest.mark.parametrize("store", [None, MemoryLeaseStore()])
async def test_a_store_that_is_gone_holds_up_nothing_that_is_decided(store: LeaseStore | None) -> None:
    """[ONE-65] The guest is the destination's for good, and what is here stands still."""
    records = STORED, Granted(ONE, 2, follows=True), Decided(ONE, 2, Owner.DESTINATION)
    scene = Scene(granted(), records, store=store, answers=[BACK])
    recovered = await scene.run()
    assert (recovered.judgement.owner, recovered.judgement.step) == (Owner.DESTINATION, Step.FREE)
    assert (scene.asked, scene.image.calls, len(scene.kinds)) == ([], [], 3)


async def test_a_store_that_never_answers_is_undecided(autojump_clock: Clock) -> None:
    """[ONE-31]"""
    silent = FaultyStore(MemoryLeaseStore(), [Fault.OUTAGE] * 10_000)
    scene = Scene(granted(), (STORED, Granted(ONE, 2)), store=silent, within_s=20)
    recovered = await scene.run()
    assert (recovered.judgement.owner, recovered.judgement.step) == (Owner.UNDECIDED, Step.WAIT_FOR_STORE)
    assert scene.image.calls == []


class OneByOne(MemoryLeaseStore):
    """Claims are answered once they may be, or not at all."""

    def __init__(self, *, silent: bool = False, empty: bool = False) -> None:
        super().__init__()
        self.claims, self.silent, self.empty = 0, silent, empty
        self.begun, self.may = trio.Event(), trio.Event()

    async def claim(self, guest: bytes, epoch: int, runner: Runner) -> Runner | None:
        if epoch > 1:
            self.claims += 1
            self.begun.set()
            await self.may.wait()
            if self.silent:
                raise StoreUnavailable("nobody there")
            if self.empty:
                return None
        return await super().claim(guest, epoch, runner)


async def stopped(scene: Scene, store: OneByOne, *, early: bool) -> Recovered:
    """The end of a recovery that was asked to end before its claim, or while that was under way."""
    scene.store = store
    await store.claim(GUEST, 1, FIRST)
    await scene.note()
    recovery, found = scene.recovery(), []
    if early:
        recovery.stop()

    async def run() -> None:
        found.append(await recovery.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await store.begun.wait()
        recovery.stop()
        store.may.set()
    (recovered,) = found
    assert recovered is not None
    return recovered


@pytest.mark.parametrize("early", [True, False])
async def test_a_wish_to_end_does_not_take_the_claim_along(early: bool) -> None:
    """[CON-72] It asks by that very claim, and the guest rolls back where it is won."""
    scene, store = Scene(granted(), (STORED, Granted(ONE, 2))), OneByOne()
    assert (await stopped(scene, store, early=early)).runs_here
    assert (store.claims, scene.image.epoch) == (1, 2)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("empty", [True, False])
async def test_a_claim_behind_a_wish_to_end_is_not_repeated(
    early: bool, empty: bool, autojump_clock: Clock
) -> None:
    """[CON-72] [ONE-8] The store has not said whose the slot is: so nobody knows, and the claim stands.

    It may have said that the slot is empty, which decides as little.
    """
    scene, store = Scene(granted(), (STORED, Granted(ONE, 2))), OneByOne(silent=not empty, empty=empty)
    recovered = await stopped(scene, store, early=early)
    assert recovered.judgement.owner is Owner.UNDECIDED
    assert (store.claims, scene.image.calls) == (1, [])
    assert scene.kinds[-1] == "runner"


async def test_a_wish_to_end_that_is_too_late() -> None:
    """[CON-72] [ONE-20] The slot is the destination's: there is nothing to claim."""
    scene = Scene(granted(), (STORED, Granted(ONE, 2)), store=await filled(FIRST, OTHERS))
    await scene.note()
    recovery = scene.recovery()
    recovery.stop()
    recovered = await recovery.run()
    assert recovered is not None
    assert recovered.judgement.owner is Owner.DESTINATION
    assert scene.image.calls == []


async def test_a_wish_to_end_leaves_one_question_without_a_store() -> None:
    """[CON-72] [ONE-43] That is what the source has in place of a claim."""
    for answer, runs_here in ((BACK, True), (TransportError(ErrorCode.CONNECT_FAILED), False)):
        scene = Scene(granted(), (SENDING, Granted(ONE, 2)), answers=[answer])
        await scene.note()
        recovery = scene.recovery()
        recovery.stop()
        recovered = await recovery.run()
        assert recovered is not None
        assert recovered.runs_here is runs_here
        assert len(scene.asked) == 1


# ---- a destination ----


def loaded(state: str = "loaded", **more: object) -> FakeImage:
    return FakeImage(state, epoch=0, image=ONE, **more)  # type: ignore[arg-type]


async def test_what_was_to_be_started_is_started() -> None:
    """[ONE-33]"""
    scene = Scene(loaded(), (RECEIVING, CLAIM, Start(2)))
    assert (await scene.run()).runs_here
    assert (scene.image.epoch, scene.image.runner) == (2, CLAIM.runner)


async def test_what_came_whole_is_complete_once_it_runs() -> None:
    """[ONE-39] COMPLETE is what its source waits for with the image."""
    scene = Scene(loaded(), (RECEIVING, replace(CLAIM, digest=bytes(16)), Start(2)))
    recovered = await scene.run()
    assert (recovered.runs_here, recovered.acted) == (True, True)
    assert scene.keeper.history.complete(ONE) == Complete(ONE, 2, bytes(16))


async def test_what_was_started_and_is_gone_is_lost() -> None:
    """[ONE-34] [ONE-52] Another session's image in the holder is not this one."""
    for image in (FakeImage(None), FakeImage("empty"), FakeImage("loaded", image=IMAGE)):
        scene = Scene(image, (RECEIVING, CLAIM, Start(2)))
        recovered = await scene.run()
        assert (recovered.lost, recovered.runs_here) == (True, False)
        assert image.calls == []


async def test_a_claim_of_an_earlier_controller_is_not_started_without_a_store() -> None:
    """[ONE-58] It is kept until somebody asks, or an operator decides."""
    scene = Scene(loaded(), (RECEIVING, CLAIM))
    recovered = await scene.run()
    assert (recovered.judgement.owner, recovered.judgement.step) == (Owner.UNDECIDED, Step.HAND_BACK)
    assert scene.image.state == "loaded"
    await scene.keeper.append(HandBack(2))
    recovered = await scene.run()
    assert recovered.judgement.owner is Owner.SOURCE
    assert scene.image.calls == ["discard"]


@pytest.mark.parametrize("ready", [True, False])
async def test_with_a_store_the_claim_is_repeated_and_decided(ready: bool) -> None:
    """[ONE-58] [ONE-7] Started where the image is, handed back where it is not."""
    store = await filled(FIRST)
    scene = Scene(loaded() if ready else FakeImage("empty"), (ARRIVING, CLAIM), store=store)
    recovered = await scene.run()
    assert await store.read(GUEST, 2) == CLAIM.runner
    assert recovered.runs_here is ready
    assert scene.kinds[-1] == ("start" if ready else "handback")
    assert scene.image.calls == (["run"] if ready else [])


async def test_what_lacks_pages_is_handed_back_to_who_has_them() -> None:
    """[ONE-58] Nobody knows whether they would ever come."""
    scene = Scene(loaded(), (ARRIVING, CLAIM), store=await filled(FIRST))
    scene.image.missing = 3
    assert not (await scene.run()).runs_here
    assert scene.kinds[-1] == "handback"
    assert scene.image.calls == ["discard"]


async def test_with_a_store_a_claim_that_is_lost_frees_the_room() -> None:
    """[ONE-29]"""
    scene = Scene(loaded(), (ARRIVING, CLAIM), store=await filled(FIRST, OTHERS))
    recovered = await scene.run()
    assert recovered.judgement.owner is Owner.SOURCE
    assert scene.image.calls == ["discard"]


async def test_what_went_on_behind_the_claim_is_handed_back() -> None:
    """[ONE-58] Slot n + 2 is filled: an operator has decided meanwhile."""
    store = await filled(FIRST, CLAIM.runner, OTHERS)
    scene = Scene(loaded(), (ARRIVING, CLAIM), store=store)
    await scene.run()
    assert scene.kinds[-1] == "handback"
    assert scene.image.calls == ["discard"]


# ---- trouble ----


class Full(MemoryRecords):
    async def append(self, record: Record) -> None:
        if record.kind == "decided":
            raise RecordError("the disk is full")
        await super().append(record)


async def test_nothing_runs_by_a_decision_that_cannot_be_noted() -> None:
    scene = Scene(granted(), (SENDING, Granted(ONE, 2)), answers=[BACK], keeper=Full(GUEST))
    with pytest.raises(RecordError, match="full"):
        await scene.run()
    assert scene.image.calls == []


async def test_a_holder_that_does_not_do_it_is_told() -> None:
    class Broken(FakeImage):
        async def run(self, epoch: int, runner: Runner) -> None:
            raise GuestError("run: no")

    scene = Scene(Broken("granted", mark=2), (SENDING, Granted(ONE, 2)), answers=[BACK])
    with pytest.raises(GuestError, match="run: no"):
        await scene.run()
    assert scene.image.state == "granted"


# ---- real holders ----


async def test_the_image_of_a_holder(tmp_path: Path) -> None:
    """[HOL-13] [HOL-29] A guest that was granted runs on under an epoch that was won back."""
    path = tmp_path / "holder"
    with holder(path, with_guest=True) as engine:
        async with await attach_to(path, lambda status: status.epoch) as connection:
            assert await guest_in(connection) == GUEST_ID
            for operation, fields in (("pause", {}), ("grant", {"epoch": 2})):
                await connection.call(operation, fields)
            await connection.detach()
        async with held_image(path, lambda status: status.granted_epoch) as image:
            status = await image.status()
            assert status is not None
            assert (status.state, image.guest) == ("granted", GUEST_ID)
            await image.run(3, Runner(HERE, b"w" * 16))
            assert (engine.state, engine.epoch) == ("running", 3)
        async with held_image(path, lambda _: 3) as image:
            await image.run_on()
            assert engine.state == "running"
    async with held_image(path, lambda _: 3) as image:
        assert (await image.status(), image.guest) == (None, None)
        with pytest.raises(GuestError, match="holder is gone"):
            await image.discard()


async def test_a_holder_that_is_silent_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    """[ONE-34] It may only be frozen, and its guest run: nobody is told that it is lost, nothing is noted."""
    path = tmp_path / "holder"
    with closing(socket.socket(socket.AF_UNIX)) as frozen:
        frozen.bind(str(path))
        frozen.listen(1)
        with pytest.raises(HolderSilent, match="within 30 s"):
            async with held_image(path, lambda _: 3):
                pass
    monkeypatch.setattr(HolderConnection, "status", _silent)
    keeper = MemoryRecords(GUEST)
    for record in (RECEIVING, CLAIM, Start(2)):
        await keeper.append(record)
    async with HolderConnection(trio.socket.socket()) as connection:
        with pytest.raises(HolderSilent):
            await Recovery(HERE, keeper, HeldImage(connection, GUEST)).run()


async def _silent(_: HolderConnection) -> HolderStatus:
    raise HolderSilent("status: no answer")


async def test_a_holder_whose_controller_lives_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[HOL-14] It may just be ending: that is waited for, but not for ever."""
    monkeypatch.setattr(recovery_module, "_FIRST_PAUSE_S", 0.0)
    path = tmp_path / "holder"
    with holder(path, with_guest=False):
        async with await connect_holder(path):
            with pytest.raises(GuestError) as caught:
                async with held_image(path, lambda _: 0):
                    pass
            assert caught.value.code is ErrorCode.BUSY
        async with held_image(path, lambda _: 0) as image:
            assert image.guest is None


async def test_what_is_loaded_is_of_the_session_that_its_image_names() -> None:
    """[ONE-62] [ONE-52]"""
    history = History(GUEST).after(ARRIVING)
    for image, found in ((loaded(), True), (FakeImage("loaded"), False), (loaded("reserved"), False)):
        status = await image.status()
        assert status is not None
        assert (arriving(history, status) is not None) is found
