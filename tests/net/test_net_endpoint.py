"""Both endpoints over the in-memory transport, in virtual time.

Whatever fails, and whenever, the guest runs at exactly one side, or it is known that nobody can know.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import trio
from trio.abc import Clock

from sterna.core.deadlines import Deadlines
from sterna.core.events import (
    Admission,
    Admit,
    Event,
    Outcome,
    PhaseEntered,
    Result,
    RoundStarted,
)
from sterna.core.policy import PolicySettings
from sterna.core.records import HandBack, Record, Voided
from sterna.errors import GuestError, LocalProtocolError, SternaError, TransportError
from sterna.guest.api import GuestDescription
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.net.destination import Destination
from sterna.net.hosting import LocalHost
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.transport import Peer
from sterna.registry import ErrorCode, Mode, Owner, Phase
from sterna.testing import run_workload
from sterna.testing.drive import Advancing
from sterna.wire.records import NO_RUNNER, Hello, Runner, Verdict

MEMORY_BYTES = 1 << 20
EVENTS = 14  # of the source; the destination has two less


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    """Every test takes it: pytest-trio looks for a clock among a test's arguments only."""
    return autojump_clock


@dataclass
class Scene:
    """Two guests, two ends of a link, and what became of them.

    `at` says what to do at which event of which side, counted from 0.
    """

    rate_bytes_s: float = 20e6
    memory_bytes: int = MEMORY_BYTES
    link_rate_bytes_s: float | None = 100e6
    source_options: dict[str, object] = field(default_factory=dict)
    destination_options: dict[str, object] = field(default_factory=dict)
    source_host: LocalHost = field(default_factory=lambda: LocalHost("source"))
    destination_host: LocalHost = field(default_factory=lambda: LocalHost("destination"))
    at: Mapping[tuple[str, int], Callable[[Scene], None]] = field(default_factory=dict)
    events: dict[str, list[Event]] = field(default_factory=lambda: {"source": [], "destination": []})
    results: dict[str, Result] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        parameters = WorkloadParameters.for_memory(self.memory_bytes, self.memory_bytes // 4, cold_every=8)
        self.guest = SimulatedSourceGuest(parameters, rate_bytes_s=self.rate_bytes_s)
        self.room = SimulatedDestinationGuest(
            rate_bytes_s=self.rate_bytes_s, journal=self.guest.machine.journal
        )
        self.guest.machine.runner = Runner("source", b"s" * 16)
        self.ends: dict[str, MemoryTransport] = dict(
            zip(self.events, memory_transport_pair(rate_bytes_s=self.link_rate_bytes_s), strict=True)
        )
        self.source = Source(
            self.guest,
            self.ends["source"],
            epoch=1,
            runner=self.guest.machine.runner,
            host=self.source_host,
            options=self._options("source", self.source_options),
        )
        self.destination = Destination(
            lambda _: self.room,
            self.ends["destination"],
            host=self.destination_host,
            options=self._options("destination", self.destination_options),
        )
        self.scopes = {"source": trio.CancelScope(), "destination": trio.CancelScope()}

    def _options(self, side: str, changes: dict[str, object]) -> Options:
        def on_event(event: Event) -> None:
            number = len(self.events[side])
            self.events[side].append(event)
            act = self.at.get((side, number))
            if act is not None:
                act(self)

        return Options(on_event=on_event, clock=trio.current_time, **changes)  # type: ignore[arg-type]

    async def run(self) -> Scene:
        """Until both endpoints have ended; the guests live meanwhile, and a little longer."""
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live, self.guest)
            nursery.start_soon(live, self.room)
            await trio.sleep(0.1)
            async with trio.open_nursery() as both:
                both.start_soon(self._end, "source", self.source.run)
                both.start_soon(self._end, "destination", self.destination.run)
            self.seconds = trio.current_time() - started
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        self.check_one_runner()
        return self

    async def _end(self, side: str, run: Callable[[], object]) -> None:
        with self.scopes[side]:
            self.results[side] = await run()  # type: ignore[misc]

    @property
    def outcomes(self) -> tuple[Outcome | None, Outcome | None]:
        """How it ended at both sides; None where it was cancelled from outside."""
        one, other = self.results.get("source"), self.results.get("destination")
        return one and one.outcome, other and other.outcome

    def check_one_runner(self) -> None:
        """What must hold whatever has happened [ONE-9] [CON-62] [CON-63]."""
        here, there = self.guest.running, self.room.running
        assert not (here and there)
        outcome, other = self.outcomes
        if outcome is Outcome.ROLLED_BACK:
            assert here
            assert not self.room.has_run
            assert self.guest.machine.throttle == 0
            assert self.guest.calls[-3:] in ([], ["stop_tracking", "throttle", "resume"])
        if outcome in {Outcome.COMPLETED, Outcome.MOVED}:
            assert there
        if outcome is Outcome.UNDECIDED:
            assert not here
            assert self.guest.granted_epoch == 2
        if other in {Outcome.COMPLETED, Outcome.MOVED}:
            assert there
        if other is Outcome.ROLLED_BACK:
            assert not self.room.has_run
        if not here and not there:
            assert Outcome.UNDECIDED in self.outcomes or None in self.outcomes
        self._check_memory()

    def _check_memory(self) -> None:
        """Nothing is lost, and the journal is that of one runner at a time."""
        alive = self.room if self.room.has_run else self.guest
        found = alive.workload.audit()
        assert found.errors == alive.workload.errors == 0
        counts = [(entry.count, entry.epoch) for entry in self.guest.machine.journal]
        assert counts == sorted(set(counts))


async def live(guest: Advancing) -> None:
    """Let a guest live, in small steps while it is migrated and in large ones while a peer is waited for."""
    with trio.move_on_after(0.5):
        await run_workload(guest, 0.005)
    await run_workload(guest, 0.25)


def cancel(side: str) -> Callable[[Scene], None]:
    """Ask an endpoint to end, as far as it can still do so."""

    def act(scene: Scene) -> None:
        with suppress(LocalProtocolError):  # TOO_LATE: the outcome tells whether it rightly said so
            getattr(scene, side).cancel("enough")

    return act


# ---- it works ----


async def test_a_guest_moves(virtual_time: Clock) -> None:
    scene = await Scene().run()
    sent, taken = scene.results["source"], scene.results["destination"]
    assert scene.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert sent.digest == taken.digest
    assert len(sent.digest) == 16
    assert sent.epoch == taken.epoch == 2
    assert sent.code is taken.code is None
    assert sent.bytes_sent == taken.bytes_received
    assert sent.blackout_s is not None
    assert 0 < sent.blackout_s < sent.seconds
    assert scene.guest.released
    assert scene.room.machine is not None
    assert scene.room.machine.runner.host == "destination"


async def test_a_guest_that_is_not_dirty_moves_in_one_round_and_an_empty_one(virtual_time: Clock) -> None:
    """The blackout's round is sent even if no page is dirty [CON-45]."""
    scene = await Scene(rate_bytes_s=0).run()
    rounds = scene.results["source"].rounds
    assert [stats.pages for stats in rounds] == [MEMORY_BYTES // 4096, 0]


async def test_a_guest_that_outruns_its_bandwidth_is_slowed_down(virtual_time: Clock) -> None:
    scene = Scene(
        rate_bytes_s=40e6,
        memory_bytes=8 << 20,
        source_options={"bandwidth_bytes_s": 10e6, "policy": PolicySettings(allowed_downtime_s=0.1)},
    )
    await scene.run()
    assert scene.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert max(stats.throttle for stats in scene.results["source"].rounds) > 0


async def test_a_guest_that_may_not_be_slowed_down_stays(virtual_time: Clock) -> None:
    """The rounds are bounded [CON-36]."""
    policy = PolicySettings(allowed_downtime_s=0.05, max_throttle=0, max_rounds=5)
    scene = Scene(
        rate_bytes_s=100e6,
        memory_bytes=8 << 20,
        source_options={"bandwidth_bytes_s": 10e6, "policy": policy},
    )
    await scene.run()
    assert scene.outcomes[0] is Outcome.ROLLED_BACK
    assert scene.results["source"].code is ErrorCode.NOT_CONVERGING


async def test_nothing_of_a_cap_is_exceeded(virtual_time: Clock) -> None:
    scene = Scene(rate_bytes_s=0, source_options={"bandwidth_bytes_s": 1e6}, link_rate_bytes_s=None)
    await scene.run()
    sent = scene.results["source"]
    assert sent.bytes_sent / sent.seconds <= 1e6 * 1.05


# ---- cancelling ----


@pytest.mark.parametrize("number", range(EVENTS))
@pytest.mark.parametrize("side", ["source", "destination"])
async def test_cancelled_at_any_event(virtual_time: Clock, side: str, number: int) -> None:
    """[CON-71] [CON-72] [ONE-9] [ONE-30]: before HANDOVER the guest stays, afterwards it moves."""
    scene = await Scene(at={(side, number): cancel(side)}).run()
    assert scene.outcomes[0] in {Outcome.ROLLED_BACK, Outcome.COMPLETED, Outcome.MOVED}
    if scene.outcomes[0] is Outcome.ROLLED_BACK:
        assert {result.code for result in scene.results.values()} == {ErrorCode.CANCELLED}


@pytest.mark.parametrize("number", range(EVENTS))
async def test_the_source_is_cancelled_from_outside_at_any_event(virtual_time: Clock, number: int) -> None:
    """The guest is set running again, however the task that migrates it ends [CON-62]."""
    scene = Scene(at={("source", number): lambda scene: scene.scopes["source"].cancel()})
    await scene.run()
    if scene.guest.granted_epoch is None:
        assert scene.guest.running
        assert scene.guest.calls[-1] == "resume"


@pytest.mark.parametrize("number", range(EVENTS))
async def test_the_destination_is_cancelled_from_outside_at_any_event(
    virtual_time: Clock, number: int
) -> None:
    """What was reserved is freed [CON-63]; a permission that was received is used [ONE-30]."""
    scene = Scene(at={("destination", number): lambda scene: scene.scopes["destination"].cancel()})
    await scene.run()
    if scene.guest.granted_epoch is None:
        assert scene.guest.running
        assert scene.room.discarded or not scene.room.calls
    if PhaseEntered(Phase.COMMIT) in scene.events["destination"][: number + 1]:
        assert scene.room.running


async def test_both_are_cancelled_from_outside(virtual_time: Clock) -> None:
    scene = Scene()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def stop() -> None:
            await trio.sleep(0.104)
            for scope in scene.scopes.values():
                scope.cancel()

        await scene.run()
    assert scene.results == {}
    assert scene.guest.running
    assert not scene.room.has_run


# ---- guests that fail ----


@pytest.mark.parametrize("error", [GuestError("no"), RuntimeError("an embedder's own")])
@pytest.mark.parametrize("method", ["start_tracking", "collect_dirty", "pause", "save_state", "mark_granted"])
async def test_a_source_guest_that_fails(virtual_time: Clock, method: str, error: Exception) -> None:
    scene = Scene()
    scene.guest.fail_on[method] = error
    await scene.run()
    assert scene.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert scene.results["source"].code is ErrorCode.GUEST_FAILED
    assert not scene.results["source"].by_peer
    assert scene.results["destination"].by_peer


async def test_a_guest_that_cannot_be_set_running_again(virtual_time: Clock) -> None:
    scene = Scene(at={("source", 8): cancel("source")})
    scene.guest.fail_on["resume"] = GuestError("stuck")
    scene.guest.fail_on["stop_tracking"] = GuestError("stuck, too")
    await scene.run()
    assert scene.outcomes[0] is Outcome.GUEST_FAILED


async def test_an_image_that_cannot_be_freed_does_not_undo_a_migration(virtual_time: Clock) -> None:
    scene = Scene()
    scene.guest.fail_on["release"] = GuestError("no")
    await scene.run()
    assert scene.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)


@pytest.mark.parametrize("error", [GuestError("no", ErrorCode.FULL), RuntimeError("an embedder's own")])
@pytest.mark.parametrize("method", ["reserve", "prepare", "load_state"])
async def test_a_destination_guest_that_fails(virtual_time: Clock, method: str, error: Exception) -> None:
    scene = Scene()
    scene.room.fail_on[method] = error
    await scene.run()
    assert scene.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    # Of NOT_READY the source has enough, and says so [CON-43] [CON-65].
    assert scene.results["source"].by_peer == (method != "prepare")
    assert scene.results["destination"].by_peer == (method == "prepare")


async def test_a_refusal_has_the_guests_code(virtual_time: Clock) -> None:
    scene = Scene()
    scene.room.fail_on["reserve"] = GuestError("no", ErrorCode.FULL)
    await scene.run()
    result = scene.results["source"]
    assert (result.code, result.by_peer) == (ErrorCode.FULL, True)
    assert result.retry_after_ms > 0


async def test_a_destination_that_cannot_run_what_it_was_given(virtual_time: Clock) -> None:
    """Permission was given: whether the guest ran is for somebody else to find out [ONE-49]."""
    scene = Scene()
    scene.room.fail_on["run"] = GuestError("no")
    await scene.run()
    assert scene.outcomes == (Outcome.UNDECIDED, Outcome.UNDECIDED)
    assert not scene.guest.running


async def test_a_destination_that_cannot_free_what_it_reserved(virtual_time: Clock) -> None:
    scene = Scene(at={("source", 6): cancel("source")})
    scene.room.fail_on["discard"] = GuestError("no")
    await scene.run()
    assert scene.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)


# ---- hosts that refuse ----


class Refusing(LocalHost):
    """A host that raises `error` in the method `where`, or loses a claim."""

    def __init__(self, where: str, error: SternaError | None = None) -> None:
        super().__init__("refusing")
        self.where = where
        self.error = error or GuestError("no", ErrorCode.RECORD_FAILED)
        self.records: list[Record] = []

    def _called(self, where: str) -> None:
        if where == self.where:
            raise self.error

    async def admit(self, hello: Hello, peer: Peer) -> Admission | Verdict:
        self._called("admit")
        return await super().admit(hello, peer)

    async def may_send(self, description: GuestDescription, peer: Peer) -> None:
        self._called("may_send")

    async def persist(self, record: Record) -> None:
        self._called(record.kind)
        self.records.append(record)

    async def claim(self, epoch: int, runner: Runner) -> Runner:
        self._called("claim")
        return Runner("somebody else", bytes(16)) if self.where == "lost" else runner


@pytest.mark.parametrize("code", [ErrorCode.BUSY, ErrorCode.NOT_AUTHORISED, ErrorCode.STALE_EPOCH])
async def test_a_host_that_does_not_take_the_guest(virtual_time: Clock, code: ErrorCode) -> None:
    scene = Scene(destination_host=Refusing("admit", GuestError("no", code)))
    await scene.run()
    assert scene.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert scene.results["source"].code is code
    assert scene.results["source"].by_peer


async def test_a_grant_that_cannot_be_recorded_is_taken_back(virtual_time: Clock) -> None:
    """No byte of HANDOVER has left: the grant is void by its record, then the mark goes [ONE-19]."""
    host = Refusing("granted")
    scene = await Scene(source_host=host).run()
    assert scene.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert scene.results["source"].code is ErrorCode.RECORD_FAILED
    assert host.records[-1] == Voided(scene.results["source"].session, 2)
    assert scene.guest.granted_epoch is None
    assert "revoke_grant" in scene.guest.calls


@pytest.mark.parametrize("where", ["claiming", "claim", "lost"])
async def test_a_commit_that_fails_is_undecided(virtual_time: Clock, where: str) -> None:
    """[ONE-25] [ONE-29]: without the record, and without the claim, the guest does not run."""
    scene = await Scene(destination_host=Refusing(where)).run()
    there = Outcome.ROLLED_BACK if where == "lost" else Outcome.UNDECIDED
    assert scene.outcomes == (Outcome.UNDECIDED, there)
    assert not scene.room.has_run


@pytest.mark.parametrize("where", ["locks", "start"])
async def test_a_guest_that_cannot_be_started_is_handed_back(
    virtual_time: Clock, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """[ONE-26] [ONE-28] [ONE-35] It does not run there, and the source learns that for certain."""
    scene = Scene(destination_host=(host := Refusing(where)))
    if where == "locks":

        async def refuse() -> None:
            raise GuestError("its holder has ended")

        monkeypatch.setattr(scene.room, "take_storage", refuse)
    await scene.run()
    assert scene.outcomes == (Outcome.UNDECIDED, Outcome.ROLLED_BACK)
    assert host.records[-1] == HandBack(2)
    verdict = scene.results["source"].verdict
    assert verdict is not None
    assert (verdict.owner, verdict.handed_back, verdict.epoch) == (Owner.SOURCE, True, 2)
    assert not scene.room.has_run


@pytest.mark.parametrize("where", ["complete", "released"])
async def test_a_record_of_the_end_that_fails(virtual_time: Clock, where: str) -> None:
    """[ONE-39] The guest runs there, whatever is noted of it."""
    scene = await Scene(destination_host=Refusing(where)).run()
    end = Outcome.MOVED if where == "complete" else Outcome.COMPLETED
    assert scene.outcomes == (end, end)
    assert scene.room.has_run


async def test_the_end_is_on_record(virtual_time: Clock) -> None:
    """[ONE-39] What the machine asks for with its last words is carried out."""
    here, there = Refusing("nothing"), Refusing("nothing")
    await Scene(source_host=here, destination_host=there).run()
    assert [each.kind for each in here.records] == ["session", "granted", "decided"]
    noted = ["session", "session", "claiming", "start", "complete", "released"]  # early, and when it must be
    assert [each.kind for each in there.records] == noted


async def test_a_source_that_may_not_send_begins_nothing(virtual_time: Clock) -> None:
    """[SEC-2] No HELLO goes out, nothing is asked of the guest; the peer hears that nothing will come."""
    scene = Scene(source_host=Refusing("may_send", TransportError(ErrorCode.NOT_AUTHORISED)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.destination.run)
        result = await scene.source.run()
    assert (result.outcome, result.code) == (Outcome.ROLLED_BACK, ErrorCode.NOT_AUTHORISED)
    assert not result.by_peer
    assert scene.guest.running
    assert scene.guest.calls == []
    assert scene.destination.result is not None
    assert scene.destination.result.by_peer
    assert scene.destination._hello is None


async def test_ids_that_nobody_can_guess(virtual_time: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """[WEL-3] [ONE-4] Session, token and runner are from the generator for secrets, new for each session."""
    made: list[bytes] = []
    generate = secrets.token_bytes

    def remember(size: int) -> bytes:
        made.append(generate(size))
        return made[-1]

    monkeypatch.setattr(secrets, "token_bytes", remember)
    hello = Hello(Mode.OPEN, (), (), {}, bytes(16), 0, NO_RUNNER)
    seen = []
    for _ in range(3):
        near, _ = memory_transport_pair()
        destination = Destination(lambda _: SimulatedDestinationGuest(rate_bytes_s=0), near)
        admission = await destination._perform(Admit(hello))
        assert isinstance(admission, Admission)
        seen += [admission.session, admission.token, admission.runner.id]
    assert [len(each) for each in seen] == [16, 32, 16] * 3
    assert len(set(seen)) == 9
    assert set(seen) <= set(made)


# ---- links that fail ----

QUICK = Deadlines(
    handshake_s=4.0, describe_s=4.0, round_s=4.0, prepare_s=4.0, blackout_s=4.0, commit_s=4.0, after_s=4.0
)


@pytest.mark.parametrize("number", range(EVENTS))
@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_side_that_stops_reading_at_any_event(virtual_time: Clock, side: str, number: int) -> None:
    """[CON-74] [CON-77]: it is noticed in bounded time."""
    scene = Scene(
        source_options={"deadlines": QUICK},
        destination_options={"deadlines": QUICK},
        at={(side, number): lambda scene: scene.ends[side].stall()},
    )
    await scene.run()
    assert scene.seconds < 60


@pytest.mark.parametrize("number", range(EVENTS))
@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_host_that_vanishes_at_any_event(virtual_time: Clock, side: str, number: int) -> None:
    """No error says so: silence does [CON-75]."""
    scene = Scene(at={(side, number): lambda scene: scene.ends[side].vanish()})
    await scene.run()
    assert scene.seconds < 60
    for result in scene.results.values():
        if result.outcome is not Outcome.COMPLETED:
            assert result.code in {
                ErrorCode.PEER_SILENT,
                ErrorCode.PEER_STALLED,
                ErrorCode.PHASE_DEADLINE,
                ErrorCode.CONNECTION_LOST,
            }


NO_GREASE = {"grease": False}  # every run sends the same bytes


async def cut_at(side: str, offset: int | None) -> Scene:
    scene = Scene(memory_bytes=256 << 10, source_options=NO_GREASE, destination_options=NO_GREASE)
    if offset is not None:
        scene.ends[side].cut_after(offset)
    return await scene.run()


@pytest.mark.slow
@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_link_that_breaks_after_any_byte(virtual_time: Clock, side: str) -> None:
    """[CON-69] [ONE-20] [CON-64]: before HANDOVER the guest stays, after it nothing is rolled back."""
    length = (await cut_at(side, None)).results[side].bytes_sent
    offsets = {
        *range(0, min(length, 500), 13),
        *range(500, length, 29_989),
        *range(length - 200, length + 1, 5),
    }
    order = [Outcome.ROLLED_BACK, Outcome.UNDECIDED, Outcome.MOVED, Outcome.COMPLETED]
    reached = []
    for offset in sorted(offsets):
        scene = await cut_at(side, offset)
        here, there = scene.outcomes
        reached.append(order.index(here))
        if there in {Outcome.COMPLETED, Outcome.MOVED}:
            assert here is not Outcome.ROLLED_BACK
    assert reached == sorted(reached)
    assert {order.index(Outcome.ROLLED_BACK), order.index(Outcome.UNDECIDED)} <= set(reached)


async def test_a_link_that_ends_without_close_notify(virtual_time: Clock) -> None:
    """An end that nobody announced is no end [CON-69] [TLS-21]."""
    scene = Scene(at={("source", 6): lambda scene: scene.ends["source"].end_ragged()})
    await scene.run()
    assert scene.results["destination"].code in {ErrorCode.NOT_CLOSED, ErrorCode.TRUNCATED}


async def test_the_blackout_is_not_announced_before_it(virtual_time: Clock) -> None:
    """The guest is paused after READY, never before [CON-39]."""
    paused: list[bool] = []
    at = {("source", number): lambda scene: paused.append(scene.guest.running) for number in range(EVENTS)}
    scene = await Scene(at=at).run()
    last = next(
        index
        for index, event in enumerate(scene.events["source"])
        if isinstance(event, RoundStarted) and event.last
    )
    blackout = scene.events["source"].index(PhaseEntered(Phase.BLACKOUT))
    assert all(paused[:blackout])
    assert not any(paused[last:])
