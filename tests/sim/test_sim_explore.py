"""Every interleaving of a handover with a fault holds, and each defect is found."""

from __future__ import annotations

from itertools import count

import pytest
from sim_support import ALPHA, states

from sterna.core.events import Outcome
from sterna.core.tables import DestinationState, SourceState
from sterna.sim import ends, machines, plans, spaces
from sterna.sim import explore as module
from sterna.sim.defects import Defect
from sterna.sim.explore import explore, loaded, sent, told
from sterna.sim.faults import Fault
from sterna.sim.judge import Violation
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.rest import check_rest
from sterna.sim.world import FIRST_COUNT

# For each defect: whether it needs a store to be found, and with how many faults it is.
FOUND = {
    Defect.RUNS_BEFORE_CLAIM: [(True, 0), (False, 1)],
    Defect.RESUMES_ON_TIMEOUT: [(True, 1), (False, 1)],
    Defect.EPOCH_REUSED: [(True, 1), (False, 1)],
    Defect.START_NOT_WRITTEN: [(True, 1), (False, 1)],
    Defect.ABSENT_IS_LOST: [(True, 1)],
    Defect.FREED_ON_LOST_CLAIM: [(True, 2)],
    Defect.OLD_CONTROLLER: [(False, 1)],
    Defect.PAGES_FREED: [(True, 0), (False, 0)],
    Defect.INSTALLED_TWICE: [(True, 0), (False, 0)],
    Defect.TAKEN_UP_UNASKED: [(True, 1), (False, 1)],
    Defect.NUMBERS_REUSED: [(True, 2), (False, 2)],
    Defect.OPENING_FORGOTTEN: [(False, 1)],
    Defect.BITS_IGNORED: [(False, 1)],
    Defect.ALL_TAKEN_AS_INSTALLED: [(False, 1)],
    Defect.TAKEN_FOR_NEW: [(False, 1)],
    Defect.FORGOTTEN_AS_HELD: [(False, 1)],
    Defect.OLDER_GOES_ON: [(True, 2), (False, 2)],
}
OF_PAGES = {
    Defect.PAGES_FREED: "one-runner",
    Defect.INSTALLED_TWICE: "same-memory",
    Defect.NUMBERS_REUSED: "one-runner",
    Defect.OPENING_FORGOTTEN: "one-runner",
    Defect.BITS_IGNORED: "same-memory",
    Defect.ALL_TAKEN_AS_INSTALLED: "one-runner",
    Defect.TAKEN_FOR_NEW: "same-memory",
}
# Found only where a destination that was killed takes its guest over.
TAKEN_OVER = (
    Defect.OPENING_FORGOTTEN,
    Defect.BITS_IGNORED,
    Defect.ALL_TAKEN_AS_INSTALLED,
    Defect.TAKEN_FOR_NEW,
)
# Found only where rounds before the pause have brought pages that are stale by then.
OF_ROUNDS = {Defect.TAKEN_FOR_NEW}
# Found only where the guest runs at the source still, and a round has come.
OF_ROUNDS_BEGUN = {Defect.FORGOTTEN_AS_HELD: "converges"}
# Found first by what a peer says of it, and without that by what becomes of the guest.
BLAMED = {Defect.TAKEN_UP_UNASKED, Defect.NUMBERS_REUSED, Defect.ALL_TAKEN_AS_INSTALLED}
# Where not all kinds are tried, those that are.
NEEDED = {
    Defect.FREED_ON_LOST_CLAIM: (Fault.DEADLINE, Fault.LOCKS_REFUSED),
    Defect.NUMBERS_REUSED: (Fault.SOURCE_KILLED,),
    Defect.OLDER_GOES_ON: (Fault.CUT, Fault.OPENED_ANEW),
    **dict.fromkeys((*TAKEN_OVER, *OF_ROUNDS_BEGUN), (Fault.DESTINATION_KILLED,)),
}
# What makes sessions be taken up, and is tried there where every step is carried out.
RESUMED = (Fault.SOURCE_KILLED,)
# Found only where somebody who was killed takes his session up.
OF_RESUMPTION = {Defect.TAKEN_UP_UNASKED, Defect.NUMBERS_REUSED, *TAKEN_OVER, *OF_ROUNDS_BEGUN}
# A lost link, however it is lost.
LOSSES = (Fault.CUT, Fault.TORN, Fault.DEADLINE)


def test_it_begins_where_loaded_is_on_its_way():
    world = loaded(RecallingMakers(Shape()), store=True)
    assert states(world) == {"source": SourceState.SEALED, "destination": DestinationState.LOADED}
    assert [line.pipes[0] for line in world.lines] != [()]


def test_it_may_begin_in_the_first_round():
    makers = RecallingMakers(Shape())
    world = sent(makers, store=True)
    assert states(world) == {"source": SourceState.ACKING, "destination": DestinationState.STANDBY}
    assert world.running().count > FIRST_COUNT, "pages are stale by now"
    early = sent(RecallingMakers(Shape(False, switchover="post-copy")), store=False)
    assert states(early)["source"] is SourceState.PREPARING, "there is no round"
    whole, late = (explore(store=True, faults=0, rounds=rounds) for rounds in (True, False))
    assert whole.ends == late.ends == {"runs": 1}
    assert whole.states > late.states


@pytest.mark.parametrize("store", [True, False])
def test_without_faults_there_is_one_end(store):
    found = explore(store=store, faults=0)
    assert (found.violation, found.path) == (None, ())
    assert found.ends == {"runs": 1}
    assert found.states > 20
    assert found.steps >= found.states - 1
    assert found.machines > 20


@pytest.mark.slow
@pytest.mark.parametrize("store", [True, False])
def test_with_a_fault_somebody_runs_or_it_is_lost(store):
    """[ONE-1] [ONE-9] [ONE-20] [ONE-21] [ONE-27] [ONE-43]"""
    found = explore(store=store, faults=1)
    assert found.violation is None, told(found.path)
    assert set(found.ends) == {"runs", "guest_lost"}
    assert found.states > 3000


@pytest.mark.slow
@pytest.mark.parametrize("store", [True, False])
def test_with_a_fault_while_pages_follow(store):
    """[PCY-12] [PCY-14] [ONE-38]"""
    found = explore(store=store, faults=1, switchover="post-copy")
    assert found.violation is None, told(found.path)
    assert set(found.ends) == {"runs", "guest_lost"}
    assert found.states > 6000


@pytest.mark.slow
@pytest.mark.parametrize("switchover", ["stop-and-copy", "post-copy"])
def test_with_a_fault_where_sessions_are_taken_up(switchover):
    """[RES-13] [RES-16] [RES-17] [RES-19] [PCY-16] [ONE-38] What is missing comes, and none of it twice."""
    found = explore(store=False, faults=1, switchover=switchover, resume=True)
    assert found.violation is None, told(found.path)
    assert set(found.ends) == {"runs", "guest_lost"}
    assert found.states > explore(store=False, faults=1, switchover=switchover).states


def early_ends(makers):
    """How sources have ended that were not yet told to have the holder marked."""
    trees = [tree.root for name, tree in makers.trees.items() if name[0] in {"source", "resumed"}]
    late = {SourceState.GRANTING, SourceState.APART}  # HANDOVER may have left from there on [ONE-19]
    while trees:
        machine = trees.pop()
        if machine.state in late:
            continue
        if machine.result is not None:
            yield machine.result.outcome
        trees += machine._next.values()


@pytest.mark.slow
@pytest.mark.parametrize("switchover", ["stop-and-copy", "bitmap"])
def test_a_lost_link_costs_no_migration_before_handover_may_have_left(monkeypatch, switchover):
    """[RES-1] [RES-4] [RES-6] [RES-8] [RES-9] [RES-11] Whatever of the round has come."""
    runs_at = set()

    def noted(world):
        running = world.running()
        runs_at.add(running.host)
        assert not world.hosts[ALPHA].endpoint.kept, "what was kept was taken up"
        return check_rest(world)

    monkeypatch.setattr(spaces, "check_rest", noted)
    for resume, kinds, early in ((True, LOSSES, Outcome.SUSPENDED), (False, LOSSES[:1], Outcome.ROLLED_BACK)):
        makers = RecallingMakers(Shape(False, resume=resume, switchover=switchover))
        monkeypatch.setattr(module, "RecallingMakers", lambda shape, makers=makers: makers)
        found = explore(store=False, faults=1, kinds=kinds, switchover=switchover, resume=resume, rounds=True)
        assert found.violation is None, told(found.path)
        assert found.ends.keys() == {"runs"}
        assert runs_at == {"alpha", "beta"}, "at alpha where HANDOVER may have left, or is void"
        assert set(early_ends(makers)) == {early}


@pytest.mark.slow
def test_with_a_fault_in_a_round_somebody_runs_or_it_is_lost():
    """[RES-7] [RES-14] [RES-16] [RES-18]"""
    kinds = (
        Fault.SOURCE_KILLED,
        Fault.DESTINATION_KILLED,
        Fault.DESTINATION_HOLDER_KILLED,
        Fault.RECORD_FAILS,
    )
    found = explore(store=True, faults=1, kinds=kinds, resume=True, rounds=True)
    assert found.violation is None, told(found.path)
    assert found.ends.keys() == {"runs", "guest_lost"}


@pytest.mark.slow
def test_that_what_was_left_alike_is_one_makes_no_difference(monkeypatch):
    """The same comes of it in the end, in fewer states."""
    makers = RecallingMakers(Shape(False, resume=True))
    monkeypatch.setattr(module, "RecallingMakers", lambda shape: makers)
    rests, numbers = {}, count()
    for alike in (True, False):
        rests[alike] = set()

        def noted(world, seen=rests[alike]):
            seen.add(tuple([(host.history.records, *map(guest_of, host.holders)) for host in world.hosts]))
            return check_rest(world)

        monkeypatch.setattr(spaces, "check_rest", noted)
        if not alike:
            monkeypatch.setattr(machines, "value_of", lambda _: next(numbers))
            makers.trees.clear()
        found = explore(store=False, faults=1, kinds=(Fault.TORN,), resume=True, rounds=True)
        rests[alike, "states"] = found.states
    assert rests[True] == rests[False]
    assert rests[True, "states"] < rests[False, "states"]


def guest_of(holder):
    """What is in a holder in the end."""
    return holder.stage, holder.count, holder.epoch, holder.runner, holder.missing, holder.intact


@pytest.mark.slow
def test_two_faults_of_some_kinds():
    kinds = (Fault.DEADLINE, Fault.DESTINATION_KILLED)
    found = explore(store=False, faults=2, kinds=kinds)
    assert found.violation is None, told(found.path)
    assert set(found.ends) == {"runs"}


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_a_source_that_opens_another_session_gets_one(resume):
    """[ONE-12] [ONE-13] Whatever the older one is about to do, and whoever has it."""
    kinds = (Fault.SOURCE_KILLED if resume else Fault.CUT, Fault.OPENED_ANEW)
    found = explore(store=False, faults=2, kinds=kinds, resume=resume)
    assert found.violation is None, told(found.path)
    assert set(found.ends) == {"runs"}
    assert found.states > explore(store=False, faults=2, kinds=kinds[:1], resume=resume).states


def found_with(defect, store, faults, **more):
    """What an exploration finds in which it shows."""
    switchover = "post-copy" if defect in OF_PAGES else "stop-and-copy"
    return explore(
        store=store,
        faults=faults,
        kinds=NEEDED.get(defect, module.FAULTS),
        switchover="bitmap" if defect in OF_ROUNDS else switchover,
        rounds=defect in OF_ROUNDS_BEGUN,
        defects=frozenset({defect}),
        **{"resume": defect in OF_RESUMPTION, **more},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defect", "store", "faults"),
    [(defect, *where) for defect, places in FOUND.items() for where in places],
)
def test_every_defect_is_found(monkeypatch, defect, store, faults):
    found = found_with(defect, store, faults)
    assert isinstance(found.violation, Violation)
    becomes = (OF_PAGES | OF_ROUNDS_BEGUN).get(defect, "one-runner")
    assert found.violation.name == ("converges" if defect in BLAMED else becomes)
    assert len(found.path) > 0
    assert not explore(store=store, faults=faults, kinds=NEEDED.get(defect, module.FAULTS)[:1]).violation
    if defect in OF_RESUMPTION:
        assert not found_with(defect, store, faults, resume=False).violation
    if defect in BLAMED:
        monkeypatch.setattr(ends, "_check_blame", lambda *_: None)
        monkeypatch.setattr(plans, "_is_overtaken", lambda *_: True)
        assert found_with(defect, store, faults).violation.name == becomes


def test_a_path_leads_there_again():
    defects = frozenset({Defect.RUNS_BEFORE_CLAIM})
    found = explore(store=True, faults=0, defects=defects)
    assert "slot 2 is not beta's" in str(found.violation)
    world = loaded(RecallingMakers(Shape()), store=True, defects=defects)
    *path, last = found.path
    for step in path:
        world.take(step)
    with pytest.raises(Violation, match="slot 2"):
        world.take(last)
    assert told(found.path)[-1].startswith(last[0])


def test_it_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    monkeypatch.setattr(module, "_AT_ONCE", 10)
    said = []
    explore(store=True, faults=0, say=lambda found: said.append(found.states))
    assert said == sorted(said)
    assert len(said) > 2


@pytest.mark.parametrize("plain", [False, True])
def test_a_bad_end_is_a_violation(monkeypatch, plain):
    def bad(world):
        raise Violation("one-runner", "nobody")

    monkeypatch.setattr(spaces, "check_rest", bad)
    found = explore(store=False, faults=0, plain=plain)
    assert str(found.violation) == "one-runner: nobody"
    assert len(found.path) > 5
    world = loaded(RecallingMakers(Shape(store=False)), store=False)
    for step in found.path:
        world.take(step)
    assert not world.steps()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "switchover", "kinds", "rounds"),
    [
        *[
            (store, style, module.FAULTS, False)
            for store in (True, False)
            for style in ("stop-and-copy", "post-copy")
        ],
        (True, "stop-and-copy", RESUMED, False),
        (False, "post-copy", RESUMED, False),
        (False, "post-copy", (Fault.DESTINATION_KILLED,), False),
        (False, "bitmap", (Fault.TORN,), False),
        (False, "stop-and-copy", (Fault.TORN,), True),
        (True, "stop-and-copy", (Fault.DESTINATION_KILLED,), True),
    ],
)
def test_worlds_in_parts_are_all_worlds(monkeypatch, store, switchover, kinds, rounds):
    """Not one more and not one less, as many steps, and the same at rest."""
    resume = kinds is not module.FAULTS
    makers = RecallingMakers(Shape(store, resume=resume, switchover=switchover))
    monkeypatch.setattr(module, "RecallingMakers", lambda shape: makers)
    rests = {}
    for plain in (False, True):
        rests[plain] = set()

        def noted(world, seen=rests[plain]):
            seen.add(world.key())
            return check_rest(world)

        monkeypatch.setattr(spaces, "check_rest", noted)
        found = explore(
            store=store,
            faults=1,
            kinds=kinds,
            switchover=switchover,
            resume=resume,
            rounds=rounds,
            plain=plain,
        )
        rests[plain, "counts"] = (found.states, found.steps, found.ends)
    assert rests[False, "counts"] == rests[True, "counts"]
    assert rests[False] == rests[True]
    assert len(rests[True]) > (1 if resume else 20)


@pytest.mark.slow
def test_worlds_in_parts_are_all_worlds_with_who_comes_beside():
    """Whatever was started, killed and started again in which order: no number makes two states of one."""
    kinds = (Fault.BESIDE, Fault.DESTINATION_KILLED)
    parted, plain = (explore(store=False, faults=2, kinds=kinds, plain=plain) for plain in (False, True))
    assert (parted.states, parted.steps, parted.ends) == (plain.states, plain.steps, plain.ends)
    assert parted.states > 500


def test_a_state_is_looked_at_with_all_faults_that_may_be_left():
    """Those that need none are as many, whether one may come or not."""
    kinds = (Fault.DEADLINE, Fault.RECORD_FAILS)
    few, more = (module.Exploration(store=False, faults=faults, kinds=kinds) for faults in (0, 1))
    few.run()
    more.run()
    once, twice = ([sum(map(len, rows)) for rows in each._reached] for each in (few, more))
    assert once == twice[:1]
    assert twice[1] > 0
