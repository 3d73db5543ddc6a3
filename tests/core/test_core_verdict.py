"""Who may run a guest: every prefix of every course of a migration, and all pairs of histories that can meet.

The exploration at the end plays both hosts by their judgements alone, with and without a store: controllers
that know what they did and are killed anywhere, later ones that know only what is recorded, claims and calls
that arrive late. In no state may both sides be told to run, or one run whom the other has counted out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from records_support import (
    CLAIM,
    DIGEST,
    EVERYTHING,
    GUEST,
    IMAGE,
    ONE,
    OTHERS,
    OURS,
    RECEIVING,
    SENDING,
    TOKEN,
    TWO,
)
from sterna.core.history import History, RecordConflict
from sterna.core.records import (
    Claiming,
    Complete,
    Decided,
    Granted,
    HandBack,
    Record,
    Released,
    Resolved,
    RunnerRecord,
    SessionRecord,
    Side,
    Start,
    Voided,
)  # fmt: skip
from sterna.core.verdict import Facts, Judgement, Step, Store, answer, has_all_pages, judge
from sterna.registry import Mode, Owner
from sterna.wire.records import NO_RUNNER, Hello, Runner, Verdict

U, S, D = Owner.UNDECIDED, Owner.SOURCE, Owner.DESTINATION
ALONE = Facts("here")
SILENT = Facts("here", Store(answers=False))
STRANGER = Runner("here", b"?" * 16)


def history(*records: Record) -> History:
    found = History(GUEST)
    for record in records:
        found = found.after(record)
    return found


def owners(facts: Facts, *records: Record) -> list[Owner]:
    """The owner after every prefix, from the session's own record on."""
    return [judge(history(*records[:count]), ONE, facts).owner for count in range(1, len(records) + 1)]


def store(after: Runner | None = None, **slots: Runner | None) -> Facts:
    return Facts("here", Store(next=slots.get("next"), after=after))


@pytest.mark.parametrize(
    ("since", "owner", "step"),
    [
        ((Granted(TWO, 2),), U, Step.ASK),
        ((Granted(TWO, 2), Decided(TWO, 2, D)), D, Step.FREE),
        ((Granted(TWO, 2), Decided(TWO, 3, S)), S, Step.RUN),
        ((Granted(TWO, 2), Voided(TWO, 2)), S, Step.ROLL_BACK),
    ],
)
def test_an_old_session_is_no_right_to_run(since: tuple[Record, ...], owner: Owner, step: Step) -> None:
    """Of two sessions of one epoch the second took the guest away: the first, never granted, has no say."""
    records = (SENDING, replace(SENDING, session=TWO), *since)
    for session in (ONE, TWO):
        found = judge(history(*records), session, ALONE)
        assert (found.owner, found.step) == (owner, step)


def test_a_host_that_has_got_another_name_knows_its_runners() -> None:
    """[ONE-52] [ONE-33] The records say whose a slot is. By its name it would free what only it may run."""
    renamed = replace(store(next=OURS), host="renamed")
    for records, step in ((CLAIM,), Step.START), ((CLAIM, Start(2)), Step.RUN):
        found = judge(history(RECEIVING, *records), ONE, renamed)
        assert (found.owner, found.step) == (D, step)
    mine = RunnerRecord(ONE, 2, OURS, IMAGE)
    assert judge(history(SENDING, Granted(ONE, 2), mine), ONE, renamed).step is Step.RUN


# ---- without a store ----


def test_a_destination_at_every_prefix() -> None:
    """[ONE-32, ONE-44, ONE-45, ONE-58]"""
    complete = Complete(ONE, 2, DIGEST)
    assert owners(ALONE, RECEIVING, CLAIM, Start(2), complete, Released(ONE)) == [U, U, D, D, D]
    assert owners(ALONE, RECEIVING, CLAIM, HandBack(2), Released(ONE)) == [U, U, S, S]
    for count in (1, 2):
        assert judge(history(*(RECEIVING, CLAIM)[:count]), ONE, ALONE).step is Step.HAND_BACK
    assert judge(history(RECEIVING, CLAIM, Start(2)), ONE, ALONE).step is Step.RUN


def test_another_sessions_decision_counts() -> None:
    """START and HANDBACK are of the guest, whatever session [ONE-27]."""
    second = replace(RECEIVING, session=TWO)
    for fate, owner in ((Start(2), D), (HandBack(2), S)):
        found = history(RECEIVING, second, CLAIM, fate)
        assert judge(found, TWO, ALONE).owner is owner


def test_a_source_at_every_prefix() -> None:
    """[ONE-19, ONE-20, ONE-43, ONE-53, ONE-59]"""
    grant, void = Granted(ONE, 2), Voided(ONE, 2)
    assert owners(ALONE, SENDING, grant, void, grant, Decided(ONE, 2, D)) == [S, U, S, U, D]
    assert owners(ALONE, SENDING, grant, Decided(ONE, 3, S)) == [S, U, S]
    assert owners(ALONE, SENDING, grant, Resolved(ONE, 2, S, "there")) == [S, U, S]
    assert owners(ALONE, SENDING, grant, Resolved(ONE, 2, D)) == [S, U, D]
    assert judge(history(SENDING, grant, Resolved(ONE, 2, S, "there")), ONE, ALONE).epoch == 3  # [ONE-48]


@pytest.mark.parametrize("records", [(SENDING,), (SENDING, Granted(ONE, 2), Voided(ONE, 2))])
def test_a_mark_alone_is_a_grant(records: tuple[Record, ...]) -> None:
    """[ONE-19]"""
    assert judge(history(*records), ONE, replace(ALONE, mark=2)).owner is U
    assert judge(history(*records), ONE, replace(ALONE, mark=1)).owner is S  # an earlier epoch's


def test_the_destinations_word() -> None:
    """[ONE-43, ONE-47]"""
    found = history(SENDING, Granted(ONE, 2))
    for peer, owner, step in ((None, U, Step.ASK), (U, U, Step.ASK), (S, S, Step.RUN), (D, D, Step.FREE)):
        judgement = judge(found, ONE, replace(ALONE, peer=peer))
        assert (judgement.owner, judgement.step) == (owner, step)
    # It is no permission to run where nothing was granted, and takes none away.
    assert judge(history(SENDING), ONE, replace(ALONE, peer=D)).owner is S


# ---- with a store ----


def test_a_destination_with_a_store() -> None:
    """[ONE-29, ONE-31, ONE-33, ONE-50, ONE-52, ONE-58]"""
    claimed, started = history(RECEIVING, CLAIM), history(RECEIVING, CLAIM, Start(2))
    back = history(RECEIVING, CLAIM, HandBack(2))
    rows = [
        (claimed, SILENT, U, Step.WAIT_FOR_STORE),
        (started, SILENT, U, Step.WAIT_FOR_STORE),
        (history(RECEIVING), store(), U, Step.NONE),
        (claimed, store(), U, Step.REPEAT_CLAIM),
        (back, store(), U, Step.NONE),
        (claimed, store(next=OTHERS), S, Step.FREE),
        (history(RECEIVING), store(next=OTHERS), S, Step.FREE),
        (claimed, store(next=STRANGER), U, Step.OPERATOR),
        (claimed, store(next=OURS), D, Step.START),
        (claimed, store(next=OURS, after=OTHERS), U, Step.HAND_BACK),
        (started, store(next=OURS), D, Step.RUN),
        (started, store(next=OURS, after=OTHERS), D, Step.OPERATOR),
        (back, store(next=OURS), S, Step.NONE),
        (back, store(next=OURS, after=OTHERS), S, Step.NONE),
    ]
    for found, facts, owner, step in rows:
        judgement = judge(found, ONE, facts)
        assert (judgement.owner, judgement.step) == (owner, step), (found.records, facts)


def test_a_guest_that_has_moved_on() -> None:
    found = history(
        RECEIVING, CLAIM, Start(2), SessionRecord(TWO, 2, Side.SOURCE, TOKEN, "beyond"), Granted(TWO, 3)
    )
    judgement = judge(found, ONE, store(next=OURS, after=OTHERS))
    assert (judgement.owner, judgement.step) == (D, Step.NONE)


def test_a_runner_made_for_another_image_is_not_its_own() -> None:
    """[ONE-52]"""
    second = replace(RECEIVING, session=TWO)
    found = history(RECEIVING, second, CLAIM)
    found = found.after(Claiming(TWO, 2, Runner("here", b"2" * 16), b"j" * 16))
    assert judge(found, ONE, store(next=OURS)).owner is D
    assert judge(found, TWO, store(next=OURS)).step is Step.OPERATOR


def test_a_source_with_a_store() -> None:
    """[ONE-20, ONE-21, ONE-31, ONE-37, ONE-52]"""
    granted = history(SENDING, Granted(ONE, 2))
    ready = granted.after(RunnerRecord(ONE, 2, OURS, IMAGE))
    resolved = ready.after(Resolved(ONE, 2, S, "there"))
    third = Runner("here", b"3" * 16)
    again = resolved.after(RunnerRecord(ONE, 3, third, IMAGE))
    rows = [
        (history(SENDING), SILENT, S, Step.ROLL_BACK),
        (granted, SILENT, U, Step.WAIT_FOR_STORE),
        (granted, store(), U, Step.CLAIM_NEXT),
        (ready, store(), U, Step.CLAIM_NEXT),
        (ready, store(next=OURS), S, Step.RUN),
        (ready, store(next=OTHERS), D, Step.FREE),
        (granted, store(next=OURS), U, Step.OPERATOR),
        (ready, replace(store(next=OTHERS), peer=S), U, Step.CLAIM_AFTER),
        (resolved, SILENT, U, Step.WAIT_FOR_STORE),
        (resolved, store(), U, Step.CLAIM_NEXT),
        (resolved, store(next=OTHERS), U, Step.CLAIM_AFTER),
        (granted.after(Resolved(ONE, 2, S, "there")), store(next=OURS), U, Step.CLAIM_AFTER),
        (again, store(next=OTHERS, after=third), S, Step.RUN),
        (again, store(next=OTHERS, after=Runner("third", b"x" * 16)), U, Step.OPERATOR),
        (ready.after(Decided(ONE, 2, D)), store(next=OTHERS), D, Step.FREE),
    ]
    for found, facts, owner, step in rows:
        judgement = judge(found, ONE, facts)
        assert (judgement.owner, judgement.step) == (owner, step), (found.records, facts)


# ---- what is not known ----


@pytest.mark.parametrize("facts", [ALONE, SILENT, store(next=OURS), replace(ALONE, peer=S)])
def test_lost_records_and_unknown_sessions_decide_nothing(facts: Facts) -> None:
    """[ONE-32, ONE-46, ONE-57]"""
    for found, clause in (
        (None, "ONE-57"),
        (history(), "ONE-46"),
        (history(replace(SENDING, session=TWO)), "ONE-46"),
    ):
        judgement = judge(found, ONE, facts)
        assert (judgement.owner, judgement.clause) == (U, clause)


def test_every_prefix_of_everything_is_judged() -> None:
    """Every session at every prefix, with any store: always a judgement, with a clause and a step."""
    slots = (None, OURS, OTHERS, STRANGER)
    stores = [None, Store(answers=False), *(Store(next=one, after=two) for one in slots for two in slots)]
    for count in range(len(EVERYTHING) + 1):
        found = history(*EVERYTHING[:count])
        for session in {each.session for each in found.each(SessionRecord)} | {ONE}:
            for each in stores:
                for mark in (0, 2, 9):
                    judgement = judge(found, session, Facts("here", each, mark))
                    assert judgement.clause.startswith("ONE-")
                    assert (judgement.owner is U) == (judgement.epoch == 0)
                    assert judgement.why
                    if each is not None and not each.answers and judgement.owner is not U:
                        assert judgement.step in {Step.ROLL_BACK, Step.FREE}  # what needs no store


# ---- what a peer is told ----


def ask(**fields: object) -> Hello:
    hello = Hello(Mode.VERDICT, (1,), (), {}, GUEST, 1, STRANGER, session=ONE, token=TOKEN)
    return replace(hello, **fields)  # type: ignore[arg-type]


def test_what_a_peer_is_told() -> None:
    """[ONE-36, ONE-39, ONE-45, ONE-50, ONE-51]"""
    started, back = history(RECEIVING, CLAIM, Start(2)), history(RECEIVING, CLAIM, HandBack(2))
    complete = started.after(Complete(ONE, 2, DIGEST))
    rows = [
        (history(RECEIVING, CLAIM), ALONE, Verdict(U, 1, STRANGER)),
        (started, ALONE, Verdict(D, 2, OURS)),
        (complete, ALONE, Verdict(D, 2, OURS, complete=True, digest=DIGEST)),
        (back, ALONE, Verdict(S, 1, STRANGER, handed_back=True)),
        (started, SILENT, Verdict(U, 1, STRANGER)),
        (started, store(), Verdict(U, 1, STRANGER)),
        (started, store(next=OURS), Verdict(D, 2, OURS)),
        (back, store(next=OURS), Verdict(D, 2, OURS, handed_back=True)),
        (back, store(next=OURS, after=OTHERS), Verdict(D, 3, OTHERS, handed_back=True)),
        (history(RECEIVING, CLAIM), store(next=OTHERS), Verdict(S, 2, OTHERS)),
    ]
    for found, facts, verdict in rows:
        assert answer(found, ask(), "there", facts) == verdict, found.records


@pytest.mark.parametrize(
    ("hello", "peer"),
    [
        (ask(token=bytes(32)), "there"),
        (ask(), "elsewhere"),
        (ask(session=TWO), "there"),
        (ask(token=b""), "there"),
    ],
)
def test_who_may_not_ask_learns_nothing(hello: Hello, peer: str) -> None:
    """[ONE-46]"""
    for found in (history(RECEIVING, CLAIM, Start(2)), history(SENDING), None):
        for facts in (ALONE, store(next=OURS)):
            assert answer(found, hello, peer, facts) == Verdict(U, 1, STRANGER)


# ---- both hosts ----

decide = judge  # what the exploration plays by

DST, SRC, SRC_AGAIN = Runner("there", b"d" * 16), Runner("here", b"s" * 16), Runner("here", b"a" * 16)


@dataclass(frozen=True)
class World:
    """Two hosts, what is between them, and a store or none.

    `knows`: whether the controller is the one that began, for source and destination.
    `handover`: 0 not sent, 1 on its way, 2 received. `slots`: of epochs 2 and 3, None without a store.
    `flying`: claims that were sent and have not arrived. `ran`: hosts that ran the guest after the grant.
    """

    source: History
    destination: History
    knows: tuple[bool, bool] = (True, True)
    mark: int = 0
    handover: int = 0
    slots: tuple[Runner | None, ...] | None = None
    flying: frozenset[tuple[int, Runner]] = frozenset()
    word: Owner | None = None
    ran: frozenset[str] = frozenset()

    def facts(self, host: str) -> Facts:
        known = None if self.slots is None else Store(next=self.slots[0], after=self.slots[1])
        return Facts(host, known, self.mark if host == "here" else 0, self.word if host == "here" else None)


def add(found: History, record: Record) -> History | None:
    """The history with the record; None if it stands already or may not be."""
    try:
        more = found.after(record)
    except RecordConflict:
        return None
    return more if more is not found else None


def source_moves(world: World) -> Iterator[World]:
    """What a controller of the source may do, the first one or a later one."""
    records, knows = world.source, world.knows[0]
    judgement = decide(records, ONE, world.facts("here"))
    if knows:
        if not world.mark and not world.handover and records.decision(ONE) is None:
            yield replace(world, mark=2)
        if world.mark and not world.handover:
            if (more := add(records, Granted(ONE, 2))) is not None:
                yield replace(world, source=more)
            if records.granted(ONE) is not None:
                yield replace(world, handover=1)
                if Voided(ONE, 2) not in records.records:  # once; then it is granted again
                    yield replace(world, source=records.after(Voided(ONE, 2)))
            elif not world.flying:
                yield replace(world, mark=0)
        yield replace(world, knows=(False, world.knows[1]))
    if world.slots is None:
        if (judgement.step is Step.ASK and not knows) or world.handover:
            told = answer(world.destination, ask(), "here", world.facts("there"))
            yield replace(world, word=told.owner)
    else:
        yield from source_claims(world, judgement.step)
        if HandBack(2) in world.destination.records and (world.handover or not knows):
            yield replace(world, word=S)
    if judgement.step is Step.RUN:
        yield replace(world, ran=world.ran | {"source"})


def source_claims(world: World, step: Step) -> Iterator[World]:
    claims = {Step.CLAIM_NEXT: (2, SRC), Step.CLAIM_AFTER: (3, SRC_AGAIN)}
    if step in claims and (world.handover or not world.knows[0]):
        epoch, runner = claims[step]
        if (more := add(world.source, RunnerRecord(ONE, epoch, runner, IMAGE))) is not None:
            yield replace(world, source=more)
        elif RunnerRecord(ONE, epoch, runner, IMAGE) in world.source.records:
            yield replace(world, flying=world.flying | {claims[step]})
    # Its claim behind the hand-back rests on a runner of the same image for n + 1, recorded or made now.
    if step is Step.CLAIM_AFTER and (more := add(world.source, RunnerRecord(ONE, 2, SRC, IMAGE))) is not None:
        yield replace(world, source=more)


def destination_moves(world: World) -> Iterator[World]:
    """What a controller of the destination may do."""
    records, knows = world.destination, world.knows[1]
    judgement = decide(records, ONE, world.facts("there"))
    claim = Claiming(ONE, 2, DST, b"m" * 16)
    if knows:
        if world.handover == 1:
            yield replace(world, handover=2)
        if world.handover == 2:
            if (more := add(records, claim)) is not None:
                yield replace(world, destination=more)
            won = world.slots is None or world.slots[0] == DST
            if claim in records.records and won:
                for fate in (Start(2), HandBack(2)):
                    if (more := add(records, fate)) is not None:
                        yield replace(world, destination=more)
        yield replace(world, knows=(world.knows[0], False))
    if world.slots is None and judgement.step is Step.HAND_BACK:
        # Somebody has asked, whatever the first controller is doing meanwhile [ONE-44].
        more = add(records, claim) or add(records, HandBack(2))
        if more is not None:
            yield replace(world, destination=more)
    if world.slots is not None and claim in records.records:
        if records.fate(2) is None and world.slots[0] is None:
            yield replace(world, flying=world.flying | {(2, DST)})
        fates: dict[Step, Start | HandBack] = {Step.START: Start(2), Step.HAND_BACK: HandBack(2)}
        if judgement.step in fates and (more := add(records, fates[judgement.step])) is not None:
            yield replace(world, destination=more)
    if judgement.step is Step.RUN:
        yield replace(world, ran=world.ran | {"destination"})


def landings(world: World) -> Iterator[World]:
    """Claims arrive, in any order, once or again."""
    for epoch, runner in world.flying:
        slots = list(world.slots or ())
        if slots[epoch - 2] is None and (epoch == 2 or slots[0] is not None):
            slots[epoch - 2] = runner
            yield replace(world, slots=tuple(slots))
        yield replace(world, flying=world.flying - {(epoch, runner)})


def explore(start: World) -> dict[World, set[World]]:
    """Every world that can be reached, and where each leads."""
    found: dict[World, set[World]] = {}
    waiting = [start]
    while waiting:
        world = waiting.pop()
        if world in found:
            continue
        found[world] = {*source_moves(world), *destination_moves(world), *landings(world)}
        waiting += found[world]
    return found


@pytest.mark.parametrize("slots", [None, (None, None)])
def test_the_judgements_of_both_hosts_fit_together(slots: tuple[None, None] | None) -> None:
    """In no world are both sides told to run, and from each some side gets there [ONE-27, ONE-45, ONE-58]."""
    receiving = replace(RECEIVING, peer="here")
    worlds = explore(World(history(SENDING), history(receiving), slots=slots))
    run = {Step.RUN, Step.START, Step.ROLL_BACK}
    for world in worlds:
        here, there = (
            decide(world.source, ONE, world.facts("here")),
            decide(world.destination, ONE, world.facts("there")),
        )
        assert not (here.step in run and there.step in run), world
        assert len(world.ran) < 2, world
        if world.ran:
            other = there if "source" in world.ran else here
            assert other.step not in run, world
    # Backwards from where somebody runs: no world is without a way there.
    good = {
        world
        for world in worlds
        if world.ran or decide(world.source, ONE, world.facts("here")).step is Step.ROLL_BACK
    }
    before: dict[World, set[World]] = {}
    for world, onward in worlds.items():
        for each in onward:
            before.setdefault(each, set()).add(world)
    waiting = list(good)
    while waiting:
        for world in before.get(waiting.pop(), ()):
            if world not in good:
                good.add(world)
                waiting.append(world)
    assert good == set(worlds)
    assert len(worlds) > 50
    assert NO_RUNNER not in {runner for world in worlds for runner in world.slots or ()}


def hasty_source(history: History | None, session: bytes, facts: Facts) -> Judgement:
    """Runs when nobody answers."""
    found = judge(history, session, facts)
    return replace(found, step=Step.RUN) if found.step in {Step.ASK, Step.CLAIM_NEXT} else found


def hasty_destination(history: History | None, session: bytes, facts: Facts) -> Judgement:
    """Runs before its claim is won."""
    found = judge(history, session, facts)
    return replace(found, step=Step.RUN) if found.step is Step.REPEAT_CLAIM else found


def trusting_source(history: History | None, session: bytes, facts: Facts) -> Judgement:
    """Takes the destination's silence about START for HANDBACK."""
    if facts.host == "here" and facts.peer is U:
        facts = replace(facts, peer=S)
    return judge(history, session, facts)


@pytest.mark.parametrize(
    ("broken", "slots"),
    [
        (hasty_source, None),
        (hasty_source, (None, None)),
        (hasty_destination, (None, None)),
        (trusting_source, None),
    ],
)
def test_wrong_judgements_are_found(
    broken: Callable[..., Judgement], slots: tuple[None, None] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exploration can fail."""
    monkeypatch.setattr(sys.modules[__name__], "decide", broken)
    with pytest.raises(AssertionError):
        test_the_judgements_of_both_hosts_fit_together(slots)


@pytest.mark.parametrize(
    ("owner", "complete", "said"), [(D, True, True), (U, True, True), (D, False, False), (U, False, None)]
)
def test_what_a_peer_has_said_of_its_pages(owner: Owner, complete: bool, said: bool | None) -> None:
    """[ONE-42] One that does not know the session says nothing of them."""
    assert has_all_pages(Verdict(owner, 2, NO_RUNNER, complete=complete)) is said
