"""Both endpoints over real sockets: TCP and mutual TLS, what is said last, and what is left open."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import partial

import pytest
import trio
import trio.testing
from endpoint_support import Migration, frames, until, welcome
from net_support import shake_hands, tcp_pair
from renewing_support import RenewingTransport, run_client
from resume_net_support import Resuming

from descriptors_support import nothing_stays_open
from sterna.core.events import Outcome
from sterna.guest.embedded import PAGE_BYTES, EmbeddedGuest
from sterna.guest.simulated import SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.limits import PREFACE_BYTES
from sterna.net.connect import Address
from sterna.net.destination import Destination
from sterna.net.listen import listen
from sterna.net.source import Source
from sterna.net.tcp import TcpTransport
from sterna.net.tls import KEY_RECORDS_LAST, KEY_RECORDS_MAX, TlsConfig
from sterna.net.transport import Transport
from sterna.registry import ErrorCode, Phase
from sterna.wire.records import Abort, Accept

SMALL = 64 * 1024  # of a socket's buffers: a peer that does not read is noticed soon
LARGE = WorkloadParameters(seed=3, pages=2048, hot_pages=256)

Ends = tuple[Transport, Transport]


def plain() -> Ends:
    near, far = tcp_pair(SMALL)
    return TcpTransport(near), TcpTransport(far)


@pytest.fixture(params=["tcp", "tls"])
async def ends(request: pytest.FixtureRequest, host_a: TlsConfig, host_b: TlsConfig) -> Ends:
    if request.param == "tcp":
        return plain()
    return await shake_hands(host_b, host_a, "host-a", buffer_bytes=SMALL)


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """Neither descriptors nor objects that complain when they are collected."""
    with nothing_stays_open():
        yield
        gc.collect()


async def test_a_running_guest_moves(ends: Ends) -> None:
    migration = Migration(parameters=LARGE, ends=ends, rate_bytes_s=40e6, virtual=False, tick_s=0.002)
    with trio.fail_after(60):
        await migration.run()
    migration.check_moved()
    assert migration.results["source"].bytes_sent == ends[0].bytes_sent == ends[1].bytes_received


async def test_an_embedded_guest_moves(ends: Ends) -> None:
    memory = os.urandom(64 * PAGE_BYTES)
    here, there = EmbeddedGuest(bytearray(memory)), EmbeddedGuest(bytearray(len(memory)))
    destination = Destination(lambda _: there, ends[1])
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(destination.run)
            result = await Source(here, ends[0]).run()
    assert result.outcome is Outcome.COMPLETED
    assert destination.result is not None
    assert destination.result.outcome is Outcome.COMPLETED
    assert destination.guest is there
    assert bytes(there.memory(1)) == memory


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_an_abort_reaches_a_peer_that_is_sending(ends: Ends, side: str) -> None:
    """[CON-65] [CON-67]: what the peer has sent meanwhile lies unread, and no reset destroys the ABORT."""
    migration = Migration(parameters=LARGE, ends=ends, rate_bytes_s=0, virtual=False)

    async def cancel_in_a_round() -> None:
        await until(lambda: migration.far.bytes_received > SMALL)
        getattr(migration, side).cancel("enough")

    with trio.fail_after(60):
        await migration.run(cancel_in_a_round)
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    for name, result in migration.results.items():
        assert (result.code, result.by_peer) == (ErrorCode.CANCELLED, name != side)


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_a_key_that_is_nearly_used_up_ends_the_session(
    host_a: TlsConfig, host_b: TlsConfig, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[TLS-18] The peer reads why, and no record was too many."""
    most, last = 200, 190
    monkeypatch.setattr("sterna.net.tls.KEY_RECORDS_MAX", most)
    monkeypatch.setattr("sterna.net.tls.KEY_RECORDS_LAST", last)
    monkeypatch.setattr("sterna.net.tls.KEY_RECORDS_RESERVE", 2)
    monkeypatch.setattr("sterna.net.tls.KEY_RECORDS_BLACKOUT", 0)
    near, far = await shake_hands(host_b, host_a, "host-a", buffer_bytes=SMALL)
    (near if side == "destination" else far).records_sent = -(1 << 20)  # the other key is as good as new
    batch = {"batch_bytes": 256 * 1024}
    migration = Migration(
        parameters=LARGE, ends=(near, far), rate_bytes_s=0, virtual=False, source_options=batch
    )

    async def wear() -> None:
        if side == "destination":
            far.records_sent = most - last + 1

    with trio.fail_after(60):
        await migration.run(wear)
    assert migration.outcomes == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert migration.guest.running
    for name, result in migration.results.items():
        assert (result.code, result.by_peer) == (ErrorCode.UNSUPPORTED, name != side)
    assert max(near.records_sent, far.records_sent) <= most


@pytest.mark.slow
async def test_data_connections_are_replaced_before_their_keys_are_used_up(
    host_a: TlsConfig, host_b: TlsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[TLS-18] [STR-12] In the middle of a round, one after the other; no record was too many."""
    most, streams = 100, 2
    monkeypatch.setattr("sterna.net.tls.KEY_RECORDS_MAX", most)
    monkeypatch.setattr("sterna.net.tls.KEY_RECORDS_LAST", 60)
    monkeypatch.setattr("sterna.net.tls.KEY_RECORDS_RESERVE", 2)
    monkeypatch.setattr("sterna.net.tls.KEY_RECORDS_BLACKOUT", 0)

    class OverTls(Resuming):
        async def connection(self) -> Ends:
            return await shake_hands(host_b, host_a, "host-a", buffer_bytes=SMALL)

    ends = await shake_hands(host_b, host_a, "host-a", buffer_bytes=SMALL)
    for end in ends:
        end.records_sent = -(1 << 20)  # the control connection's keys are as good as new
    options = {"streams": streams, "batch_bytes": 128 * 1024}
    migration = OverTls(
        parameters=LARGE,
        ends=ends,
        rate_bytes_s=0,
        virtual=False,
        source_options=options,
        destination_options={"streams": streams},
    )
    monkeypatch.setattr("sterna.core.shares.BLOCK_BYTES", 64 * 1024)
    with trio.fail_after(60):
        await migration.run()
    migration.check_moved()
    assert migration.results["source"].resumed == 0
    assert len(migration.nears) > 2 * streams
    assert 30 < max(near.records_sent for near in migration.nears) <= most


async def test_a_worn_key_lets_a_committed_session_end(host_a: TlsConfig, host_b: TlsConfig) -> None:
    """[TLS-18] [CON-72] From HANDOVER on a few records are left to send, and they matter."""
    near, far = await shake_hands(host_b, host_a, "host-a", buffer_bytes=SMALL)
    migration = Migration(ends=(near, far), rate_bytes_s=0, virtual=False)

    async def wear() -> None:
        await until(lambda: migration.room.running)
        near.records_sent = far.records_sent = KEY_RECORDS_MAX - KEY_RECORDS_LAST + 1
        assert near.worn is not None

    with trio.fail_after(60):
        await migration.run(wear)
    migration.check_moved()


@pytest.mark.slow
@pytest.mark.needs("openssl")
async def test_a_source_that_renews_its_key_is_heard_on(host_a: TlsConfig, host_b: TlsConfig) -> None:
    """[TLS-19] In the midst of the pages; every other time it wants a new one of the destination's, too."""
    accepted, received = trio.open_memory_channel[Transport](1)

    async def hand_out(transport: Transport) -> None:
        await accepted.send(transport)
        await trio.sleep_forever()

    ends = await shake_hands(host_b, host_a, "host-a", buffer_bytes=SMALL)
    options = {"streams": 1}

    class OverClient(Resuming):
        async def connection(self) -> Ends:
            return await nursery.start(run_client, address, host_b, ends[0].peer), await received.receive()

    with trio.fail_after(120):
        async with trio.open_nursery() as listening, trio.open_nursery() as nursery:
            bind = partial(listen, Address("127.0.0.1", 0), hand_out, tls=host_a)
            (address,) = await listening.start(bind)
            migration = OverClient(
                parameters=LARGE,
                ends=ends,
                rate_bytes_s=0,
                virtual=False,
                source_options=options,
                destination_options=dict(options),
            )
            await migration.run()
            listening.cancel_scope.cancel()
    migration.check_moved()
    (near,) = migration.nears
    assert isinstance(near, RenewingTransport)
    assert near.bytes_sent > LARGE.pages * PAGE_BYTES
    assert near.renewals >= near.bytes_sent // (2 * near.EVERY_BYTES)
    assert migration.results["source"].resumed == 0


async def test_a_refusal_reaches_the_source(ends: Ends) -> None:
    migration = Migration(ends=ends, virtual=False)
    migration.room.memory_limit_bytes = 1
    with trio.fail_after(60):
        await migration.run()
    result = migration.results["source"]
    assert (result.code, result.by_peer) == (ErrorCode.FULL, True)
    assert result.retry_after_ms > 0


def _has_sent(transport: Transport) -> bool:
    return transport.bytes_sent > SMALL


async def test_what_a_peer_says_before_it_resets_is_heard() -> None:
    """It says why, and closes with unread data: the failed send that follows is not the reason.

    Often enough for either task of the source to be the first to notice.
    """
    abort = Abort(ErrorCode.FULL, Phase.ROUNDS)
    for _ in range(20):
        near, peer = tcp_pair(SMALL)
        guest = SimulatedSourceGuest(LARGE)
        transport = TcpTransport(near)
        source = Source(guest, transport)
        before = frames(welcome(), Accept(LARGE.pages * PAGE_BYTES))
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.run)
                peer.send(before)
                await until(partial(_has_sent, transport))
                await trio.testing.wait_all_tasks_blocked()  # in a send, and in a receive
                peer.send(frames(b"", b"", abort)[PREFACE_BYTES:])
                peer.close()
        assert source.result is not None
        assert (source.result.code, source.result.by_peer) == (ErrorCode.FULL, True)
        assert guest.running
