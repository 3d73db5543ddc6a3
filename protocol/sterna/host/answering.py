"""Who owns a guest, for the peer that has sent it here and asks.

What is answered are records, and the store where there is one. Without a store an answer that gives the guest
back to its source is a promise that it never runs here, so START is excluded for ever before it is said. That
is done by whoever is asked, whatever the session's own endpoint, or an operator, is about to do at the same
time: of START and HANDBACK one is first on record, and the other one is refused [ONE-44].
"""

from __future__ import annotations

import secrets

from sterna.core.admitting import is_handed_over
from sterna.core.history import History, RecordConflict
from sterna.core.records import SessionRecord
from sterna.core.recovery import before_verdict
from sterna.core.verdict import Facts, Step, answer, asked_for, judge
from sterna.host.lease import LeaseStore
from sterna.host.records_log import RecordsMissing
from sterna.host.records_shelf import Keeper, RecordsShelf
from sterna.host.slots_behind import slots_behind
from sterna.registry import Mode
from sterna.wire.records import NO_ID, Hello, Runner, Verdict


async def answer_peer(
    shelf: RecordsShelf, hello: Hello, identity: str, *, host: str, store: LeaseStore | None
) -> Verdict:
    """What a peer is told that asks about a session of which this host is, or was, the destination.

    Args:
        shelf: this host's records.
        hello: of the peer; its mode is `verdict`, or `resume` for a session that is not resumed any more.
        identity: of the peer, empty on a plain connection.
        host: this host's name.
        store: the lease store; None for two endpoints and nothing else.

    Raises:
        RecordError: BUSY, another process has the records [ONE-60]; RECORD_FAILED.
        StoreDamaged: an operator has to look.
    """
    try:
        async with shelf.opened(hello.guest, make=False) as keeper:
            return await _answer(keeper, hello, identity, host, store)
    except RecordsMissing:
        return answer(None, hello, identity, Facts(host))


async def _answer(
    keeper: Keeper | None, hello: Hello, identity: str, host: str, store: LeaseStore | None
) -> Verdict:
    history = History(hello.guest) if keeper is None else keeper.history
    session = asked_for(history, hello, identity)
    if session is None:  # and the store is not troubled by whoever asks for anything
        return answer(history, hello, identity, Facts(host))
    assert keeper is not None
    facts = Facts(host, await slots_behind(store, history, session))
    # Who resumes a session that ended before HANDOVER has granted nothing, and comes again under n.
    permitted = hello.mode is Mode.VERDICT or is_handed_over(history, session)
    if permitted and judge(history, session.session, facts).step is Step.HAND_BACK:
        await _hand_back(keeper, session, host)
    return answer(keeper.history, hello, identity, facts)


async def _hand_back(keeper: Keeper, session: SessionRecord, host: str) -> None:
    """Exclude START for ever, unless it is there [ONE-44].

    Raises:
        RecordError: RECORD_FAILED; nothing may be promised.
    """
    spare = Runner(host, secrets.token_bytes(len(NO_ID)))
    while (record := before_verdict(keeper.history, session, spare)) is not None:
        before = keeper.history
        try:
            await keeper.append(record)
        except RecordConflict:
            if keeper.history == before:
                raise  # else another one has noted something meanwhile: look again
