"""A state machine for Hypothesis over both machines, with the invariants looked at after every step.

Its rules are what can happen to a migration: bytes leave and arrive, a few or many; requests are taken,
carried out, answered, late or never; guests write; time passes; a bit flips under way; a side is told that
the connection has ended, the other one is not; somebody cancels. `flow` is the healthy life between these,
without which no history would come far.

A history ends in one of three ways, so that no machine is left waiting for a step that nobody makes: the
connection works again, it ends for both, or it goes silent and only time passes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from sterna.core.events import Finished, Outcome, PhaseEntered
from sterna.core.tables import COMMITTED, DEAF, PHASES, TERMINAL, DestinationState, SourceState, State
from sterna.core.tables import DESTINATION as DESTINATION_TABLE
from sterna.core.tables import SOURCE as SOURCE_TABLE
from sterna.errors import LocalProtocolError
from sterna.guest.workload import PAGE_BYTES
from sterna.registry import ERRORS, ErrorCode, FrameType, Phase
from sterna_fuzz.conversations import DESTINATION, EPOCH, SOURCE
from sterna_fuzz.guests import damaged
from sterna_fuzz.target import Machine, Words
from sterna_fuzz.worlds import STALL_S, Setting, Side, World

FLOW_STEPS: Final = 4000  # more than any migration of these guests takes
SILENCE_S: Final = 600.0  # longer than all deadlines of a session one after the other
# What a destination says of a run that is not what its table says [PGS-16] [PGS-17] [PGS-18] [PGS-19].
_NOT_PACKED: Final = frozenset({ErrorCode.MALFORMED, ErrorCode.LIMIT_EXPANSION})
_MADE: Final = frozenset({DestinationState.LOADING, DestinationState.LOADED})
# Phases come in this order; only a destination that is not ready leads back to rounds.
_ORDER: Final = (
    Phase.HANDSHAKE,
    Phase.DESCRIBE,
    Phase.ROUNDS,
    Phase.PREPARE,
    Phase.BLACKOUT,
    Phase.COMMIT,
    Phase.AFTER,
)

# It never stays in DECIDING, nor in CONFIRMING without a store; the others are not on the way of a
# stop-and-copy, over one connection, that nothing happens to.
_OFF_THE_WAY: Final[frozenset[State]] = frozenset(
    {
        SourceState.DECIDING, SourceState.CONFIRMING, SourceState.ASKING, SourceState.RESUMING,
        SourceState.COMPARING,
        DestinationState.ANSWERING, DestinationState.HANDING_BACK, DestinationState.FETCHING,
        DestinationState.RESUMING, DestinationState.RESUMED,
        SourceState.APART, SourceState.RETURNING, SourceState.CATCHING_UP,
        SourceState.ATTACHING, SourceState.REATTACHING, SourceState.REPLACING,
        DestinationState.JOINING,
    }
)  # fmt: skip

WAY_STEPS: Final = 60
WAY: Final[tuple[State, ...]] = tuple(
    state
    for state in (*SourceState, *DestinationState)
    if any(row.next is state for row in (*SOURCE_TABLE.values(), *DESTINATION_TABLE.values()))
    and state not in DEAF | _OFF_THE_WAY
)

names = st.sampled_from((SOURCE, DESTINATION))
counts = st.integers(1, 40) | st.integers(1, 40_000)

settings_of_a_world = st.builds(
    Setting,
    pages=st.integers(6, 20),
    zero_pages=st.integers(0, 4),
    regions=st.integers(1, 3),
    allowed_downtime_s=st.sampled_from((0.001, 0.03, 0.3)),
    rounds=st.integers(1, 5),
    throttle=st.sampled_from((0.0, 0.5, 0.99)),
    switch=st.sampled_from((True, True, True, False)),
    bulk_bytes=st.sampled_from((4096, 3 * 4096 + 5, 1 << 16)),
    batch_bytes=st.sampled_from((4096, 1 << 16)),
    precise=st.booleans(),
    not_ready=st.sampled_from((0, 0, 1, 2)),
    claim=st.sampled_from((True, True, True, False)),
)


class Action(enum.Enum):
    """What a driver does, one by one."""

    TAKE = "a side takes what its machine has to say next"
    LEAVE = "some of that leaves"
    ARRIVE = "some of what has left arrives"
    ARRIVE_IN_PLACE = "likewise, read into the buffer that the machine gives"
    ASK = "a side takes its machine's next request"
    CARRY_OUT = "the request is carried out, and the answer is kept"
    ANSWER = "the request is answered"


class History(Machine):
    """One migration, and what happens to it."""

    world: World
    ending = "flow"

    # ---- rules ----

    @initialize(setting=settings_of_a_world, ending=st.sampled_from(("flow", "cut", "silence")))
    def begin(self, setting: Setting, ending: str) -> None:
        """Start the source."""
        self.start(setting, ending)

    def start(self, setting: Setting, ending: str) -> None:
        """In a world like this."""
        self.world = World(setting)
        self.ending = ending
        self.phases: dict[str, list[Phase]] = {SOURCE: [], DESTINATION: []}
        self.looked = {SOURCE: 0, DESTINATION: 0}
        self.handed_over = False
        self.journaled = self.written = 0
        self.world.source.start(self.world.now)

    @rule(steps=st.integers(1, 12))
    def flow(self, steps: int) -> None:
        """A healthy connection, and hosts that do what they are asked."""
        self.world.flow(steps)

    @rule(steps=st.integers(1, 12), pages=st.integers(1, 3))
    def live(self, steps: int, pages: int) -> None:
        """The same, with a guest that writes."""
        for _ in range(steps):
            self.world.write(pages)
            self.world.flow(1)

    @rule(state=st.sampled_from(WAY), pages=st.integers(0, 2))
    def reach(self, state: State, pages: int) -> None:
        """The same, until one of the machines stands where it is wanted."""
        for _ in range(WAY_STEPS):
            if state in {self.world.source.state, self.world.destination.state}:
                return
            self.world.write(pages)
            # A collect is over before ROUND_ACK comes, unless the host is slow.
            lags = state is SourceState.COLLECTING and self.world.source.state is SourceState.ACKING
            if not self.world.flow(1, answers=not lags):
                return

    @rule(name=names, action=st.sampled_from(Action), count=counts)
    def act(self, name: str, action: Action, count: int) -> None:
        """One thing that a driver does, by itself."""
        world = self.world
        match action:
            case Action.TAKE:
                world.take(name)
            case Action.LEAVE:
                world.leave(name, count)
            case Action.ARRIVE:
                world.arrive(name, count)
            case Action.ARRIVE_IN_PLACE:
                world.arrive(name, count, in_place=True)
            case Action.ASK:
                world.ask(name)
            case Action.CARRY_OUT:
                world.carry_out(name)
            case Action.ANSWER:
                world.answer(name)

    @rule(pages=st.integers(1, 3))
    def write(self, pages: int) -> None:
        """The guest writes."""
        self.world.write(pages)

    @rule(seconds=st.floats(0.01, 1.5))
    def pass_time(self, seconds: float) -> None:
        """Time passes."""
        self.world.pass_time(seconds)

    @precondition(lambda self: self.ending != "flow")
    @rule(seconds=st.floats(1.5, 40.0))
    def stall(self, seconds: float) -> None:
        """Much time passes, and nothing moves in it."""
        self.world.pass_time(seconds)

    @precondition(lambda self: self.ending != "flow")
    @rule(state=st.sampled_from(WAY), name=names, done=st.booleans(), cancel=st.booleans())
    def strike(self, state: State, name: str, *, done: bool, cancel: bool) -> None:
        """In a certain state a request fails, perhaps after it was carried out, or somebody cancels."""
        self.reach(state=state, pages=1)
        if done:
            self.world.carry_out(name)
        if cancel or not self.world.fail(name):
            self.cancel(name=name)

    @rule(seconds=st.floats(0.25, 9.0))
    def idle(self, seconds: float) -> None:
        """Hosts take their time, on a healthy connection."""
        self.world.idle(seconds)

    @rule(number=st.integers(0, 3), value=st.integers(0, 2))
    def scribble(self, number: int, value: int) -> None:
        """The guest fills a page, with zeros too."""
        self.world.scribble(number, value)

    @rule()
    def ping(self) -> None:
        """Somebody measures the round trip."""
        self.world.source.ping(self.world.now)
        self.world.destination.ping(self.world.now)

    # Less often: a history with all of them at once shows nothing.

    @precondition(lambda self: self.ending != "flow")
    @rule(name=names, at=st.integers(0, 1 << 20), pages=st.booleans())
    def corrupt(self, name: str, at: int, *, pages: bool) -> None:
        """A bit flips under way, perhaps of the next page bytes."""
        pipe = self.world.sides[name].pipe
        for _ in range(WAY_STEPS if pages else 0):
            if len(pipe) > PAGE_BYTES or not self.world.flow(1):
                break
        self.world.corrupt(name, at)

    @rule(steps=st.integers(0, WAY_STEPS))
    def damage(self, steps: int) -> None:
        """A bit of page bytes flips under way, the next ones after so many steps."""
        for step in range(2 * WAY_STEPS):
            if (step >= steps and self.world.carries_pages) or not self.world.flow(1):
                break
        self.world.damage()

    @precondition(lambda self: self.ending == "cut")
    @rule(name=names, orderly=st.booleans())
    def lose(self, name: str, *, orderly: bool) -> None:
        """A side is told that the connection has ended."""
        self.world.lose(name, orderly=orderly)

    @precondition(lambda self: self.ending != "flow")
    @rule(name=names)
    def cancel(self, name: str) -> None:
        """Somebody cancels; once it is too late, nothing changes."""
        machine = self.world.sides[name].machine
        too_late = machine.state in COMMITTED
        try:
            machine.cancel(self.world.now)
        except LocalProtocolError as error:
            if error.code is not ErrorCode.TOO_LATE or not too_late:
                raise
        else:
            assert not too_late, "cancelled, though permission may have been given [CON-72]"
            self.world.disturbed = True

    @precondition(lambda self: self.ending != "flow")
    @rule(name=names)
    def fail(self, name: str) -> None:
        """A request fails, perhaps after it was carried out."""
        self.world.fail(name)

    # ---- what must hold after every step ----

    @invariant()
    def holds(self) -> None:
        """All of it."""
        self.one_runner()
        self.same_memory()
        self.states()
        self.ends()
        self.rolled_back()

    def one_runner(self) -> None:
        """Never both; at the destination with permission only, at the source never again then [ONE-20]."""
        world = self.world
        handed_over = bool(world.sides[SOURCE].monitor.said[FrameType.HANDOVER])
        self.handed_over = self.handed_over or world.source.state is SourceState.HANDED_OVER or handed_over
        assert not (world.guest.running and world.room.running), "both sides run the guest"
        if world.room.has_run:
            assert handed_over, "it runs at the destination without permission"
        if handed_over:
            assert world.guest.granted_epoch == EPOCH + 1, "permission has left, and its holder does not know"
            assert "granted" in world.records[SOURCE], "permission has left without a record"
        if self.handed_over:
            assert not world.guest.running, "it runs at the source, though another may run it"
        if world.sides[DESTINATION].monitor.said[FrameType.HANDBACK]:
            assert "handback" in world.records[DESTINATION], "handed back without a record [ONE-35]"
            assert not world.room.has_run, "handed back, and it has run"
        for entry in world.guest.machine.journal[self.journaled :]:
            assert entry.count > self.written, "two runs of the guest have written"
            self.written = entry.count
        self.journaled = len(world.guest.machine.journal)

    def same_memory(self) -> None:
        """Once everything was verified, the destination has the memory of the pause [MEM-11] [CON-50]."""
        world = self.world
        if world.destination.state in _MADE and world.room.description is not None:
            views = [world.room.memory(region.id) for region in world.guest.description.regions]
            right = world.altered or b"".join(map(bytes, views)) == world.image
            assert right, "stale or other pages were sealed"

    def states(self) -> None:
        """A state that no row of the tables leads to is never reached, and phases come in their order."""
        for side in self.world.sides.values():
            machine = side.machine
            assert machine.phase is PHASES.get(machine.state, Phase.ANY)
            assert (machine.result is not None) == (machine.state in TERMINAL), f"{machine.state}"
            for event in side.events[self.looked[side.name] :]:
                if isinstance(event, PhaseEntered):
                    self._phase(side, event.phase)
            self.looked[side.name] = len(side.events)

    def _phase(self, side: Side, phase: Phase) -> None:
        seen = self.phases[side.name]
        before = seen[-1] if seen else Phase.HANDSHAKE
        back = (before, phase) == (Phase.PREPARE, Phase.ROUNDS)
        assert back or _ORDER.index(phase) > _ORDER.index(before), (
            f"{side.name}: {phase.name} after {before.name}"
        )
        seen.append(phase)

    def ends(self) -> None:
        """One coded end."""
        for side in self.world.sides.values():
            result = side.machine.result
            finished = sum(isinstance(event, Finished) for event in side.events)
            assert finished == (result is not None), f"{side.name}: {finished} ends"
            if result is None:
                continue
            in_order = result.outcome in {Outcome.COMPLETED, Outcome.ANSWERED}
            assert in_order == (result.code is None), f"{result.outcome} with {result.code}"
            assert result.error is None or result.error.code in ERRORS, f"{result.error!r}"
            assert side.machine.poll_timeout() is None, f"{side.name} has ended, and waits for a time"

    def rolled_back(self) -> None:
        """Who says that the guest runs at the source is right, and nothing is lost [CON-62] [ONE-19]."""
        world, result = self.world, self.world.source.result
        if result is None or result.outcome is not Outcome.ROLLED_BACK:
            return
        guest = world.guest
        assert guest.running, "the guest stands still"
        assert not world.room.has_run, "it runs at the destination"
        assert guest.granted_epoch is None, "it is still granted"
        assert not guest.released, "its memory was freed"
        assert not guest.machine.throttle, "it is still slowed down"
        if guest.machine.journal:
            assert guest.workload.count >= guest.machine.journal[-1].count, "writes are lost"

    # ---- the end ----

    def teardown(self) -> None:
        """Let the history end, and look at where the guest is then."""
        if not hasattr(self, "world"):
            return
        _ENDINGS[self.ending](self.world)
        self.holds()
        self.at_last()

    def at_last(self) -> None:
        """Both have ended, and of the guest there is exactly one, or it is coded why not."""
        world = self.world
        here, there = world.source.result, world.destination.result
        assert here is not None, f"the source never ends: {world.source.state}"
        assert there is not None, f"the destination never ends: {world.destination.state}"
        runs = world.guest.running + world.room.running
        coded = {here.outcome, there.outcome} & {Outcome.UNDECIDED, Outcome.GUEST_FAILED}
        failed = here.outcome is Outcome.GUEST_FAILED
        assert world.stuck or not failed, f"it could not be set running again: {here.error}"
        assert runs == 1 or coded, f"{runs} run, and nobody says why: {here.outcome}, {there.outcome}"
        if world.room.running:
            assert here.outcome in {Outcome.COMPLETED, Outcome.MOVED, Outcome.UNDECIDED}, here.outcome
            assert there.outcome in {Outcome.COMPLETED, Outcome.MOVED, Outcome.UNDECIDED}, there.outcome
            right = world.altered or not damaged(world.room.workload)
            assert right, "memory at the destination is damaged"
        if not world.disturbed and self.ending == "flow":
            good = here.outcome is there.outcome is Outcome.COMPLETED and not world.spoilt
            gave_up = here.code is ErrorCode.NOT_CONVERGING and not world.spoilt
            gave_up = gave_up or there.code in self.explained
            assert good or gave_up, f"undisturbed, and yet {here.error or there.error}"
        elif not self.handed_over and here.outcome is not Outcome.GUEST_FAILED:
            assert here.outcome is Outcome.ROLLED_BACK, f"{here.outcome} before HANDOVER"
        for side in world.sides.values():
            self.last_word(side)
        assert not damaged(world.guest.workload), "memory at the source is damaged"

    @property
    def explained(self) -> frozenset[ErrorCode]:
        """What a destination may say of page bytes that were damaged, or packed as nothing may be."""
        world, codes = self.world, set[ErrorCode]()
        if world.damaged and not world.altered:
            codes.add(ErrorCode.PAGE_HASH)
        if world.spoilt or (world.damaged and world.packs is not None):
            codes |= _NOT_PACKED
        return frozenset(codes)

    def last_word(self, side: Side) -> None:
        """Whoever ends a session says so, as long as the connection takes it [CON-11] [ABT-1]."""
        result = side.machine.result
        if result is None or result.by_peer or not side.connected or side.taken:
            return
        if self.world.longest_quiet_s > STALL_S or result.outcome is Outcome.GUEST_FAILED:
            return  # the connection may have been given up; or the session was over before this happened
        if result.code not in {ErrorCode.CONNECTION_LOST, ErrorCode.PEER_STALLED, ErrorCode.TRUNCATED}:
            said = side.monitor.said
            handed_back = self.world.sides[DESTINATION].monitor.said[FrameType.HANDBACK]
            if handed_back and result.verdict is not None:
                return  # the destination has ended it, and there is no answer [ONE-37]
            words = (
                said[FrameType.ABORT]
                + said[FrameType.REFUSE]
                + said[FrameType.BYE]
                + said[FrameType.HANDBACK]
            )
            assert words == 1, f"the {side.name} has ended ({result.error}), and its peer is not told"

    def reached(self) -> Words:
        """How it ended at both sides."""
        if not hasattr(self, "world"):
            return ()
        found = (self.world.source.result, self.world.destination.result)
        ended = [result for result in found if result is not None]
        words = [each.outcome.value if each.code is None else each.code.name.lower() for each in ended]
        return [*words, "handed over"] if self.handed_over else words


def _flow(world: World) -> None:
    """The connection works again."""
    for _ in range(20):
        world.flow(FLOW_STEPS)
        if world.source.result and world.destination.result:
            return
        world.pass_time(1.0)  # a heartbeat, or a deadline, is what is waited for
        world.quiet_s = 0.0


def _cut(world: World) -> None:
    """The connection ends for whoever has not noticed yet; hosts go on."""
    for name in (SOURCE, DESTINATION):
        world.lose(name, orderly=False)
    world.flow(FLOW_STEPS)


def _silence(world: World) -> None:
    """Nothing arrives any more, and nobody is told. Hosts go on, and deadlines pass."""
    world.linked = False
    world.disturbed = True
    world.quiet_s = 0.0
    for side in world.sides.values():
        side.pipe.clear()
    for _ in range(int(SILENCE_S)):
        if world.source.result and world.destination.result:
            return
        world.pass_time(1.0)
        world.flow(50)


_ENDINGS: Final[dict[str, Callable[[World], None]]] = {"flow": _flow, "cut": _cut, "silence": _silence}
