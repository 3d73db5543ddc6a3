"""Who may bring a guest here or get one, and which of two sessions of one guest is the one."""

from __future__ import annotations

import pytest
import trio
from trio.abc import Clock

from sterna.core.deadlines import Deadlines
from sterna.core.events import Outcome, Result, RoundStarted
from sterna.core.records import Claiming, Granted, Start
from sterna.errors import LocalProtocolError, SternaError, TransportError
from sterna.guest.api import GuestDescription
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.host.agent import REPLACE_WITHIN_S, HostSession, PeerListHost, refusal, rejection
from sterna.host.peers import PeerList
from sterna.net.endpoint import Destination, Options, Source
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.transport import Peer
from sterna.registry import ERRORS, ErrorCode, Mode
from sterna.testing import run_workload
from sterna.wire import FrameReader, FrameReceived, PrefaceReceived
from sterna.wire.records import Abort, Hello, Refuse, Region, Runner

ID, OTHER_ID = bytes(range(16)), b"\xff" * 16
PRINT, OTHER_PRINT = b"\x5f" * 32, b"\x60" * 32
WEB = GuestDescription(ID, "web-1", (Region(0, 0, 4096),))
DB = GuestDescription(OTHER_ID, "db-1", (Region(0, 0, 4096),))

PEERS = PeerList.parse(
    f"""
[[peer]]
identity = "sender"
may_send = ["web-*"]
fingerprint = "{PRINT.hex()}"

[[peer]]
identity = "by-id"
may_send = ["id:{ID.hex()}"]

[[peer]]
identity = "receiver"
may_receive = ["web-*"]
""",
    "peers.toml",
)
SENDER = Peer("192.0.2.1:4646", "sender", PRINT)
BY_ID = Peer("192.0.2.2:4646", "by-id", OTHER_PRINT)
RECEIVER = Peer("192.0.2.3:4646", "receiver", OTHER_PRINT)
STRANGER = Peer("192.0.2.4:4646", "stranger", OTHER_PRINT)
NOBODY = Peer("192.0.2.5:4646")


def hello(guest: bytes = ID, epoch: int = 1) -> Hello:
    return Hello(Mode.OPEN, (), (), {}, guest, epoch, Runner("there", bytes(16)))


def claiming(epoch: int) -> Claiming:
    return Claiming(b"s" * 16, epoch, Runner("here", bytes(16)), b"s" * 16)


@pytest.fixture
def host() -> PeerListHost:
    return PeerListHost("here", PEERS)


async def admitted(
    host: PeerListHost, peer: Peer = SENDER, *, epoch: int = 1, guest: bytes = ID
) -> HostSession:
    session = host.session()
    await session.admit(hello(guest, epoch), peer)
    return session


async def refused(host: PeerListHost, peer: Peer, *, epoch: int = 1, guest: bytes = ID) -> SternaError:
    """Why a session is not opened; it must not stand in anybody's way afterwards."""
    session = host.session()
    with session, pytest.raises(SternaError) as caught:
        await session.admit(hello(guest, epoch), peer)
    assert not session.admitted
    return caught.value


# ---- who may come ----


async def test_a_peer_may_send_what_its_list_says(host: PeerListHost) -> None:
    session = await admitted(host)
    session.authorise(WEB)
    with pytest.raises(TransportError, match=r"may_send of this peer in peers\.toml") as caught:
        session.authorise(DB)
    assert caught.value.code is ErrorCode.NOT_AUTHORISED


async def test_who_may_send_nothing_opens_no_session(host: PeerListHost) -> None:
    """[SEC-1] A session would lock the guest's own host out, so it is refused before there is a name."""
    for peer in (RECEIVER, STRANGER, NOBODY):
        assert (await refused(host, peer)).code is ErrorCode.NOT_AUTHORISED
    await admitted(host)


@pytest.mark.parametrize("moved", [False, True])
async def test_who_may_send_nothing_learns_nothing_of_a_guest(host: PeerListHost, moved: bool) -> None:
    """[SEC-3] The same words for a guest that is known here as for one that is not."""
    first = await admitted(host)
    if moved:
        await first.persist(claiming(2))
    for peer in (RECEIVER, STRANGER, NOBODY):
        known, unknown = await refused(host, peer), await refused(host, peer, guest=OTHER_ID)
        assert type(known) is type(unknown)
        assert known.code is unknown.code is ErrorCode.NOT_AUTHORISED
        assert str(known).replace(ID.hex(), "") == str(unknown).replace(OTHER_ID.hex(), "")


async def test_who_may_send_one_guest_by_id_opens_no_session_of_another(host: PeerListHost) -> None:
    """[SEC-1]"""
    await admitted(host, BY_ID)
    error = await refused(host, BY_ID, guest=OTHER_ID)
    assert error.code is ErrorCode.NOT_AUTHORISED
    assert OTHER_ID.hex() in str(error)


async def test_a_certificate_that_is_not_listed_sends_nothing(host: PeerListHost) -> None:
    """TLS has looked at it already; a guest's name must not be let in by a second opinion."""
    session = await admitted(host, Peer("192.0.2.1:4646", "sender", OTHER_PRINT))
    with pytest.raises(TransportError) as caught:
        session.authorise(WEB)
    assert caught.value.code is ErrorCode.PEER_NOT_LISTED


async def test_a_guest_leaves_only_for_who_may_receive_it(host: PeerListHost) -> None:
    with host.session() as session:
        await session.may_send(WEB, RECEIVER)
        for description, peer in ((DB, RECEIVER), (WEB, SENDER)):
            with pytest.raises(TransportError) as caught:
                await session.may_send(description, peer)
            assert caught.value.code is ErrorCode.NOT_AUTHORISED
        with pytest.raises(TransportError, match="has shown no certificate"):
            await session.may_send(WEB, NOBODY)


async def test_without_a_list_everybody_may_do_everything() -> None:
    """--insecure says so in as many words."""
    host = PeerListHost("here", None)
    session = await admitted(host, NOBODY)
    session.authorise(DB)
    await session.may_send(DB, NOBODY)


# ---- one session of a guest ----


async def test_every_admission_has_a_fresh_runner(host: PeerListHost) -> None:
    """[ONE-4] [ONE-52] A runner is made for one candidate claim: two of one id could not be told apart."""
    runners = set()
    for _ in range(8):
        with host.session() as session:
            runner = await session.admit(hello(), SENDER)
            assert runner.host == "here"
            assert len(runner.id) == 16
            runners.add(runner.id)
    assert len(runners) == 8


async def test_another_identity_is_busy(host: PeerListHost) -> None:
    """[ONE-12]"""
    first = await admitted(host)
    asked: list[str] = []
    first.cancel = asked.append
    error = await refused(host, BY_ID)
    assert error.code is ErrorCode.BUSY
    assert isinstance(error, LocalProtocolError)
    assert error.clause == "ONE-12"
    assert "sender at 192.0.2.1:4646" in str(error)
    assert not asked


async def test_other_guests_and_other_epochs_are_other_sessions(host: PeerListHost) -> None:
    await admitted(host)
    await admitted(host, epoch=2)
    await admitted(host, guest=OTHER_ID)


async def test_a_session_that_is_over_is_in_nobody_s_way(host: PeerListHost) -> None:
    with host.session() as session:
        await session.admit(hello(), SENDER)
        assert session.admitted
    await admitted(host, BY_ID)


async def test_the_same_identity_replaces_a_session_without_handover(host: PeerListHost) -> None:
    """[ONE-13] The new one waits until the old one has given back what it had reserved."""
    first = await admitted(host)
    events: list[str] = []

    def end(why: str) -> None:
        events.append(why)

    first.cancel = end
    async with trio.open_nursery() as nursery:

        async def open_anew() -> None:
            second = await admitted(host)
            events.append("admitted")
            assert second.identity == "sender"

        nursery.start_soon(open_anew)
        await trio.testing.wait_all_tasks_blocked()
        assert events == ["a newer session has taken the place of this one"]
        with first:
            events.append("given back")
    assert events[1:] == ["given back", "admitted"]


async def test_a_session_that_does_not_end_is_not_replaced(
    host: PeerListHost, autojump_clock: trio.testing.MockClock
) -> None:
    first = await admitted(host)
    first.cancel = lambda _: None
    started = trio.current_time()
    assert (await refused(host, SENDER)).code is ErrorCode.BUSY
    assert trio.current_time() - started == pytest.approx(REPLACE_WITHIN_S)


async def test_of_two_that_wait_for_one_to_end_one_gets_its_place(host: PeerListHost) -> None:
    first = await admitted(host)
    first.cancel = lambda _: None
    codes: list[ErrorCode | None] = []

    async def open_anew() -> None:
        try:
            await admitted(host)
        except LocalProtocolError as error:
            codes.append(error.code)
        else:
            codes.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_anew)
        nursery.start_soon(open_anew)
        await trio.testing.wait_all_tasks_blocked()
        with first:
            pass
    assert sorted(codes, key=str) == [ErrorCode.BUSY, None]


async def test_a_session_with_handover_is_not_replaced(host: PeerListHost) -> None:
    """[ONE-14] Who has no records to answer from refuses it."""
    first = await admitted(host)
    asked: list[str] = []
    first.cancel = asked.append
    await first.persist(claiming(2))
    assert (await refused(host, SENDER)).code is ErrorCode.BUSY
    assert not asked
    with first:
        pass
    error = await refused(host, SENDER)
    assert error.code is ErrorCode.BUSY
    assert isinstance(error, LocalProtocolError)
    assert error.clause == "ONE-14"


async def test_a_session_that_cannot_be_cancelled_any_more_is_not_replaced(host: PeerListHost) -> None:
    """HANDOVER may be here while its record is still being written: the machine knows first."""
    first = await admitted(host)

    def too_late(_: str) -> None:
        raise LocalProtocolError(ErrorCode.TOO_LATE)

    first.cancel = too_late
    assert not first.replace()
    assert (await refused(host, SENDER)).code is ErrorCode.BUSY


async def test_handover_while_a_newer_session_waits_ends_its_hope(host: PeerListHost) -> None:
    first = await admitted(host)
    first.cancel = lambda _: None
    async with trio.open_nursery() as nursery:

        async def open_anew() -> None:
            assert (await refused(host, SENDER)).code is ErrorCode.BUSY

        nursery.start_soon(open_anew)
        await trio.testing.wait_all_tasks_blocked()
        with first:
            await first.persist(claiming(2))


async def test_an_epoch_that_is_over_is_stale(host: PeerListHost) -> None:
    """[ONE-11] [HEL-7] The guest came at epoch 3: a source with an older one has been overtaken."""
    with await admitted(host, epoch=3) as first:
        await first.persist(claiming(4))
    error = await refused(host, SENDER, epoch=2)
    assert error.code is ErrorCode.STALE_EPOCH
    assert (await refused(host, SENDER, epoch=3)).code is ErrorCode.BUSY
    with await admitted(host, epoch=5) as later:  # it went on, and comes back
        await later.persist(claiming(6))
    assert (await refused(host, SENDER, epoch=3)).code is ErrorCode.STALE_EPOCH
    await admitted(host, guest=OTHER_ID, epoch=1)


async def test_records_are_remembered(host: PeerListHost) -> None:
    """[ONE-57] In their order, none lost."""
    runner = Runner("here", b"r" * 16)
    records = [Granted(ID, 2), Start(2)]
    with await admitted(host) as session:
        for record in records:
            await session.persist(record)
        assert session.records == records
        assert await session.claim(2, runner) == runner
    # A grant of the source's is no HANDOVER to this host.
    await admitted(host)


# ---- with endpoints ----


class Place:
    """A destination that takes what comes, over as many connections as are made."""

    def __init__(self, host: PeerListHost) -> None:
        self.host = host
        self.rooms: list[SimulatedDestinationGuest] = []
        self.results: list[Result] = []
        self.both_ended = trio.Event()

    async def serve(self, transport: MemoryTransport) -> None:
        room = SimulatedDestinationGuest(rate_bytes_s=1e6)
        self.rooms.append(room)
        with self.host.session() as session:
            options = Options(clock=trio.current_time)
            destination = Destination(lambda _: room, transport, host=session, options=options)
            session.cancel = destination.cancel
            self.results.append(await destination.run())
        if len(self.results) == 2:
            self.both_ended.set()


def leaving(transport: MemoryTransport, guest: SimulatedSourceGuest, **options: object) -> Source:
    host = PeerListHost("source", None).session()
    chosen = Options(clock=trio.current_time, **options)  # type: ignore[arg-type]
    return Source(guest, transport, epoch=1, runner=guest.machine.runner, host=host, options=chosen)


async def test_a_restarted_source_takes_its_half_open_session_over(autojump_clock: Clock) -> None:
    """[ONE-13] Its first connection hangs without an end, as after a power cut, for no deadline long."""
    place = Place(PeerListHost("here", None))
    parameters = WorkloadParameters.for_memory(1 << 20, 1 << 18)
    guest = SimulatedSourceGuest(parameters, rate_bytes_s=1e6)
    near, far = memory_transport_pair(rate_bytes_s=10e6, identities=("a", "b"))
    hangs = trio.Event()

    def on_event(event: object) -> None:
        if isinstance(event, RoundStarted):
            near.vanish()
            hangs.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_workload, guest)
        nursery.start_soon(place.serve, far)
        with trio.CancelScope() as lost:
            async with trio.open_nursery() as first:
                first.start_soon(leaving(near, guest, on_event=on_event).run)
                await hangs.wait()
                lost.cancel()
        await guest.stop_tracking()
        started = trio.current_time()
        near, far = memory_transport_pair(rate_bytes_s=10e6, identities=("a", "b"))
        nursery.start_soon(place.serve, far)
        result = await leaving(near, guest).run()
        took_s = trio.current_time() - started
        await place.both_ended.wait()
        nursery.cancel_scope.cancel()
    assert result.outcome is Outcome.COMPLETED
    assert took_s < Deadlines().silence_s / 2
    assert sorted(one.outcome for one in place.results) == [Outcome.COMPLETED, Outcome.ROLLED_BACK]
    assert [room.has_run for room in place.rooms] == [False, True]


async def test_a_second_host_with_the_same_guest_is_refused(autojump_clock: Clock) -> None:
    """[ONE-12] And the first one's migration does not notice."""
    place = Place(PeerListHost("here", None))
    parameters = WorkloadParameters.for_memory(1 << 20, 1 << 18)
    guest, clone = (SimulatedSourceGuest(parameters, rate_bytes_s=1e6) for _ in range(2))
    near, far = memory_transport_pair(rate_bytes_s=1e6, identities=("a", "b"))
    others_near, others_far = memory_transport_pair(identities=("c", "b"))
    results: list[Result] = []
    under_way = trio.Event()

    async def first() -> None:
        results.append(await leaving(near, guest, on_event=lambda _: under_way.set()).run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.serve, far)
        nursery.start_soon(place.serve, others_far)
        async with trio.open_nursery() as migration:
            migration.start_soon(first)
            await under_way.wait()
            second = await leaving(others_near, clone).run()
        nursery.cancel_scope.cancel()
    assert (second.outcome, second.code) == (Outcome.ROLLED_BACK, ErrorCode.BUSY)
    assert second.by_peer
    assert results[0].outcome is Outcome.COMPLETED
    assert clone.running


# ---- what is said to peers that are not let in ----


@pytest.mark.parametrize("code", [ErrorCode.PEER_NOT_LISTED, ErrorCode.FULL])
def test_a_farewell_is_a_preface_and_one_frame_and_tells_no_details(code: ErrorCode) -> None:
    error = TransportError(code, "secret detail of /etc/sterna/peers.toml")
    for said, record_type in ((refusal(error), Refuse), (rejection(error), Abort)):
        reader = FrameReader()
        reader.receive_data(said)
        assert isinstance(reader.next_event(), PrefaceReceived)
        event = reader.next_event()
        assert isinstance(event, FrameReceived)
        assert type(event.record) is record_type
        assert isinstance(event.record, Refuse | Abort)
        assert (event.record.code, event.record.text) == (code, ERRORS[code].text)
        assert reader.next_event() is None
        assert b"secret" not in said
