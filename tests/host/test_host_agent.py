"""Who may come, and how often: the rules of a host around its sessions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.abc import Clock

from sterna.core.events import RecordKind
from sterna.core.negotiate import offer
from sterna.errors import LocalProtocolError, SternaError, TransportError
from sterna.guest.api import GuestDescription
from sterna.host.agent import REPLACE_WITHIN_S, HostSession, PeerListHost, refusal, rejection
from sterna.host.peers import PeerList
from sterna.net.transport import Peer
from sterna.registry import ErrorCode, Mode
from sterna.wire import FrameReader, FrameReceived
from sterna.wire.records import NO_RUNNER, Abort, Hello, Refuse, Region, Runner

GUEST, OTHER = b"g" * 16, b"o" * 16
PRINT = bytes(32)
LIST = PeerList.parse(
    f"""
    [[peer]]
    identity = "names"
    may_send = ["web-*"]
    may_receive = ["db-*"]
    [[peer]]
    identity = "ids"
    may_send = ["id:{GUEST.hex()}"]
    [[peer]]
    identity = "nothing"
    """,
    "the list",
)
NAMES, IDS = Peer("10.0.0.1:1", "names", PRINT), Peer("10.0.0.2:2", "ids", PRINT)
PLAIN = Peer("10.0.0.3:3")


def hello(guest: bytes = GUEST, epoch: int = 1) -> Hello:
    return Hello(Mode.OPEN, (1 << 16 | 1,), offer(), {}, guest, epoch, NO_RUNNER)


def described(name: str, guest: bytes = GUEST) -> GuestDescription:
    return GuestDescription(guest, name, (Region(0, 0, 4096),))


async def code_of(act: Callable[[], object]) -> ErrorCode:
    with pytest.raises(SternaError) as caught:
        await act()  # type: ignore[misc]
    return caught.value.code


async def test_every_claim_has_a_runner_of_its_own() -> None:
    """[ONE-4]: a name, and 128 bits that were in no other claim."""
    host = PeerListHost("here", None)
    runners = set()
    for epoch in range(1, 5):
        with host.session() as session:
            runners.add(await session.admit(hello(epoch=epoch), PLAIN))
    assert {runner.host for runner in runners} == {"here"}
    assert len({runner.id for runner in runners}) == 4
    assert all(len(runner.id) == 16 for runner in runners)


# ---- which guests ----


async def test_a_peer_that_may_send_nothing_is_turned_away_at_once() -> None:
    host = PeerListHost("here", LIST)
    for peer in (Peer("x", "nothing", PRINT), Peer("x", "unknown", PRINT), PLAIN):
        with host.session() as session:
            assert await code_of(lambda peer=peer, one=session: one.admit(hello(), peer)) is (
                ErrorCode.NOT_AUTHORISED
            )
            assert not session.admitted


async def test_a_peer_that_may_send_certain_ids_is_turned_away_with_others() -> None:
    host = PeerListHost("here", LIST)
    with host.session() as session:
        assert await code_of(lambda: session.admit(hello(OTHER), IDS)) is ErrorCode.NOT_AUTHORISED
    with host.session() as session:
        await session.admit(hello(GUEST), IDS)
        assert session.admitted
        session.authorise(described("anything"))


async def test_a_name_is_judged_when_it_is_known() -> None:
    """HELLO has only the id; GUEST tells the name, before anything is reserved."""
    host = PeerListHost("here", LIST)
    with host.session() as session:
        await session.admit(hello(), NAMES)
        session.authorise(described("web-1"))
        with pytest.raises(TransportError) as caught:
            session.authorise(described("db-1"))
        assert caught.value.code is ErrorCode.NOT_AUTHORISED


async def test_a_guest_leaves_for_those_who_may_receive_it() -> None:
    with PeerListHost("here", LIST).session() as session:
        await session.may_send(described("db-1"), NAMES)
        assert await code_of(lambda: session.may_send(described("web-1"), NAMES)) is ErrorCode.NOT_AUTHORISED
        assert await code_of(lambda: session.may_send(described("db-1"), PLAIN)) is ErrorCode.NOT_AUTHORISED


async def test_without_a_list_everybody_may_do_everything() -> None:
    host = PeerListHost("here", None)
    with host.session() as session:
        await session.admit(hello(), PLAIN)
        session.authorise(described("anything"))
        await session.may_send(described("anything"), PLAIN)


# ---- one session a guest ----


async def test_another_identity_is_busy() -> None:
    """[ONE-12]"""
    host = PeerListHost("here", LIST)
    with host.session() as first, host.session() as second:
        await first.admit(hello(), NAMES)
        assert await code_of(lambda: second.admit(hello(), IDS)) is ErrorCode.BUSY
        assert not second.admitted


async def test_other_guests_and_epochs_are_not_in_the_way() -> None:
    host = PeerListHost("here", LIST)
    with host.session() as first, host.session() as second, host.session() as third:
        await first.admit(hello(), NAMES)
        await second.admit(hello(OTHER), NAMES)
        await third.admit(hello(epoch=2), IDS)


async def test_a_session_that_is_over_is_in_nobodys_way() -> None:
    host = PeerListHost("here", LIST)
    with host.session() as first:
        await first.admit(hello(), NAMES)
    with host.session() as second:
        await second.admit(hello(), IDS)


async def test_the_same_identity_replaces_its_earlier_session(autojump_clock: Clock) -> None:
    """[ONE-13]: it waits until that one has given back what it had reserved."""
    host = PeerListHost("here", LIST)
    cancelled: list[float] = []
    admitted: list[float] = []

    async def earlier(task_status: trio.TaskStatus[None]) -> None:
        end = trio.Event()
        with host.session() as session:
            await session.admit(hello(), NAMES)

            def cancel(_: str) -> None:
                cancelled.append(trio.current_time())
                end.set()

            session.cancel = cancel
            task_status.started()
            await end.wait()
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        await nursery.start(earlier)
        started = trio.current_time()
        with host.session() as later:
            await later.admit(hello(), NAMES)
            admitted.append(trio.current_time())
            with host.session() as another:
                assert await code_of(lambda: another.admit(hello(), IDS)) is ErrorCode.BUSY
    assert cancelled == [started]
    assert admitted == [started + 1]


async def test_a_session_that_does_not_end_makes_its_successor_busy(autojump_clock: Clock) -> None:
    host = PeerListHost("here", LIST)
    with host.session() as first, host.session() as second:
        await first.admit(hello(), NAMES)
        before = trio.current_time()
        assert await code_of(lambda: second.admit(hello(), NAMES)) is ErrorCode.BUSY
        assert trio.current_time() - before == REPLACE_WITHIN_S


async def test_two_that_replace_at_the_same_time(autojump_clock: Clock) -> None:
    """One of them comes in."""
    host = PeerListHost("here", LIST)
    outcomes: list[str] = []

    async def attempt() -> None:
        with host.session() as session:
            try:
                await session.admit(hello(), NAMES)
            except LocalProtocolError as error:
                outcomes.append(error.code.name)
            else:
                outcomes.append("admitted")
                await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        with host.session() as first:
            await first.admit(hello(), NAMES)
            nursery.start_soon(attempt)
            nursery.start_soon(attempt)
            await trio.sleep(0.5)
    assert outcomes.count("admitted") >= 1
    assert set(outcomes) <= {"admitted", "BUSY"}


async def hand_over(session: HostSession, epoch: int = 1) -> None:
    await session.admit(hello(epoch=epoch), NAMES)
    await session.persist(RecordKind.CLAIMING, epoch + 1, Runner("here", bytes(16)))


async def test_after_handover_nobody_replaces() -> None:
    """[ONE-14], during the session and after it."""
    host = PeerListHost("here", LIST)
    with host.session() as first:
        await hand_over(first)
        first.cancel = lambda _: pytest.fail("a session that has received HANDOVER is not cancelled")
        with host.session() as second:
            assert await code_of(lambda: second.admit(hello(), NAMES)) is ErrorCode.BUSY
    with host.session() as third:
        assert await code_of(lambda: third.admit(hello(), NAMES)) is ErrorCode.BUSY


async def test_an_endpoint_that_says_it_is_too_late_is_not_replaced() -> None:
    """HANDOVER has come, but its record is not written yet."""
    host = PeerListHost("here", LIST)

    def too_late(_: str) -> None:
        raise LocalProtocolError(ErrorCode.TOO_LATE)

    with host.session() as first, host.session() as second:
        await first.admit(hello(), NAMES)
        first.cancel = too_late
        assert await code_of(lambda: second.admit(hello(), NAMES)) is ErrorCode.BUSY


async def test_an_epoch_that_is_over_is_stale_and_the_next_one_is_welcome() -> None:
    """[ONE-11], as far as a host without a lease store can know."""
    host = PeerListHost("here", LIST)
    with host.session() as session:
        await hand_over(session, 5)
    with host.session() as session:
        assert await code_of(lambda: session.admit(hello(epoch=4), NAMES)) is ErrorCode.STALE_EPOCH
    with host.session() as session:
        await session.admit(hello(epoch=6), NAMES)


# ---- records ----


async def test_records_can_be_voided() -> None:
    with PeerListHost("here", None).session() as session:
        runner = Runner("here", bytes(16))
        await session.persist(RecordKind.GRANTED, 2, runner)
        assert session.records == {(RecordKind.GRANTED, 2): runner}
        await session.void(RecordKind.GRANTED, 2)
        await session.void(RecordKind.GRANTED, 2)
        assert session.records == {}
        assert await session.claim(2, runner)


# ---- last words ----


@pytest.mark.parametrize(("farewell", "kind"), [(refusal, Refuse), (rejection, Abort)])
def test_whoever_is_not_let_in_can_read_why(farewell: Callable[..., bytes], kind: type) -> None:
    """Nothing of what this side knows goes along but the code and the registry's sentence."""
    said = farewell(TransportError(ErrorCode.PEER_NOT_LISTED, "internal: see /etc/secret"))
    reader = FrameReader()
    reader.receive_data(said)
    records = []
    while (event := reader.next_event()) is not None:
        if isinstance(event, FrameReceived):
            records.append(event.record)
    (record,) = records
    assert isinstance(record, kind)
    assert record.code == ErrorCode.PEER_NOT_LISTED
    assert "secret" not in record.text
