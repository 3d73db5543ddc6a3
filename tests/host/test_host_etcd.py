"""The client against a gateway that answers anything: one coded error, in bounded time and memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio

from etcd_support import SmallEtcd, free_port, response, small_etcd
from sterna.errors import StoreDamaged, StoreUnavailable
from sterna.host.etcd import EtcdAccess, EtcdClient, decode, encode, number, objects

RANGE = {"key": encode(b"a")}


@contextlib.asynccontextmanager
async def client(access: EtcdAccess, within_s: float = 5.0) -> AsyncIterator[EtcdClient]:
    found = EtcdClient(access, within_s)
    try:
        yield found
    finally:
        await found.aclose()


def spoil_with(data: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda _: data


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"\x00\xff" * 40 + b"\r\n\r\n", ""),
        (b"220 mail.example ESMTP\r\n", ""),
        (HEAD + b"X: y\r\n" * 200 + b"\r\n", ""),
        (HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n", ""),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n" + b"x" * 100_000, "more than 65536 bytes"),
        (HEAD + b"Content-Length: -1\r\n\r\n", "is no answer of etcd's gateway"),
        (HEAD + b"Content-Length: 10\r\n\r\n{}", ""),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n", ""),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n", "read length"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"4000\r\n" + b"y" * 0x4000 + b"\r\n", ""),
        (response(200, []), "is no answer of etcd's gateway"),
        (response(200, {}), "without a header"),
        (response(200, {"header": {"revision": "-1"}}), "is no number"),
        (response(200, {"header": {"cluster_id": "9" * 5000}}), "is no number"),
        (HEAD + b"Content-Length: 60000\r\n\r\n" + b"[" * 60000, "is no answer of etcd's gateway"),
        (HEAD + b"Content-Length: 3\r\n\r\n\xff\xfe\xfd", "is no answer of etcd's gateway"),
        (response(500, {"error": "etcdserver: request timed out\x1b[31m"}), r"timed out\\x1b\[31m"),
        (response(301, {}), "HTTP status 301"),
        (response(403, {"error": "x" * 9999}), r"x\.\.\."),
    ],
)
async def test_any_answer_is_one_coded_error(data: bytes, text: str) -> None:
    async with small_etcd() as server, client(server.access) as etcd:
        server.spoil = spoil_with(data)
        server.hang_up = True
        with pytest.raises(StoreUnavailable, match=f"^etcd: .*{text}"):
            await etcd.call("/v3/kv/range", RANGE)


@pytest.mark.parametrize("drips", [b"", b"HTTP/1.1 200 OK\r\nX: ", HEAD + b"Content-Length: 60000\r\n\r\n"])
async def test_a_server_that_drips_does_not_hold_us(drips: bytes) -> None:
    """Each byte comes in time, and the call ends all the same; its thread ends too."""
    async with small_etcd() as server, client(server.access, within_s=0.5) as etcd:
        server.spoil = spoil_with(drips)
        server.drip = True
        with pytest.raises(StoreUnavailable, match="no answer for 0"):
            await etcd.call("/v3/kv/range", RANGE)
        await server.hung_up.wait()  # the client has shut its connection down


async def test_a_call_that_is_cancelled_leaves_nothing_behind() -> None:
    async with small_etcd() as server, client(server.access, within_s=3600) as etcd:
        server.spoil = spoil_with(b"")
        server.drip = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(etcd.call, "/v3/kv/range", RANGE)
            await server.asked.wait()
            nursery.cancel_scope.cancel()
        await server.hung_up.wait()


async def test_one_connection_is_kept() -> None:
    async with small_etcd() as server, client(server.access) as etcd:
        for _ in range(5):
            await etcd.call("/v3/kv/range", RANGE)
        assert (len(server.requests), server.connections) == (5, 1)


async def test_a_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    async with small_etcd() as server, client(server.access) as etcd:
        server.hang_up = True
        for _ in range(3):
            await etcd.call("/v3/kv/range", RANGE)
        assert server.connections == 3


async def test_another_cluster_is_another_store() -> None:
    """[LEA-10]"""
    async with small_etcd() as server, client(server.access) as etcd:
        await etcd.call("/v3/kv/range", RANGE)
        server.cluster = "7"
        with pytest.raises(StoreDamaged, match="cluster 7 answers"):
            await etcd.call("/v3/kv/range", RANGE)


async def test_a_cluster_that_was_put_back_is_noticed() -> None:
    """[LEA-10]"""
    async with small_etcd() as server, client(server.access) as etcd:
        server.revision = 10
        await etcd.call("/v3/kv/range", RANGE)
        server.revision = 9
        with pytest.raises(StoreDamaged, match="revision 9 after 10"):
            await etcd.call("/v3/kv/range", RANGE)


async def test_a_token_that_has_ended_is_renewed() -> None:
    """[LEA-11]"""
    async with small_etcd() as server:
        server.password = "secret"
        access = replace(server.access, user="mover", password="secret")
        assert "secret" not in repr(access)
        async with client(access) as etcd:
            await etcd.call("/v3/kv/range", RANGE)
            server.tokens.clear()
            await etcd.call("/v3/kv/range", RANGE)
        logins = server.requests.count("/v3/auth/authenticate")
        assert (logins, len(server.requests)) == (2, 5)
        async with client(replace(access, password="other")) as etcd:
            with pytest.raises(StoreUnavailable, match="authentication failed") as caught:
                await etcd.call("/v3/kv/range", RANGE)
        assert "other" not in str(caught.value)


async def test_a_token_that_is_none() -> None:
    async with small_etcd() as server:
        server.password = ""
        server.token = "a\r\nX: y"
        async with client(replace(server.access, user="mover", password="")) as etcd:
            with pytest.raises(StoreUnavailable, match="has no token"):
                await etcd.call("/v3/kv/range", RANGE)


async def test_members_are_asked_in_turn() -> None:
    async with small_etcd() as good, small_etcd() as bad:
        bad.spoil = spoil_with(response(503, {"error": "etcdserver: no leader"}))
        down = ("127.0.0.1", free_port())
        access = EtcdAccess((down, *bad.access.endpoints, *good.access.endpoints))
        async with client(access) as etcd:
            await etcd.call("/v3/kv/range", RANGE)
            await etcd.call("/v3/kv/range", RANGE)
            assert (len(bad.requests), len(good.requests)) == (1, 2)  # the one that has answered is kept
            good.spoil = spoil_with(response(503, {"error": "etcdserver: no leader"}))
            with pytest.raises(StoreUnavailable, match=r"refused.*no leader|no leader.*refused"):
                await etcd.call("/v3/kv/range", RANGE)


async def test_a_member_that_hangs_leaves_time_for_the_others() -> None:
    async with small_etcd() as hangs, small_etcd() as good:
        hangs.spoil = spoil_with(b"")
        hangs.drip = True
        access = EtcdAccess((*hangs.access.endpoints, *good.access.endpoints))
        async with client(access, within_s=1.0) as etcd:
            await etcd.call("/v3/kv/range", RANGE)
            assert len(good.requests) == 1


async def test_threads_that_hang_at_one_member_keep_nobody_from_another() -> None:
    async with small_etcd() as gone, small_etcd() as good:
        access = EtcdAccess((*gone.access.endpoints, *good.access.endpoints))
        async with client(access, within_s=1.0) as etcd:
            limiter = etcd._threads[0]
            for _ in range(int(limiter.total_tokens)):
                await limiter.acquire_on_behalf_of(object())
            await etcd.call("/v3/kv/range", RANGE)
            assert (len(gone.requests), len(good.requests)) == (0, 1)


async def watch(server: SmallEtcd, etcd: EtcdClient, within_s: float) -> None:
    await etcd.wait_for_event({"create_request": {"key": encode(b"a"), "start_revision": "2"}}, within_s)


async def test_a_watch_ends_with_an_event_or_a_while() -> None:
    async with small_etcd() as server, client(server.access) as etcd:
        await watch(server, etcd, 0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, server, etcd, 3600)
            await server.watched.wait()
            server.put(b"a", b"x")
    await watch(server, etcd, 0.01)  # nobody there any more: that is for the next call to say


def test_fields_of_answers() -> None:
    assert (number(None), number("18446744073709551615"), decode(None), list(objects(None))) == (
        0,
        2**64 - 1,
        b"",
        [],
    )
    assert decode(encode(b"\x00\xff")) == b"\x00\xff"
    for wrong in (1, "-1", "1" * 21, "²", "", "1.0", True, []):
        with pytest.raises(StoreUnavailable, match="is no number"):
            number(wrong)
    for text in (5, "?", "YQ", "é"):
        with pytest.raises(StoreUnavailable, match="is no base64"):
            decode(text)
    for value in ({}, "x", [1], [[]]):
        with pytest.raises(StoreUnavailable, match="is no list of objects"):
            objects(value)


async def test_a_host_that_can_be_no_name_is_one_coded_error() -> None:
    for host in ("a..b", "a" * 64):
        async with client(EtcdAccess(((host, 2379),))) as etcd:
            with pytest.raises(StoreUnavailable, match=r"^etcd: .*label"):
                await etcd.call("/v3/kv/range", RANGE)
