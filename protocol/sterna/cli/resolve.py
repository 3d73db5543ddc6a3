"""`sterna resolve`: an operator decides who owns a guest, where nobody else can."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from sterna.cli.endpoint import Flag, PathOption, Security
from sterna.cli.events import Fields
from sterna.cli.exits import Exit
from sterna.cli.lease import guest_id
from sterna.cli.lost_records import begin_anew, cleared
from sterna.cli.output import Output
from sterna.cli.ownership import UNDECIDED_AFTER_S, Ownership, TextOption
from sterna.cli.taking_up import (
    judgement_fields,
    judgement_text,
    newest_epoch,
    recovered_fields,
    recovered_text,
)
from sterna.cli.units import Duration, Json
from sterna.core.records import (
    Claiming,
    HandBack,
    Record,
    Released,
    Resolved,
    RunnerRecord,
    SessionRecord,
    Side,
    Start,
)
from sterna.core.recovery import Image, open_session
from sterna.core.verdict import Facts, Judgement, Step, judge
from sterna.errors import ConfigError, LocalProtocolError
from sterna.host.lease import LeaseStore
from sterna.host.records_shelf import Keeper, RecordsShelf
from sterna.host.recovery import HeldImage, Recovered, Recovery, Seen, arriving, held_image, situation
from sterna.host.slots_behind import slots_behind
from sterna.limits import TEXT_BYTES
from sterna.registry import ErrorCode, Owner
from sterna.wire.records import NO_ID, Runner

_OWNERS: Final = {"source": Owner.SOURCE, "destination": Owner.DESTINATION}

# Who decides for the destination hears of pages that only the source has, if some follow the guest [ONE-42].
_SENDS: Final = "sterna migrate, started again, sends them, if the session was not agreed without --resume"
_ONLY_HERE: Final = (
    "pages were to follow the guest: what it lacks there is only in the image here, and it is lost without. "
    f"Keep this holder; once the guest runs there, {_SENDS}"
)
_FREED: Final = (
    "pages were to follow the guest: what it lacks there was only in that image. sterna verdict with the "
    "--holder there tells what is missing; if anything is, the guest is lost"
)
_ONLY_THERE: Final = (
    "pages that the guest {} here are only in the image that its source's holder keeps, and it is lost "
    "without. Do not end that holder: sterna resolve --owner destination at the source fences it, and there "
    f"{_SENDS}"
)


async def resolve(
    guest: str,
    /,
    *,
    owner: Literal["source", "destination"],
    i_have_fenced: TextOption = "",
    holder: PathOption = None,
    ownership: Ownership = Ownership(),  # noqa: B008 - frozen
    security: Security = Security(),  # noqa: B008 - frozen
    undecided_after: Duration = UNDECIDED_AFTER_S,
    free_image: Flag = False,
    records_lost: Flag = False,
    json: Json = False,
) -> int:
    """Decide, as the operator, who owns a guest whose handover has come to no end.

    Look at `sterna verdict` first. What is decided here is recorded and cannot be taken back. To let the
    guest run at this side, say --i-have-fenced HOST, and mean it: nothing at the other host can run its image
    any more, neither an endpoint (which may only be frozen) nor one that is started later beside its holder.
    Switch that host off, or end endpoint and holder there.

    A source that has lost its guest keeps the image, for pages of it may still be needed. Where the
    destination has them all, or is gone for good, --owner destination --free-image gives the memory back. A
    guest that runs before all of its pages are there is lost without it, and so is one whose source is
    switched off in order to fence it: --owner destination at the source fences that as well.

    The exit code is 0 if it is decided, 1 if the other side owns the guest already, 2 if there is nothing to
    decide or no host is said to be fenced, 9 if the guest is lost.

    Args:
        guest: its id, 32 hexadecimal digits.
        owner: the side of the session that shall have it.
        i_have_fenced: the other host, of which you vouch that it cannot run the guest.
        holder: socket of the holder in which the guest is; with it, what follows is done at once.
        ownership: where records and store are.
        security: this host's --name.
        undecided_after: wait no longer than this for the lease store.
        records_lost: none of the guest's records at its source is left, or counts: decide by the mark of its
            --holder, and begin them anew. With --store, if the guest has slots in one. Damaged records of a
            guest that runs there without a mark are set aside.
        free_image: end the --holder here, and with it the image of a guest that is the destination's.
        json: one JSON object on stdout.
    """
    if free_image and (owner != "destination" or holder is None):
        raise ConfigError("--free-image goes with --owner destination, and the --holder that has the image")
    if not i_have_fenced.isprintable() or len(i_have_fenced.encode()) > TEXT_BYTES:
        raise ConfigError("--i-have-fenced takes the name of a host, which is recorded")
    if records_lost and holder is None:
        raise ConfigError("--records-lost goes with the --holder in which the guest is")
    if records_lost and owner == "source" and not i_have_fenced:
        raise ConfigError(
            "the guest may run elsewhere, and no record says where: make certain that it does not, and "
            "cannot, then say so: --i-have-fenced HOST"
        )
    identity, name = guest_id(guest), security.own_name
    output = Output(json=json)
    shelf = RecordsShelf(ownership.directory(name), "sterna resolve")
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(ownership.opened_store())
        if records_lost:
            assert holder is not None
            clear = None if owner != "source" else await cleared(shelf, identity, holder, output.say)
            if clear is not None:
                _tell(output, identity, None, clear)
                return Exit.OK
            await begin_anew(shelf, identity, holder, store=store, tell=output.say)
        keeper = await stack.enter_async_context(shelf.opened(identity, make=False))
        if keeper is None:
            where = f"there are no records of guest {guest} in {shelf.directory}"
            advice = "say --records or --name as its endpoints do, or, at a source, --records-lost"
            raise ConfigError(f"{where}: {advice}")
        image = HeldImage(None, None)
        if holder is not None:
            known = partial(newest_epoch, keeper.history)
            image = await stack.enter_async_context(held_image(holder, known))
        case = _Case(name, keeper, image, store)
        noted = await case.decide(_OWNERS[owner], i_have_fenced, frees=free_image)
        recovered = None
        if holder is not None:
            recovery = Recovery(name, keeper, image, store=store, within_s=undecided_after, tell=output.say)
            recovered = await recovery.run()
        judgement = await case.judgement() if recovered is None else recovered.judgement
        gone = judgement.clause == "ONE-42" or (recovered is not None and recovered.lost)  # that is told
        lacks = "" if gone or judgement.owner is not Owner.DESTINATION else await case.lacks()
        if free_image:
            await case.free()
            output.say("the image is freed, and its holder ends")
            lacks = lacks and _FREED
    _tell(output, identity, noted, judgement, recovered, lacks=lacks)
    if recovered is not None and recovered.lost:
        return Exit.LOST
    # With a store it may take a claim before the decision shows: the endpoint makes that when it is started.
    return Exit.OK


@dataclass(frozen=True, slots=True)
class _Case:
    """A guest whose owner nobody knows.

    Attributes:
        host: this host's name.
        keeper: the guest's records, locked.
        image: what is in the holder, if one was named.
        store: the lease store, if there is one.
    """

    host: str
    keeper: Keeper
    image: HeldImage
    store: LeaseStore | None

    async def session(self) -> SessionRecord:
        """The one that is to be decided.

        Raises:
            ConfigError: there is none.
        """
        status = await self.image.status()
        found = open_session(self.keeper.history, 0 if status is None else status.granted_epoch)
        if found is None and status is not None:
            known = arriving(self.keeper.history, status)
            found = known if known is not None and not known.store else None
        if found is None:
            raise ConfigError("this guest was granted in no session of this host: there is nothing to decide")
        return found

    async def judgement(self) -> Judgement:
        """Who owns the guest, by what is known now."""
        history, session = self.keeper.history, await self.session()
        facts = Facts(self.host, await slots_behind(self.store, history, session))
        seen = Seen(self.image.guest, await self.image.status())
        return judge(history, session.session, situation(history, session, seen, facts).facts)

    async def decide(self, owner: Owner, fenced: str, *, frees: bool) -> Record | None:
        """Record the decision; None if it is decided so already.

        Args:
            owner: the side of the session that shall have the guest.
            fenced: the other host, as the operator vouches.
            frees: the image here is freed then. For that it is not enough that the slot is the destination's:
                the guest may be handed back, so that it never runs here again is on record before [ONE-59].

        Raises:
            LocalProtocolError: TOO_LATE, the other side owns the guest.
            ConfigError: the other host has to be fenced first; or there is nothing that could be freed.
        """
        session, judgement = await self.session(), await self.judgement()
        decision = self.keeper.history.decision(session.session)
        if owner is Owner.DESTINATION and decision is None:
            self._check_not_handed_back(session)
        if judgement.owner not in {owner, Owner.UNDECIDED}:
            detail = f"the {judgement.owner.name.lower()} owns it: {judgement.why}"
            raise LocalProtocolError(ErrorCode.TOO_LATE, detail, clause=judgement.clause)
        if frees:
            await self._check_kept(session)
        if judgement.owner is owner and (decision is not None or not frees):
            return None
        mine = Owner.SOURCE if session.side is Side.SOURCE else Owner.DESTINATION
        if owner is mine:
            _check_fenced(session, fenced, await self.lacks() if owner is Owner.DESTINATION else "")
        record, epoch = _decision(session, owner, fenced), session.epoch + 1
        if session.side is Side.DESTINATION and not self.keeper.history.claiming(epoch):
            runner = Runner(self.host, secrets.token_bytes(len(NO_ID)))
            await self.keeper.append(Claiming(session.session, epoch, runner, session.session))
        await self.keeper.append(record)
        return record

    async def lacks(self) -> str:
        """What the guest lacks at the destination, or may, and only the source has; in words, or empty."""
        history, session = self.keeper.history, await self.session()
        if session.side is Side.SOURCE:
            return _ONLY_HERE if history.owes_pages(session.session) else ""
        status = await self.image.status()
        if status is not None and self.image.guest == history.guest:
            return _ONLY_THERE.format("lacks") if status.missing else ""
        # A claim names the digest of a guest that came whole.
        claims = [each.digest for each in history.claiming(session.epoch + 1)]
        whole = any(claims) or history.complete(session.session) is not None
        return "" if whole or not claims else _ONLY_THERE.format("may lack")

    async def free(self) -> None:
        """Release the image that this host, the source, has kept [ONE-38]; `decide` has allowed it."""
        session = await self.session()
        await self.keeper.append(Released(session.session))  # nobody shall miss its pages [ONE-42]
        await self.image.release()

    def _check_not_handed_back(self, session: SessionRecord) -> None:
        """A source makes a runner for n + 2 by the destination's word alone that it never runs it [ONE-37].

        Raises:
            LocalProtocolError: TOO_LATE, there is one.
        """
        behind = session.epoch + 2
        made = self.keeper.history.each(RunnerRecord)
        if any((each.session, each.epoch) == (session.session, behind) for each in made):
            detail = (
                f"the source owns it: it was handed back, and this host has a runner for epoch {behind} on "
                "record; sterna migrate, started again, runs it"
            )
            raise LocalProtocolError(ErrorCode.TOO_LATE, detail, clause="ONE-37")

    async def _check_kept(self, session: SessionRecord) -> None:
        """There is an image that can be freed, before anything is decided for it.

        Raises:
            ConfigError: there is none.
        """
        if session.side is not Side.SOURCE:
            raise ConfigError("--free-image is for the source of a guest")
        status = await self.image.status()
        seen = Seen(self.image.guest, status)
        found = situation(self.keeper.history, session, seen, Facts(self.host)).image
        if found is not Image.STOPPED or status is None or status.state != "granted":
            raise ConfigError("--free-image: that --holder has no image of this session")


def _check_fenced(session: SessionRecord, fenced: str, lacks: str) -> None:
    """The guest may run here only when it cannot run there [ONE-59]."""
    other = session.peer or session.address or "the other host"
    there = "source" if session.side is Side.DESTINATION else "destination"
    if not fenced:
        raise ConfigError(
            f"the guest may run at {other}, the {there}: make certain that no endpoint and no holder there "
            f"can run it any more, then say so: --i-have-fenced {session.peer or 'HOST'}"
            f"{lacks and f'. But {lacks}'}"
        )
    if session.peer and fenced != session.peer:
        raise ConfigError(f"--i-have-fenced {fenced[:80]!r}: the {there} of this session is {other!r}")


def _decision(session: SessionRecord, owner: Owner, fenced: str) -> Record:
    epoch = session.epoch + 1
    if session.side is Side.SOURCE:
        return Resolved(session.session, epoch, owner, fenced, _operator())
    kind = Start if owner is Owner.DESTINATION else HandBack
    return kind(epoch, _operator(), fenced)


def _operator() -> str:
    """Who decides, as far as the system knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}".encode()[:TEXT_BYTES].decode(errors="ignore")


def _tell(
    output: Output,
    guest: bytes,
    noted: Record | None,
    judgement: Judgement,
    recovered: Recovered | None = None,
    *,
    lacks: str = "",
) -> None:
    if noted is None:
        output.say(f"it is decided already: {judgement.why} [{judgement.clause}]")
    else:
        output.say(f"recorded, by {_operator()}: {noted.kind}")
    output.say(judgement_text(judgement) if recovered is None else recovered_text(recovered))
    if recovered is None and judgement.step is not Step.NONE:
        output.say("sterna migrate or sterna serve with its --holder does that; so does --holder here")
    if lacks:
        output.say(f"{lacks} [ONE-42]")
    fields: Fields = {
        "guest": guest.hex(),
        "recorded": None if noted is None else noted.kind,
        "pages_follow": bool(lacks),
        **judgement_fields(judgement),
        "recovered": None if recovered is None else recovered_fields(recovered),
    }
    output.result(fields)
