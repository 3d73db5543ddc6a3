"""Hosts, their peers, and sessions that get as far as a test wants them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sterna.core.records import Claiming, SessionRecord, Side
from sterna.errors import SternaError
from sterna.guest.api import GuestDescription
from sterna.host.agent import HostSession, PeerListHost
from sterna.host.lease_memory import MemoryLeaseStore
from sterna.host.peers import PeerList
from sterna.net.transport import Peer
from sterna.registry import Feature, Mode
from sterna.wire.records import FeatureOffer, Hello, Region, Runner, Verdict

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


async def take_over(session: HostSession, epoch: int = 1) -> SessionRecord:
    """What a machine notes until the claim."""
    made = session.admission
    assert made is not None
    record = SessionRecord(made.session, epoch, Side.DESTINATION, made.token, "", store=session._has_store)
    await session.persist(record)
    await session.persist(Claiming(made.session, epoch + 1, made.runner, made.session))
    return record


async def admitted(
    host: PeerListHost, peer: Peer = SENDER, *, epoch: int = 1, guest: bytes = ID
) -> HostSession:
    session = host.session()
    await session.admit(hello(guest, epoch), peer)
    return session


async def refused(host: PeerListHost, peer: Peer, *, epoch: int = 1, guest: bytes = ID) -> SternaError:
    """Why a session is not opened; it must not stand in anybody's way afterwards."""
    session = host.session()
    async with session:
        with pytest.raises(SternaError) as caught:
            await session.admit(hello(guest, epoch), peer)
    assert not session.admitted
    return caught.value


def question(record: SessionRecord, **other: object) -> Hello:
    asked = replace(hello(), mode=Mode.VERDICT, session=record.session, token=record.token)
    return replace(asked, **other)  # type: ignore[arg-type]


async def ask(host: PeerListHost, asked: Hello, peer: Peer = SENDER) -> Verdict:
    async with host.session(peer) as session:
        return await session.verdict(asked)


ALONE, CLAIMED = Runner("there", b"1" * 16), Runner("here", b"2" * 16)
STORED = (FeatureOffer(Feature.LEASE_STORE, True, 0),)


async def with_store(*runners: Runner) -> tuple[PeerListHost, MemoryLeaseStore]:
    store = MemoryLeaseStore()
    for epoch, runner in enumerate(runners, 1):
        assert await store.claim(ID, epoch, runner) == runner
    return PeerListHost("here", None, store=store), store


def shown(epoch: int, runner: Runner, *, store: bool = True) -> Hello:
    return Hello(Mode.OPEN, (), STORED if store else (), {}, ID, epoch, runner)
