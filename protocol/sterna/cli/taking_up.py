"""What commands do about a session whose end is not known: what they ask whom, and how they tell of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from sterna.cli.events import Fields
from sterna.cli.follow import Reporter
from sterna.core.events import Outcome, Result
from sterna.core.history import History
from sterna.core.records import Claiming, HandBack, SessionRecord, Side, Start
from sterna.core.recovery import Image, open_session
from sterna.core.verdict import Facts, Judgement, Step
from sterna.errors import RecordError, SternaError, TransportError
from sterna.guest.holder_client import HolderStatus, connect_holder
from sterna.host.agent import PeerListHost
from sterna.host.farewells import rejection
from sterna.host.records_keeper import peek
from sterna.host.records_shelf import Keeper, RecordsShelf
from sterna.host.recovery import Ask, Recovered, Recovery, Seen, held_image, situation
from sterna.host.slots_behind import slots_behind
from sterna.net.connect import Address, connect, parse_address
from sterna.net.options import Options
from sterna.net.pauses import Pauses
from sterna.net.question import ask_who_owns
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna.registry import ErrorCode, Owner
from sterna.wire.records import Runner, Verdict

# How long a resumption waits for what has to be settled first: its source waits for an answer.
SETTLE_WITHIN_S: Final = 5.0
# How long one recovery waits for a store that has just answered, before it lets others have the holder.
_STORE_WITHIN_S: Final = 5.0

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0
_WAITS: Final = frozenset({Step.WAIT_FOR_STORE, Step.REPEAT_CLAIM})


def asker(guest: bytes, tls: TlsConfig | None, options: Options, places: Sequence[Address] = ()) -> Ask:
    """Asks the destination of a session who owns the guest.

    Args:
        guest: its id.
        tls: this host's certificate; None for plaintext.
        options: of the endpoint.
        places: where the destination may be found now, tried before the address that is on record.
    """

    async def ask(session: SessionRecord, runner: Runner) -> Verdict:
        return await ask_who_owns(
            await dial_peer(session, tls, places),
            guest=guest,
            epoch=session.epoch,
            session=session.session,
            token=session.token,
            runner=runner,
            options=replace(options, on_event=lambda _: None),
        )

    return ask


async def dial_peer(
    session: SessionRecord, tls: TlsConfig | None, places: Sequence[Address] = ()
) -> Transport:
    """A connection to the destination of a session; arguments as for `asker`.

    Raises:
        TransportError: nobody answers there, or not the session's peer.
    """
    if tls is None and session.peer:
        # Anybody could answer, and would be believed; and the token would be read by everybody [SEC-5].
        raise TransportError(
            ErrorCode.NOT_AUTHORISED, f"{session.peer} is asked over TLS alone: say --pki, not --insecure"
        )
    trouble = TransportError(ErrorCode.CONNECT_FAILED, "no address of the destination is known")
    recorded = [parse_address(session.address)] if session.address else []
    for place in dict.fromkeys([*places, *recorded]):
        try:
            return await connect(
                place,
                tls=tls,
                expected=session.peer or None,  # the token is for the session's peer alone [SEC-5]
                farewell=None if tls is None else rejection,
            )
        except TransportError as error:
            trouble = error
    raise trouble


def newest_epoch(history: History, status: HolderStatus) -> int:
    """The newest epoch that this host knows of, for a controller of a holder with this status [HOL-13].

    Its mark is known to the host that has opened a session for it [ONE-61].
    """
    sessions = (each for each in history.each(SessionRecord) if each.side is Side.SOURCE)
    known = any(each.epoch + 1 == status.granted_epoch for each in sessions)
    epochs = (getattr(record, "epoch", 0) for record in history.records)
    return max((status.epoch, status.granted_epoch if known else 0, *epochs))


async def arrived(shelf: RecordsShelf) -> AsyncIterator[SessionRecord]:
    """Sessions in which a guest was handed over to this host, and that somebody may still ask for."""
    assert shelf.directory is not None
    for guest in shelf.guests():
        with suppress(RecordError):
            history = await peek(shelf.directory, guest)
            session = open_session(history)
            if session is not None and session.side is Side.DESTINATION:
                yield session


class TakingUp:
    """Guests that were handed over to an endpoint of this host that has not come to the end.

    Args:
        host: whose records and store.
        holder: the socket of the holder in which they may be.
        reporter: told of what is done.
        nursery: in which `soon` works.
    """

    def __init__(self, host: PeerListHost, holder: Path, reporter: Reporter, nursery: trio.Nursery) -> None:
        self._host = host
        self._holder = holder
        self._reporter = reporter
        self._nursery = nursery
        self._turn = trio.Lock()

    async def all(self) -> None:
        """Take up what is in the records."""
        for guest in self._host.shelf.guests():
            self.soon(guest)

    def soon(self, guest: bytes) -> None:
        """Take up what the guest's records show, if there is something."""
        self._nursery.start_soon(self.now, guest)

    async def now(self, guest: bytes) -> Recovered | None:
        """The same, until it has come to an end; for a store that is silent it waits as long as it takes."""
        pauses = Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        try:
            async with self._host.shelf.opened(guest, make=False) as keeper:
                while keeper is not None and (session := _unfinished(keeper.history)) is not None:
                    # Nobody waits for a store while it has the holder, or its turn: others may need none.
                    if await self._store_answers(keeper.history, session):
                        async with self._turn:
                            recovered = await self._recover(keeper)
                        if recovered is None or recovered.judgement.step not in _WAITS:
                            return recovered
                    await pauses.next()
                if keeper is not None and (session := open_session(keeper.history)) is not None:
                    # The process that had it died before RELEASE; another session's opening stays.
                    await self._host.openings.drop(guest, session.session)
        except SternaError as error:
            self._reporter.notice(f"guest {guest.hex()} is not taken up: {error}")
        return None

    async def settle(self, guest: bytes) -> None:
        """What has to be done before a session of the guest is taken up again, if it is done in a moment.

        Where the guest was started and runs there is nothing: it waits for its pages, not for a store.
        """
        if not await self._runs(guest):
            with trio.move_on_after(SETTLE_WITHIN_S):
                await self.now(guest)

    async def keeps(self, image: bytes) -> bool:
        """Whether an image that has not run may still have to: it is claimed, and not handed back."""
        directory = self._host.shelf.directory
        assert directory is not None
        for guest in self._host.shelf.guests():
            with suppress(RecordError):
                history = await peek(directory, guest)
                claims = (each for each in history.each(Claiming) if each.image == image)
                if any(not isinstance(history.fate(each.epoch), HandBack) for each in claims):
                    return True
        return False

    async def _runs(self, guest: bytes) -> bool:
        """Whether the guest was started in its last session, and that one's image runs in the holder."""
        with suppress(SternaError):
            async with self._host.shelf.opened(guest, make=False) as keeper:
                session = None if keeper is None else open_session(keeper.history)
                if keeper is None or session is None or session.side is not Side.DESTINATION:
                    return False
                async with await connect_holder(self._holder, role="observer") as observer:
                    seen = Seen(guest, observer.attached)  # the id of its image tells whose it is [ONE-52]
                image = situation(keeper.history, session, seen, Facts(self._host.name)).image
                return isinstance(keeper.history.fate(session.epoch + 1), Start) and image is Image.RUNS
        return False

    async def _store_answers(self, history: History, session: SessionRecord) -> bool:
        found = await slots_behind(self._host.store, history, session)
        if found is None or found.answers:
            return True
        self._reporter.notice(f"guest {history.guest.hex()}: the lease store does not answer; asking on")
        return False

    async def _recover(self, keeper: Keeper) -> Recovered | None:
        async with held_image(self._holder, partial(newest_epoch, keeper.history)) as image:
            recovery = Recovery(
                self._host.name,
                keeper,
                image,
                store=self._host.store,
                within_s=_STORE_WITHIN_S,
                tell=self._reporter.notice,
            )
            recovered = await recovery.run()
        if recovered is None:
            return None
        fields = recovered_fields(recovered)
        self._reporter.emit({"event": "recovered", "guest": keeper.history.guest.hex(), **fields})
        self._reporter.say(f"guest {keeper.history.guest.hex()}: {recovered_text(recovered)}")
        return recovered


def _unfinished(history: History) -> SessionRecord | None:
    """The session in which a destination may have something left to do: COMPLETE is noted when it has not."""
    session = open_session(history)
    if session is None or session.side is not Side.DESTINATION:
        return None
    over = history.complete(session.session) is not None or history.released(session.session)
    return None if over else session


def decided(result: Result, recovered: Recovered) -> Result:
    """A session's end, of which more is known by now: who owns the guest."""
    match recovered.judgement.owner:
        case Owner.SOURCE:
            outcome = Outcome.ROLLED_BACK
        case Owner.DESTINATION:
            outcome = Outcome.MOVED
        case _:
            return replace(result, outcome=Outcome.UNDECIDED, code=result.code or ErrorCode.UNDECIDED)
    return replace(result, outcome=outcome, epoch=recovered.judgement.epoch)


def judgement_fields(judgement: Judgement) -> Fields:
    """Who owns a guest, for programs."""
    return {
        "owner": judgement.owner.name.lower(),
        "epoch": judgement.epoch or None,
        "why": judgement.why,
        "clause": judgement.clause,
        "next": judgement.step.value,
    }


def recovered_fields(recovered: Recovered) -> Fields:
    """How far a recovery came, for programs."""
    return {
        "session": recovered.session.session.hex(),
        "side": recovered.session.side.value,
        "acted": recovered.acted,
        "lost": recovered.lost,
        **judgement_fields(recovered.judgement),
    }


def recovered_text(recovered: Recovered) -> str:
    """The same for people."""
    judgement = recovered.judgement
    if recovered.lost and judgement.clause == "ONE-42":
        return f"guest_lost: {judgement.why} [ONE-42]"
    if recovered.lost:
        return f"guest_lost: {judgement.why}, and there is no image of it in the holder [ONE-34]"
    if recovered.runs_here:
        return f"it runs here under epoch {judgement.epoch}: {judgement.why} [{judgement.clause}]"
    return f"{judgement.owner.name.lower()}: {judgement_text(judgement)}"


def judgement_text(judgement: Judgement) -> str:
    """The same for people."""
    return f"{judgement.why} [{judgement.clause}]; next: {judgement.step.value}"
