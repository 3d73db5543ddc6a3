from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_support import EtcdProcess, etcd, etcd_cluster, free_port, small_etcd
from sterna.core.verdict import Slot
from sterna.errors import StoreDamaged, StoreUnavailable
from sterna.host.etcd import EtcdAccess, EtcdClient, encode
from sterna.host.lease import claim_until_named
from sterna.host.lease_etcd import EtcdLeaseStore
from sterna.host.open_store import StoreAccess, open_store, tls_context
from sterna.host.pki import Issued, init_ca, issue
from sterna.host.slots import encode_slot
from sterna.testing import Fault, FaultyStore, check_store
from sterna.wire.records import Runner

GUEST = bytes(range(16))
OURS, THEIRS = Runner("ours", b"o" * 16), Runner("theirs", b"t" * 16)


@contextlib.asynccontextmanager
async def connect(access: EtcdAccess, **options: Any) -> AsyncIterator[EtcdLeaseStore]:
    store = EtcdLeaseStore(access, **options)
    try:
        yield store
    finally:
        await store.aclose()


def key(epoch: int) -> bytes:
    return f"sterna/leases/{GUEST.hex()}/{epoch:020}".encode()


# ---- against the small server ----


async def test_it_passes_the_check() -> None:
    """[ONE-1, ONE-2, ONE-3, ONE-7]"""
    async with small_etcd() as server:

        async def make_store() -> EtcdLeaseStore:
            return EtcdLeaseStore(server.access)

        await check_store(make_store)


async def test_the_layout() -> None:
    """[LEA-8]"""
    async with small_etcd() as server, connect(server.access) as store:
        await store.claim(GUEST, 1, OURS)
        await store.claim(GUEST, 2, THEIRS)
        assert list(server.rows) == [key(1), key(2)]
        async with connect(server.access, prefix="other/") as other:
            assert await other.newest(GUEST) is None


@pytest.mark.parametrize("fault", Fault)
async def test_faults_on_the_way(fault: Fault) -> None:
    """[ONE-7, ONE-8]"""
    async with small_etcd() as server, connect(server.access) as store:
        faulty = FaultyStore(store, [fault], slow_s=0.0)
        try:
            named = await faulty.claim(GUEST, 1, OURS)
        except StoreUnavailable:
            named = await faulty.claim(GUEST, 1, OURS)
        assert named == OURS
        await faulty.land()
        assert await store.claim(GUEST, 1, THEIRS) == OURS


Row = dict[str, str]


def change(**fields: str) -> Callable[[Row], Row]:
    return lambda row: {**row, **fields}


@pytest.mark.parametrize(
    ("spoilt", "text"),
    [
        (change(version="2"), "was overwritten"),
        (change(mod_revision="9"), "was overwritten"),
        (change(lease="7"), "hangs on an etcd lease"),
        (change(value="cGxhbnRlZA=="), "is damaged"),
        (lambda row: {name: text for name, text in row.items() if name != "value"}, "is damaged"),
    ],
)
async def test_a_key_that_is_no_slot(spoilt: Callable[[Row], Row], text: str) -> None:
    """[LEA-2, LEA-10]"""
    async with small_etcd() as server, connect(server.access) as store:
        await store.claim(GUEST, 1, OURS)
        server.rows[key(1)] = spoilt(server.rows[key(1)])
        for call in (store.claim(GUEST, 1, OURS), store.read(GUEST, 1), store.newest(GUEST)):
            with pytest.raises(StoreDamaged, match=text):
                await call


async def test_another_slots_content() -> None:
    """[LEA-2]"""
    async with small_etcd() as server, connect(server.access) as store:
        server.put(key(1), encode_slot(GUEST, 2, THEIRS))
        with pytest.raises(StoreDamaged, match="another slot's"):
            await store.claim(GUEST, 1, OURS)


async def test_an_emptied_slot_is_not_filled_again() -> None:
    """It would get a second runner, and both might run the guest [ONE-3, LEA-9]."""
    async with small_etcd() as server, connect(server.access) as store:
        for epoch in (1, 2, 3):
            await store.claim(GUEST, epoch, Runner("ours", bytes([epoch]) * 16))
        del server.rows[key(2)]
        with pytest.raises(StoreDamaged, match=r"slot 2 of .* is gone"):
            await store.claim(GUEST, 2, THEIRS)
        assert key(2) not in server.rows


async def test_slots_that_are_gone_are_noticed() -> None:
    """[ONE-1, LEA-10]"""
    async with small_etcd() as server, connect(server.access) as store:
        for epoch in (1, 2, 3):
            await store.claim(GUEST, epoch, OURS)
        del server.rows[key(2)]
        with pytest.raises(StoreDamaged, match="2 keys of guest"):
            await store.newest(GUEST)
        server.put(key(2)[:-1] + b"x", b"")
        with pytest.raises(StoreDamaged, match="something else is among them"):
            await store.newest(GUEST)


Spoil = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: {"header": answer["header"], "responses": [], "kvs": 5},
        lambda answer: {**answer, "responses": "x", "kvs": [1]},
        lambda answer: {**answer, "responses": [{"response_put": {}}], "kvs": [{"key": "?"}]},
        lambda answer: {**answer, "responses": [{"response_range": 5}], "kvs": [{"key": 7}]},
        lambda answer: {
            **answer,
            "responses": [{"response_range": {"kvs": [{"key": "eA=="}]}}],
            "kvs": [{"key": "eA=="}],
        },
        lambda answer: {
            **answer,
            "responses": [{"response_range": {"kvs": [{}, {}]}}],
            "kvs": [{}, {}],
        },
    ],
)
async def test_answers_that_are_none(spoil: Spoil) -> None:
    """Nothing is concluded from them, in particular not that a slot is empty."""
    async with small_etcd() as server, connect(server.access) as store:
        server.spoil = spoil  # type: ignore[assignment]
        for call in (store.claim(GUEST, 1, OURS), store.read(GUEST, 1)):
            with pytest.raises(StoreUnavailable, match="etcd"):
                await call


async def test_a_watch_begins_where_the_look_ended() -> None:
    """What happens between the look and the watch is not missed, and a watch that breaks is begun again."""
    async with small_etcd() as server, connect(server.access) as store:
        seen: list[Runner] = []

        async def watch() -> None:
            seen.append(await store.watch(GUEST, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await server.watched.wait()
            server.put(key(1), encode_slot(GUEST, 1, THEIRS))
        assert seen == [THEIRS]


# ---- against etcd itself ----


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdProcess]:
    with etcd(tmp_path) as server:
        yield server


@pytest.mark.slow
@pytest.mark.needs("etcd")
async def test_etcd_passes_the_check(server: EtcdProcess) -> None:
    """Tasks and processes race [ONE-1, ONE-2, ONE-3, ONE-7, LEA-9]."""

    async def make_store() -> EtcdLeaseStore:
        return EtcdLeaseStore(server.access)

    claimant = [sys.executable, "-m", "sterna.testing.claimant", server.name]
    await check_store(make_store, claimant=claimant, processes=6)


@pytest.mark.slow
@pytest.mark.needs("etcd")
async def test_etcd_is_killed_and_comes_back(server: EtcdProcess) -> None:
    """What was answered is there; what was claimed meanwhile is made when it is over [ONE-3, ONE-8]."""
    heard = trio.Event()
    async with connect(server.access) as store:
        assert await store.claim(GUEST, 1, OURS) == OURS
        server.kill()
        with pytest.raises(StoreUnavailable, match="Connection refused"):
            await store.claim(GUEST, 2, THEIRS)

        async def claim() -> None:
            await claim_until_named(store, GUEST, 2, THEIRS, silent=lambda _: heard.set())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim)
            await heard.wait()
            await trio.to_thread.run_sync(server.start)
        assert await store.newest(GUEST) == Slot(2, THEIRS)
        assert await store.read(GUEST, 1) == OURS


@pytest.mark.slow
@pytest.mark.needs("etcd")
async def test_etcd_is_killed_in_the_middle_of_claims(server: EtcdProcess) -> None:
    """Whoever was named before a kill is named after it, whatever the kill has cut off [ONE-3, ONE-7]."""
    async with connect(server.access) as store:
        named: list[Runner] = []

        async def claim_ten(some: trio.Event) -> None:
            for number in range(10):
                runner = Runner("host", secrets.token_bytes(16))
                named.append(await claim_until_named(store, GUEST, len(named) + 1, runner))
                if number == 3:
                    some.set()

        for _ in range(3):
            some = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(claim_ten, some)
                await some.wait()
                server.kill()
                await trio.to_thread.run_sync(server.start)
        assert len(named) == 30
        for epoch, runner in enumerate(named, 1):
            assert await store.read(GUEST, epoch) == runner


@pytest.mark.slow
@pytest.mark.needs("etcd")
async def test_etcd_hangs_and_the_claim_lands_later(server: EtcdProcess) -> None:
    """The claimant gives up and closes its connection; the claim may be made all the same [ONE-8]."""
    async with connect(server.access) as patient, connect(server.access, within_s=1.0) as hasty:
        await claim_until_named(hasty, GUEST, 1, OURS)  # the connection is there
        server.pause()
        with pytest.raises(StoreUnavailable, match="no answer for 1 s"):
            await hasty.claim(GUEST, 2, OURS)
        server.resume()
        named = await claim_until_named(patient, GUEST, 2, THEIRS)
        assert named in {OURS, THEIRS}
        assert await claim_until_named(hasty, GUEST, 2, OURS) == named


@pytest.mark.slow
@pytest.mark.needs("etcd")
async def test_a_watch_outlasts_a_killed_etcd(server: EtcdProcess) -> None:
    seen: list[Runner] = []
    async with connect(server.access) as store:

        async def watch() -> None:
            seen.append(await store.watch(GUEST, 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await store.read(GUEST, 1)
            server.kill()
            await trio.to_thread.run_sync(server.start)
            await claim_until_named(store, GUEST, 1, THEIRS)
    assert seen == [THEIRS]


@pytest.mark.slow
@pytest.mark.needs("etcd")
async def test_a_member_that_is_down_is_passed_over(server: EtcdProcess) -> None:
    endpoints = (("127.0.0.1", free_port()), *server.access.endpoints)
    async with connect(replace(server.access, endpoints=endpoints)) as store:
        assert await store.claim(GUEST, 1, OURS) == OURS


@pytest.mark.slow
@pytest.mark.needs("etcd")
async def test_a_cluster_that_loses_members(tmp_path: Path) -> None:
    """One of three hangs or dies, the leader or not: claims go on. Without a majority nobody is named, and
    whoever was is named when it is back [ONE-3, ONE-8, LEA-9]."""
    with etcd_cluster(tmp_path, 3) as members:
        endpoints = tuple(("127.0.0.1", member.port) for member in members)
        async with connect(EtcdAccess(endpoints), within_s=4.5) as store:
            named: list[Runner] = []

            async def claim() -> None:
                runner = Runner("host", secrets.token_bytes(16))
                named.append(await claim_until_named(store, GUEST, len(named) + 1, runner))

            for member in members:
                member.pause()
                await claim()
                member.resume()
                await claim()
            for member in members[:2]:
                member.kill()
            with pytest.raises(StoreUnavailable):
                await store.claim(GUEST, len(named) + 1, OURS)
            members[0].launch()
            await claim()
            for epoch, runner in enumerate(named, 1):
                assert await store.read(GUEST, epoch) == runner
            assert len(named) == 7


@pytest.mark.slow
@pytest.mark.needs("etcd")
async def test_etcd_that_asks_for_a_certificate(tmp_path: Path) -> None:
    """[LEA-11]"""
    authority, ours, host = certificates(tmp_path)
    good = StoreAccess(authority, host.certificate, host.key)
    options = [f"--cert-file={ours.certificate}", f"--key-file={ours.key}"]
    options += [f"--trusted-ca-file={authority}", "--client-cert-auth"]
    with etcd(tmp_path, *options, scheme="https") as server:
        name = server.name.replace("etcd:", "etcds:")
        assert await claim_once(name, good, 1) == OURS
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
            await claim_once(name, replace(good, certificate=None, key=None), 2)
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate verify failed"):
            await claim_once(name, replace(good, ca=None), 2)


@pytest.mark.slow
@pytest.mark.needs("etcd")
async def test_etcd_that_asks_for_a_password(tmp_path: Path) -> None:
    """[LEA-11]"""
    authority, ours, _ = certificates(tmp_path)
    (tmp_path / "password").write_text("long and secret\n")
    (tmp_path / "wrong").write_text("short\n")
    good = StoreAccess(authority, user="mover", password_file=tmp_path / "password")
    with etcd(
        tmp_path, f"--cert-file={ours.certificate}", f"--key-file={ours.key}", scheme="https"
    ) as server:
        name = server.name.replace("etcd:", "etcds:")
        await switch_authentication_on(EtcdClient(replace(server.access, tls=tls_context(good)), 10.0))
        assert await claim_once(name, good, 1) == OURS
        for place, access, text in (
            (name, replace(good, user="", password_file=None), "user name is empty"),
            (name, replace(good, password_file=tmp_path / "wrong"), "invalid user ID"),
            (f"{name}/others/", good, "permission denied"),
        ):
            with pytest.raises(StoreUnavailable, match=text):
                await claim_once(place, access, 2)


def certificates(directory: Path) -> tuple[Path, Issued, Issued]:
    """An authority, the store's certificate and a host's."""
    authority = init_ca(directory / "ca").certificate
    store, host = (issue(directory / "ca", name, hosts=["127.0.0.1"]) for name in ("store", "host"))
    return authority, store, host


async def switch_authentication_on(admin: EtcdClient) -> None:
    """A user who may write leases, and nothing else."""
    for user, password, role in (("root", "root's", "root"), ("mover", "long and secret", "leases")):
        await admin.call("/v3/auth/user/add", {"name": user, "password": password})
        await admin.call("/v3/auth/role/add", {"name": role})
        await admin.call("/v3/auth/user/grant", {"user": user, "role": role})
    keys = {"key": encode(b"sterna/leases/"), "range_end": encode(b"sterna/leases0")}
    await admin.call("/v3/auth/role/grant", {"name": "leases", "perm": {"permType": "READWRITE", **keys}})
    await admin.call("/v3/auth/enable", {})
    await admin.aclose()


async def claim_once(name: str, access: StoreAccess, epoch: int) -> Runner | None:
    store = open_store(name, access)
    try:
        return await store.claim(GUEST, epoch, OURS)
    finally:
        await store.aclose()
