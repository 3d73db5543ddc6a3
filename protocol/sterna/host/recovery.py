"""Carrying out what `sterna.core.recovery` says, until it is settled who runs a guest.

The same after a session whose end is not known and at the start of an endpoint that finds such a session
in its records. What it waits for (the store, the destination) may take as long as it likes, or for ever:
the waiting has a deadline and can be ended, and then the guest stays as it is, `undecided`. What is durable
by then is what the next one begins with.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

import trio

from sterna.core import recovery as acts
from sterna.core.history import History, RecordConflict
from sterna.core.records import Record, RunnerRecord, SessionRecord, Side
from sterna.core.recovery import Image, Settled, Situation, next_act, open_session
from sterna.core.verdict import Facts, Judgement, Store, has_all_pages, judge
from sterna.errors import GuestError, LocalProtocolError, SternaError
from sterna.guest.holder_client import HolderConnection, HolderSilent, HolderStatus, connect_holder
from sterna.guest.holder_fields import an_object, description_from_json, runner_to_json
from sterna.guest.holder_frames import JsonObject
from sterna.host.lease import LeaseStore, claim_until_named
from sterna.host.records_shelf import Keeper
from sterna.host.slots_behind import slots_behind
from sterna.net.options import ignore_request
from sterna.net.pauses import Pauses
from sterna.registry import ErrorCode, Owner
from sterna.wire.records import NO_ID, Runner, Verdict

Ask = Callable[[SessionRecord, Runner], Awaitable[Verdict]]
Known = Callable[[HolderStatus], int]
Tell = Callable[[str], None]

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_ATTEMPTS: Final = 10
# How long a destination has to start what it would give up when asked. It takes two syncs and a link's delay.
_START_WITHIN_S: Final = 2.0
# Each act brings things forward or ends in a wait; nothing that is legal takes more than a dozen of them.
_ACTS_MAX: Final = 100

_AT_SOURCE: Final = {"running": Image.RUNS, "paused": Image.STOPPED, "granted": Image.STOPPED}
_AT_DESTINATION: Final = {
    "reserved": Image.ROOM,
    "loaded": Image.READY,
    "running": Image.RUNS,
    "paused": Image.STOPPED,
    "granted": Image.STOPPED,
}


class OnAct(Protocol):
    """Told of every act before it is carried out, and again when it has been."""

    def __call__(self, act: acts.Act, /, *, done: bool) -> None:
        """Must not block."""
        ...


@asynccontextmanager
async def held_image(path: str | os.PathLike[str], known: Known) -> AsyncIterator[HeldImage]:
    """What is in the holder at `path`, for a controller; nothing if it is gone. `known` as for `attach_to`.

    Raises:
        HolderSilent: it may be there, but does not answer.
        GuestError: another controller has it, and is not done within a while; or the holder is broken.
    """
    try:
        connection = await attach_to(path, known)
    except HolderSilent:
        raise
    except GuestError as error:
        if error.code is not ErrorCode.GUEST_FAILED:
            raise
        yield HeldImage(None, None)
        return
    try:
        yield HeldImage(connection, await guest_in(connection))
    finally:
        with trio.CancelScope(shield=True):
            try:
                await connection.detach()
            except GuestError:
                await connection.aclose()


async def guest_in(connection: HolderConnection) -> bytes | None:
    """The id of the guest that a holder keeps; None for none."""
    if connection.attached.state in {"empty", "released"}:
        return None
    answer = await connection.call("describe")
    answer.close()
    return description_from_json(an_object(answer.fields, "description")).id


async def attach_to(path: str | os.PathLike[str], known: Known) -> HolderConnection:
    """Attach as a controller; the one before may just be ending.

    Args:
        path: the holder's socket.
        known: the newest epoch that this host knows of, of a guest in a holder with this status.

    Raises:
        GuestError: as `connect_holder`.
    """
    async with await connect_holder(path, role="observer") as observer:
        epoch = known(observer.attached)
    for _ in range(_ATTEMPTS):
        try:
            return await connect_holder(path, epoch=epoch)
        except GuestError as error:
            if error.code is not ErrorCode.BUSY:
                raise
        await trio.sleep(_FIRST_PAUSE_S)
    return await connect_holder(path, epoch=epoch)


class HeldImage:
    """A guest's image in a holder, as far as a recovery touches it.

    Args:
        connection: attached as controller, with the right to run; None where the holder is gone.
        guest: the id of the guest that is in it, None for none.
    """

    def __init__(self, connection: HolderConnection | None, guest: bytes | None) -> None:
        self.guest = guest
        self._connection = connection

    async def status(self) -> HolderStatus | None:
        """How it is now; None if the holder is gone.

        Raises:
            HolderSilent: it may be there, but does not answer.
        """
        if self._connection is None:
            return None
        try:
            return await self._connection.status()
        except HolderSilent:
            raise  # one that is only frozen has its guest all the same
        except GuestError:
            return None

    async def run(self, epoch: int, runner: Runner) -> None:
        """From where it stands, or its first instruction."""
        await self._call("run", {"epoch": epoch, "runner": runner_to_json(runner)})

    async def run_on(self) -> None:
        """As before the migration."""
        await self._call("track_stop")
        await self._call("throttle", {"share": 0})
        await self._call("resume")

    async def discard(self) -> None:
        """It never ran here, and never will."""
        await self._call("discard")

    async def release(self) -> None:
        """It runs elsewhere, and nobody needs its pages any more [ONE-38]."""
        await self._call("release")

    async def _call(self, operation: str, fields: JsonObject | None = None) -> None:
        if self._connection is None:
            raise GuestError(f"{operation}: the guest's holder is gone")
        await self._connection.call(operation, fields)


class Seen(NamedTuple):
    """What is seen of a holder: the id of the guest in it, and its status; None for nothing."""

    guest: bytes | None
    status: HolderStatus | None


@dataclass(frozen=True, slots=True)
class Recovered:
    """How far a recovery came.

    Attributes:
        session: the one that it was about; None if there was none to recover.
        judgement: who owns the guest, and what is left to do.
        lost: the owner's image is gone, or one from which pages were to follow the guest.
        acted: whether this recovery has changed anything.
        verdict: what the destination has said, if it was asked and has answered.
    """

    session: SessionRecord
    judgement: Judgement
    lost: bool = False
    acted: bool = False
    verdict: Verdict | None = None

    @property
    def runs_here(self) -> bool:
        """Whether this host is the owner, and has its guest."""
        mine = Owner.SOURCE if self.session.side is Side.SOURCE else Owner.DESTINATION
        return self.judgement.owner is mine and not self.lost


class Recovery:
    """Recovers one guest.

    Args:
        host: this host's name, as its runners have it.
        keeper: the guest's records, locked for this process.
        image: the guest in its holder.
        store: the lease store, None for none.
        ask: asks the destination of a session; None where nobody can be asked.
        within_s: how long to wait for store and destination, in all.
        tell: told, for people, what is waited for and done.
        verdict: what the session's connection has told already, if it was handed back: that is final, and
            the destination may be gone by now.
        on_act: for tests that must know where a recovery stands.
        mapped: the image's pages are mapped here, and can be sent though its holder has ended.
    """

    def __init__(
        self,
        host: str,
        keeper: Keeper,
        image: HeldImage,
        *,
        store: LeaseStore | None = None,
        ask: Ask | None = None,
        within_s: float = math.inf,
        tell: Tell = lambda _: None,
        verdict: Verdict | None = None,
        on_act: OnAct = ignore_request,
        mapped: bool = False,
    ) -> None:
        self._host = host
        self._keeper = keeper
        self._image = image
        self._store = store
        self._ask = ask
        self._tell = tell
        self._within_s = within_s
        self._on_act = on_act
        self._stopped = False
        self._deadline = math.inf
        self._waiting: trio.CancelScope | None = None
        self._tries = False
        self._verdict = verdict if verdict is not None and verdict.handed_back else None
        self._peer = None if self._verdict is None else Owner.SOURCE
        self._acted = False
        self._mapped = mapped

    def anew(self, verdict: Verdict | None = None, *, mapped: bool = False) -> Recovery:
        """The same for a session that has just ended; `verdict` is what the destination has said in it."""
        return Recovery(
            self._host,
            self._keeper,
            self._image,
            store=self._store,
            ask=self._ask,
            within_s=self._within_s,
            tell=self._tell,
            verdict=verdict,
            on_act=self._on_act,
            mapped=mapped,
        )

    async def has_image(self) -> bool:
        """Whether there is a guest in the holder, or may be: one that is silent may have it."""
        try:
            return self._image.guest is not None and await self._image.status() is not None
        except HolderSilent:
            return True

    def stop(self) -> None:
        """Wait for nobody any more. What is under way comes to its end; so does the next claim or question.

        Those are what a cancellation asks [CON-72]. They are made once, and not repeated.
        """
        self._stopped = True
        if self._waiting is not None and not self._tries:
            self._waiting.cancel()

    async def run(self) -> Recovered | None:
        """Bring it to an end, or as far as it goes; None if the records show nothing to recover.

        Raises:
            RecordError: a record cannot be made durable.
            StoreDamaged: an operator has to look into the store.
            GuestError: the holder does not do what it should.
        """
        status = await self._image.status()
        mark = 0 if status is None else status.granted_epoch
        session = open_session(self._keeper.history, mark)
        if session is None:
            return None
        self._deadline = trio.current_time() + self._within_s
        for _ in range(_ACTS_MAX):
            situation = await self._look(session)
            act = next_act(self._keeper.history, session.session, situation, self._spare())
            if isinstance(act, Settled):
                return Recovered(session, act.judgement, act.lost, self._acted, self._verdict)
            self._on_act(act, done=False)
            carried_out = await self._carry_out(act, session, situation)
            self._on_act(act, done=True)
            if not carried_out:
                judgement = judge(self._keeper.history, session.session, situation.facts)
                return Recovered(session, judgement, acted=self._acted, verdict=self._verdict)
        raise LocalProtocolError(ErrorCode.INTERNAL, f"a recovery that comes to no end: {act}")

    def _spare(self) -> Runner:
        return Runner(self._host, secrets.token_bytes(len(NO_ID)))

    # ---- looking ----

    async def _look(self, session: SessionRecord) -> Situation:
        store = await slots_behind(self._store, self._keeper.history, session)
        complete = None if self._verdict is None else has_all_pages(self._verdict)
        facts = Facts(self._host, store, peer=self._peer)
        seen = Seen(self._image.guest, await self._image.status())
        history, mapped = self._keeper.history, self._mapped
        return situation(history, session, seen, facts, complete=complete, mapped=mapped)

    # ---- acting ----

    async def _carry_out(self, act: acts.Act, session: SessionRecord, situation: Situation) -> bool:
        """Do it; False if nobody waits for its end any more."""
        match act:
            case acts.Note(record=record):
                await self._note(record)
            case acts.ClaimSlot(epoch=epoch, runner=runner):
                return await self._wait(self._claim(epoch, runner), tries=True)
            case acts.ReadStore():
                return await self._wait(self._read_store(session))
            case acts.AwaitClaim():
                gone = "the holder here is gone, and the guest's pages are here still"
                self._tell(f"{gone}: waiting for who runs it")
                return await self._wait(self._read_store(session, claimed=True))
            case acts.AskPeer(later=later):
                if later and not self._stopped:
                    await trio.sleep(_START_WITHIN_S)
                return await self._wait(self._ask_peer(session, situation), tries=True)
            case acts.RunHere(epoch=epoch, runner=runner):
                await self._change(self._image.run(epoch, runner))
                self._tell(f"the guest runs here, under epoch {epoch}")
            case acts.RunOn():
                await self._change(self._image.run_on())
            case acts.FreeRoom():
                await self._change(self._image.discard())
            case _:
                raise AssertionError(act)
        return True

    async def _change(self, doing: Awaitable[None]) -> None:
        self._acted = True
        with trio.CancelScope(shield=True):  # a holder answers in time, or is gone
            await doing

    async def _note(self, record: Record) -> None:
        """A conflict tells of what another controller, or an operator, has noted meanwhile: look again."""
        self._acted = True
        before = self._keeper.history
        try:
            await self._keeper.append(record)
        except RecordConflict:
            if self._keeper.history == before:
                raise

    async def _wait(self, doing: Awaitable[None], *, tries: bool = False) -> bool:
        """`tries`: whoever wishes to end waits for the first answer, or for `_unanswered`, all the same."""
        self._tries = tries
        with trio.CancelScope(deadline=self._deadline) as self._waiting:
            if self._stopped and not tries:
                self._waiting.cancel()
            await doing
            return True
        return False

    async def _claim(self, epoch: int, runner: Runner) -> None:
        assert self._store is not None
        self._acted = True
        self._tell(f"claiming epoch {epoch}")
        guest = self._keeper.history.guest
        await claim_until_named(
            self._store, guest, epoch, runner, silent=self._say_silent, unnamed=self._say_unnamed
        )

    async def _read_store(self, session: SessionRecord, *, claimed: bool = False) -> None:
        """Until the store answers, or until it says who has the slot, too."""
        pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            found = await slots_behind(self._store, self._keeper.history, session)
            if found is None or (found.answers and (found.next is not None or not claimed)):
                return
            if not found.answers:
                self._tell("the lease store does not answer; asking on")
            await pauses.next()

    async def _ask_peer(self, session: SessionRecord, situation: Situation) -> None:
        if self._ask is None:
            self._peer = Owner.UNDECIDED
            return
        pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            self._tell(f"asking {session.peer or session.address} who owns the guest")
            try:
                self._verdict = await self._ask(session, await self._runner())
                break
            except SternaError as error:
                self._unanswered(f"no answer from {session.peer or session.address}", error)
            await pauses.next()
        self._peer = owner_said(self._verdict, situation.facts.store)

    async def _runner(self) -> Runner:
        status = await self._image.status()
        return Runner("", NO_ID) if status is None else status.runner

    def _say_silent(self, error: SternaError) -> None:
        self._unanswered("the lease store does not answer", error)

    def _say_unnamed(self, why: str) -> None:
        self._unanswered("the lease store names nobody", why)

    def _unanswered(self, what: str, error: SternaError | str) -> None:
        """It was tried once: from here on it can be ended."""
        self._tries = False
        self._tell(f"{what}{'' if self._stopped else ', asking on'}: {error}")
        if self._stopped and self._waiting is not None:
            self._waiting.cancel()


def arriving(history: History, status: HolderStatus) -> SessionRecord | None:
    """The session of a guest that is loaded here, where no record says that it was handed over.

    Without a store CLAIMING is not durable alone, and HANDOVER may have come all the same [ONE-62].
    """
    return history.session(status.image) if status.state == "loaded" else None


def situation(
    history: History,
    session: SessionRecord,
    seen: Seen,
    facts: Facts,
    *,
    complete: bool | None = None,
    mapped: bool = False,
) -> Situation:
    """What there is, put together; `seen` in this host's holder."""
    if seen.status is None or seen.guest != history.guest:
        return Situation(facts, complete=complete, mapped=mapped)
    status = seen.status
    if session.side is Side.SOURCE:
        facts = replace(facts, mark=status.granted_epoch)
    image, stale = _image_of(history, session, status), bool(status.missing)
    return Situation(facts, image, status.image, status.epoch, complete, stale, mapped)


def _image_of(history: History, session: SessionRecord, status: HolderStatus) -> Image:
    """What the holder has of this session's image [ONE-52].

    At a destination that has an id of its own; at a source it is what ran under n, and for which runners were
    made.
    """
    if session.side is Side.SOURCE:
        made = {each.image for each in history.each(RunnerRecord) if each.session == session.session}
        # An image that was left behind by an earlier migration ran last under an earlier epoch.
        if status.epoch < session.epoch or (made and status.image not in made):
            return Image.GONE
        return _AT_SOURCE.get(status.state, Image.GONE)
    claims = (each for each in history.claiming(session.epoch + 1) if each.session == session.session)
    images = {each.image for each in claims} or {session.session}
    return _AT_DESTINATION.get(status.state, Image.GONE) if status.image in images else Image.GONE


def owner_said(verdict: Verdict, store: Store | None) -> Owner:
    """With a store the slot says who owns it, and only HANDBACK lets the source claim again [ONE-37]."""
    if verdict.handed_back:
        return Owner.SOURCE
    return verdict.owner if store is None else Owner.UNDECIDED
