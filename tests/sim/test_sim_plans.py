"""What requests become: one thing after the other, and the answers of hosts to those who come and ask."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sim_support import ALPHA, BETA, go, kinds, parted, stands, world_of

from sterna.core.events import (
    Admit,
    AnswerVerdict,
    Claim,
    KeepNotes,
    Persist,
    ProbeStore,
    Readmit,
    RollBack,
    RunOn,
    Throttle,
)
from sterna.core.records import Claiming, HandBack, Start, Voided
from sterna.core.tables import DestinationState, SourceState
from sterna.core.verdict import Slot
from sterna.registry import ErrorCode, Feature, Mode, Owner
from sterna.sim.defects import Defect
from sterna.sim.holder import PAGES, Remains, Stage
from sterna.sim.hosts import Hold, Line, Process, Reach, Task, Write
from sterna.sim.judge import Violation
from sterna.sim.kept import Found, Fresh
from sterna.sim.machines import Trouble
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.plans import Answered, plan, spare_runner
from sterna.sim.tasks import effect
from sterna.wire.records import FeatureOffer, Hello, Runner, Verdict

RUNNER = Runner("beta", b"b" * 16)
SEALED = {"source": SourceState.SEALED, "destination": DestinationState.LOADED}
CUT = ("cut", 1, 0, 0)
SILENT = Trouble(ErrorCode.UNDECIDED)


def planned(world, host, request, *results, image=b"i" * 16):
    task = Task(1, "destination", image=image)
    task.results = results
    here = world.hosts[host]
    return plan(world, here, here.endpoint, task, request)


def test_one_thing_after_the_other():
    world = world_of()
    request = RollBack(Voided(b"s" * 16, 2))
    first, second = Hold("unmark", b"i" * 16), Hold("resume", b"i" * 16)
    assert planned(world, ALPHA, request) == first
    assert planned(world, ALPHA, request, None) == second
    assert planned(world, ALPHA, request, None, None) == Answered(None)
    failed = Trouble(ErrorCode.GUEST_FAILED)
    assert planned(world, ALPHA, request, failed) is failed
    assert planned(world, ALPHA, RollBack()) == second
    assert planned(world, ALPHA, Throttle(0.5)) == Answered()


def test_a_claim_goes_to_the_store_if_there_is_one():
    assert planned(world_of(), BETA, Claim(2, RUNNER)) == Reach("claim", 2, RUNNER)
    assert planned(world_of(store=False), BETA, Claim(1, RUNNER)) == Answered(RUNNER)


def test_defects_of_the_destination():
    world = world_of(defects=frozenset({Defect.START_NOT_WRITTEN, Defect.RUNS_BEFORE_CLAIM}))
    assert planned(world, BETA, Persist(Start(2))) == Answered()
    claiming = Claiming(b"s" * 16, 2, RUNNER, b"i" * 16)
    assert planned(world, BETA, Persist(claiming)) == Hold("run", b"i" * 16, 2, RUNNER)
    assert planned(world, BETA, Persist(claiming), None) == Write(claiming)


def greeting(world, mode=Mode.OPEN, session=bytes(16), token=bytes(32)):
    epoch = 0 if world.store is None else 1
    runner = Runner("", bytes(16)) if world.store is None else world.store.slots[0]
    features = () if world.store is None else (FeatureOffer(Feature.LEASE_STORE, True, 0),)
    return Hello(mode, (1,), features, {}, bytes(range(16)), epoch, runner, "a", session, token)


def test_who_may_come():
    """[ONE-11] [ONE-14] [ONE-55]"""
    world = world_of()
    hello = greeting(world)
    shown = Slot(1, hello.runner)
    assert planned(world, BETA, Admit(hello)) == Reach("newest", 0)
    assert planned(world, BETA, Admit(hello), SILENT) == Trouble(ErrorCode.REFUSED)
    assert planned(world, BETA, Admit(hello), Slot(2, RUNNER)) == Trouble(ErrorCode.STALE_EPOCH)
    storeless = replace(hello, features=())
    assert planned(world, BETA, Admit(storeless), shown) == Trouble(ErrorCode.MISSING_FEATURE)
    found = planned(world, BETA, Admit(hello), shown)
    assert found.answer.runner.host == "beta"
    beside = Process(7, beside=True)
    busy = plan(world, world.hosts[BETA], beside, Task(1, "destination"), Admit(hello))
    assert busy == Trouble(ErrorCode.BUSY)
    world.begin(ALPHA)
    go(world)
    assert planned(world, BETA, Admit(hello), shown) == Reach("read", 2), "it was handed over"
    again = planned(world, BETA, Admit(hello), shown, world.store.facts(2))
    assert again.answer.owner is Owner.DESTINATION


def test_a_slot_that_is_not_the_newest_any_more():
    """[ONE-16] [ONE-64]"""
    world = world_of()
    (first,) = world.store.slots
    request = ProbeStore(1, first)
    assert planned(world, BETA, request) == Reach("newest", 0)
    assert planned(world, BETA, request, Slot(1, first)) == Answered()
    assert planned(world, BETA, request, Slot(2, RUNNER)) == Trouble(ErrorCode.STALE_EPOCH)
    assert planned(world, BETA, request, SILENT) == Trouble(ErrorCode.NOT_READY)


def asked(world, **changes):
    """The answer to a question about the newest session at the destination, carried out."""
    here = world.hosts[BETA]
    session = next(each for each in here.history.records if each.kind == "session")
    hello = greeting(world, Mode.VERDICT, session.session, changes.get("token", session.token))
    hello = replace(hello, session=changes.get("session", hello.session))
    process, task = Process(9), Task(1, "destination")
    here.lock = 9
    while not isinstance(
        found := plan(world, here, process, task, AnswerVerdict(hello)), (Answered, Trouble)
    ):
        task.op = found
        task.results = (*task.results, effect(world, here, process, task))
    return found.answer if isinstance(found, Answered) else found


def test_a_question_before_handover_makes_it_be_handed_back():
    """[ONE-44]"""
    world = world_of(store=False)
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.LOADED))
    assert asked(world).owner is Owner.SOURCE
    assert kinds(world, BETA) == ["session", "claiming", "handback"]


def test_a_question_behind_start_tells_the_destination():
    """[ONE-45]"""
    world = world_of(store=False)
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.STARTING))
    found = asked(world)
    assert (found.owner, found.epoch) == (Owner.DESTINATION, 1)


def test_with_a_store_the_slot_decides():
    """[ONE-50]"""
    world = world_of()
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.CLAIMING))
    assert asked(world).owner is Owner.UNDECIDED
    go(world, stands(destination=DestinationState.COMMITTING))
    assert (asked(world).owner, asked(world).epoch) == (Owner.DESTINATION, 2)
    world.store.answers = False
    assert asked(world) == Trouble(ErrorCode.UNDECIDED)


@pytest.mark.parametrize("changes", [{"token": b"x" * 32}, {"session": b"x" * 16}])
def test_strangers_learn_nothing(changes):
    """[ONE-46]"""
    world = world_of(store=False)
    world.begin(ALPHA)
    go(world, stands(destination=DestinationState.LOADED))
    found = asked(world, **changes)
    assert isinstance(found, Verdict)
    assert found.owner is Owner.UNDECIDED
    assert kinds(world, BETA) == ["session"]


def test_a_process_without_the_records_cannot_tell():
    """[ONE-60]"""
    world = world_of(store=False)
    world.begin(ALPHA)
    go(world, stands(source=SourceState.SEALED))
    hello = greeting(world, Mode.VERDICT)
    found = plan(world, world.hosts[BETA], Process(7), Task(1, "destination"), AnswerVerdict(hello))
    assert found == Trouble(ErrorCode.BUSY)


def test_a_spare_runner_is_another_one_once_it_is_on_record():
    """[ONE-4]"""
    world = world_of()
    here = world.hosts[ALPHA]
    first = spare_runner(here)
    assert spare_runner(here) == first
    assert spare_runner(here, b"other") != first
    world.begin(ALPHA)
    go(world)
    assert spare_runner(here) != first
    assert HandBack(2) not in here.history.records


def test_a_session_that_nobody_has_kept_is_not_taken_up():
    """[RES-3]"""
    world = world_of()
    hello = greeting(world, Mode.RESUME, b"s" * 16)
    assert planned(world, BETA, Readmit(hello)) == Trouble(ErrorCode.BAD_TOKEN)
    assert planned(world, ALPHA, RunOn()) == Hold("resume", b"i" * 16)


def lacks_pages(world):
    return world.running() is not None and bool(world.running().missing)


def taken_over(until=lacks_pages, *, store=False, **more):
    """A world whose destination was killed, most often while pages follow, and the HELLO of the source."""
    world = world_of(resume=True, switchover="post-copy", clocked=False, store=store, **more)
    world.begin(ALPHA)
    go(world, until)
    world.take(("kill", BETA, world.hosts[BETA].endpoint.number, 0))
    world.take(("restart", BETA, 0, 0))
    (opening,) = world.hosts[BETA].openings.values()
    return world, opening.ticket.next_hello()


def test_a_session_is_taken_over_once_its_guest_runs():
    """[RES-16] [RES-18]"""
    world, hello = taken_over()
    there = world.hosts[BETA]
    (image,) = there.openings
    (holder,) = there.holders
    request = Readmit(hello)
    assert planned(world, BETA, request) == Hold("take-over", image)
    found = planned(world, BETA, request, holder.remains())
    remains = holder.remains()
    assert found == Answered(
        Found(image, remains.missing, remains.notes, remains.memory, there.openings[image])
    )
    assert isinstance(planned(world, BETA, request, Remains(frozenset(), None)).answer, Verdict)
    assert "turned-away" not in there.armed
    holder.stage = Stage.READY
    assert planned(world, BETA, request) == Trouble(ErrorCode.BUSY)
    assert "turned-away" in there.armed
    holder.stage = Stage.KILLED
    assert planned(world, BETA, request) == Trouble(ErrorCode.GUEST_LOST)
    there.lock = 99
    assert planned(world, BETA, request) == Trouble(ErrorCode.BUSY)
    there.lock, there.openings = 0, {}
    assert isinstance(planned(world, BETA, request).answer, Verdict), "nobody can go on with it"


@pytest.mark.parametrize(
    ("defect", "missing"),
    [(Defect.BITS_IGNORED, PAGES), (Defect.ALL_TAKEN_AS_INSTALLED, 0), (Defect.TAKEN_FOR_NEW, 1)],
)
def test_defects_of_a_destination_that_takes_over(defect, missing):
    world, hello = taken_over(defects=frozenset({defect}))
    (holder,) = world.hosts[BETA].holders
    remains = Remains(frozenset({1}), bytes(holder.notes))
    answer = planned(world, BETA, Readmit(hello), remains).answer
    assert (len(answer.missing), answer.fresh) == (missing, defect is Defect.TAKEN_FOR_NEW)
    world, hello = taken_over(defects=frozenset({Defect.OPENING_FORGOTTEN}))
    assert isinstance(planned(world, BETA, Readmit(hello)).answer, Verdict)


@pytest.mark.parametrize("store", [True, False])
def test_a_session_begins_anew_in_a_process_that_has_nothing_of_it(store):
    """[RES-7] [RES-16] The store is asked as for an opening."""
    world, hello = taken_over(stands(destination=DestinationState.LOADED), store=store)
    (image,) = world.hosts[BETA].openings
    request, asked = Readmit(hello), [Slot(hello.epoch, hello.runner)] if store else []
    if store:
        assert planned(world, BETA, request) == Reach("newest", 0)
        for said, code in ((SILENT, ErrorCode.BUSY), (Slot(2, RUNNER), ErrorCode.STALE_EPOCH)):
            assert planned(world, BETA, request, said) == Trouble(code)
    assert planned(world, BETA, request, *asked) == Hold("reserve", image)
    full = Trouble(ErrorCode.GUEST_FAILED)
    assert planned(world, BETA, request, *asked, full) is full
    assert planned(world, BETA, request, *asked, None) == Answered(Fresh(image, None))
    world.defects = frozenset({Defect.FORGOTTEN_AS_HELD})
    assert planned(world, BETA, request, *asked, None) == Answered(Fresh(image, None, holds=True))


def test_notes_are_kept_by_the_holder_of_whoever_takes_one_way():
    """[RES-19] A world that is explored in every direction keeps none."""
    world = world_of()
    here = world.hosts[ALPHA]
    request = KeepNotes(64)
    assert planned(world, ALPHA, request) == Hold("notes", b"i" * 16)
    assert planned(world, ALPHA, request, here.holders[0]) == Answered(here.holders[0])
    world.makers = RecallingMakers(Shape())
    assert planned(world, ALPHA, request) == Answered()


def test_a_session_is_not_taken_up_while_it_is_recovered():
    """[RES-18]"""
    world = parted(SEALED, CUT)
    endpoint = world.hosts[BETA].endpoint
    ((session, left),) = endpoint.kept.items()
    endpoint.tasks.append(Task(7, "recovery", image=session))
    hello = left.ticket.next_hello()
    assert planned(world, BETA, Readmit(hello)) == Trouble(ErrorCode.BUSY)
    endpoint.tasks.clear()
    assert planned(world, BETA, Readmit(hello)) == Answered(left)


def test_a_resumption_that_is_refused_touches_nothing():
    """[RES-1] [RES-4] Whether the session is kept, or another connection has it, or a dead process had it."""
    world = parted(SEALED, CUT)
    endpoint = world.hosts[BETA].endpoint
    ((session, left),) = endpoint.kept.items()
    hello = left.ticket.next_hello()
    refused = Trouble(ErrorCode.BAD_TOKEN)
    strange = replace(hello, token=bytes(32))
    assert planned(world, BETA, Readmit(replace(hello, generation=0))) == refused
    assert planned(world, BETA, Readmit(strange)) == refused
    assert endpoint.kept == {session: left}
    go(world, stands(destination=DestinationState.RESUMED))
    (task,) = world.hosts[BETA].endpoint.tasks
    assert planned(world, BETA, Readmit(hello)) == refused, "its own generation, from another connection"
    assert world.hosts[BETA].endpoint.tasks == [task]
    assert task.machine.state is DestinationState.RESUMED
    later = replace(hello, generation=hello.generation + 1)
    assert isinstance(planned(world, BETA, Readmit(later)), Answered)
    assert world.hosts[BETA].endpoint.tasks == [], "the older one is closed"


@pytest.mark.parametrize("overtaken", [False, True])
def test_who_resumes_is_refused_only_where_a_later_one_has_come(overtaken):
    """[RES-1] A source that breaks a rule hears of it; one that was overtaken listens there no more."""
    world = parted(SEALED, CUT)
    endpoint = world.hosts[BETA].endpoint
    (left,) = endpoint.kept.values()
    task = Task(7, "destination")
    task.line = 7
    line = Line(7, ((ALPHA, world.hosts[ALPHA].endpoint.number, 9), (BETA, endpoint.number, task.number)))
    world.add_line(line)
    again = Readmit(replace(left.ticket.next_hello(), generation=0))
    if overtaken:
        line.leaves(0)
        refused = plan(world, world.hosts[BETA], endpoint, task, again)
        assert refused == Trouble(ErrorCode.BAD_TOKEN)
    else:
        with pytest.raises(Violation, match="converges: whoever resumes is refused: bad_token"):
            plan(world, world.hosts[BETA], endpoint, task, again)
