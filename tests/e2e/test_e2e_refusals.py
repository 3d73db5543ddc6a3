"""Strangers, misfits and wrong bytes: each is told what is wrong, and no guest is the worse for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from commands import World, make_pki
from judge import judge_journal
from peers import answering, say

from sterna.core.events import Outcome
from sterna.core.negotiate import offer
from sterna.guest.simulated import SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.net.connect import Address, open_tcp
from sterna.net.source import Source
from sterna.registry import VERSION_DRAFT, VERSION_MAJOR, Architecture, ErrorCode, Mode, RegionKind
from sterna.wire import FrameReader, encode_frame, encode_preface, unchecked
from sterna.wire.framing import FrameReceived
from sterna.wire.records import NO_RUNNER, Abort, Guest, Hello, Refuse, Region

pytestmark = pytest.mark.slow

PREFACE = encode_preface(VERSION_MAJOR, VERSION_DRAFT)
VERSION = VERSION_MAJOR << 16 | VERSION_DRAFT
TLS_ALERT = bytes.fromhex("15030300020228")
HTTP = b"GET / HTTP/1.1\r\nHost: sterna\r\n\r\n"
HELLO = Hello(Mode.OPEN, (VERSION,), offer(), {}, b"g" * 16, 1, NO_RUNNER)


def whole(record: Hello | Refuse | Abort, sequence: int = 0) -> bytes:
    return b"".join(map(bytes, encode_frame(record, sequence)))


def last_word(received: bytes) -> int | None:
    """The code of the REFUSE or ABORT among what a destination has said."""
    reader = FrameReader()
    reader.receive_data(received)
    code = None
    while (event := reader.next_event()) is not None:
        if isinstance(event, FrameReceived) and isinstance(event.record, Refuse | Abort):
            code = event.record.code
    return code


# ---- who may come ----


async def test_strangers_are_turned_away_and_the_listed_host_comes_in(world: World, tmp_path: Path) -> None:
    """One listener meets everybody in turn; the guest stays where it is until the right one asks."""
    await world.source()
    await world.room()
    serve, port = await world.serve()
    foreign = make_pki(tmp_path / "foreign", "host-a")
    strangers = [
        # An unlisted host, with a good certificate, learns why inside TLS.
        ([*world.secured("host-c"), "--peer", "host-b"], "peer_not_listed", "peer_not_listed"),
        ([*world.secured("host-a", foreign), "--peer", "host-b"], "tls_failed", "tls_failed"),
        ([*world.secured("host-a"), "--peer", "host-c"], "peer_not_listed", None),
        (["--insecure"], "tls_on_plain", "plain_on_tls"),
    ]
    for security, at_source, at_destination in strangers:
        seen = len(serve.lines)
        migrate = await world.migrate(port, security=security)
        assert await migrate.end() not in {0, 70}, migrate.said()
        assert migrate.last["code"] == at_source, migrate.last
        if at_destination is not None:
            refused = await serve.until("refused", since=seen)
            assert refused["code"] == at_destination
        await world.check_runs("s")
    for pieces in ([HTTP], [b"\0" * 64], [TLS_ALERT]):
        seen = len(serve.lines)
        await say(port, *pieces)
        refused = await serve.until("refused", since=seen)
        assert refused["code"] == "plain_on_tls"
    migrate = await world.migrate(port)
    assert await migrate.end() == 0, migrate.said()
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


async def test_a_tls_source_at_a_plain_port(world: World) -> None:
    await world.source()
    await world.room()
    serve, port = await world.serve(insecure=True)
    migrate = await world.migrate(port)
    assert await migrate.end() == 5, migrate.said()
    assert migrate.last["code"] == "plain_on_tls"
    session = await serve.until("session")
    assert (session["outcome"], session["code"]) == ("rolled_back", "tls_on_plain")
    await world.check_runs("s")


async def test_a_peer_may_send_only_the_guests_that_are_listed(world: World) -> None:
    await world.source()
    await world.room()
    world.peers.write_text('[[peer]]\nidentity = "host-a"\nmay_send = ["web-*"]\n')
    _, port = await world.serve()
    migrate = await world.migrate(port)
    assert await migrate.end() == 4, migrate.said()
    assert (migrate.last["code"], migrate.last["by_peer"]) == ("not_authorised", True)
    await world.check_runs("s")
    assert (await world.status("d")).state == "empty"


async def test_a_guest_leaves_only_for_a_peer_that_may_receive_it(world: World) -> None:
    await world.source()
    await world.room()
    _, port = await world.serve()
    world.peers.write_text('[[peer]]\nidentity = "host-b"\nmay_receive = ["web-*"]\n')
    migrate = await world.migrate(port, "--peers", world.peers)
    assert await migrate.end() == 4, migrate.said()
    assert migrate.last["code"] == "not_authorised"
    await world.check_runs("s")


# ---- bytes of another protocol ----


async def test_other_protocols_at_a_plain_destination(world: World) -> None:
    await world.room()
    serve, port = await world.serve(insecure=True)
    damaged = PREFACE.replace(b"\r\n", b"\n")
    cases = [
        (HTTP, "http_on_plain"),
        (bytes.fromhex("16030100c0010000bc0303") + bytes(64), "tls_on_plain"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "bad_magic"),
        (damaged + bytes(1), "text_mode_damage"),
        (PREFACE + bytes(32), "header_checksum"),
        (PREFACE[:7], "truncated"),
        (PREFACE + whole(HELLO)[:-1], "truncated"),
        (PREFACE + unchecked.frame(0x8FFF), "unknown_critical"),
    ]
    for sent, code in cases:
        seen = len(serve.lines)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(sent)
            await stream.send_eof()
            assert (await serve.until("session", since=seen))["code"] == code


async def test_other_protocols_at_a_plain_source(world: World) -> None:
    await world.source()
    refuse = whole(Refuse(ErrorCode.NO_COMMON_VERSION, 0, (), "too old"))
    cases = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "http_on_plain"),
        (TLS_ALERT + bytes(16), "tls_on_plain"),
        (b"220 mail.example.org ESMTP\r\n", "bad_magic"),
        (PREFACE + bytes(32), "header_checksum"),
        (PREFACE + refuse, "no_common_version"),
        (b"", "connection_lost"),
    ]
    for answer, code in cases:
        async with answering(answer) as port:
            migrate = await world.migrate(port, "--patience", "5s", insecure=True)
            assert await migrate.end() in {3, 4, 5}, migrate.said()
            assert migrate.last["outcome"] == "rolled_back"
            assert migrate.last["code"] == code, (code, migrate.last["text"])
        await world.check_runs("s")
    assert judge_journal(world.journal) == []


async def test_nobody_listens(world: World) -> None:
    await world.source()
    async with answering(b"") as port:
        pass  # it is closed again when this ends
    migrate = await world.migrate(port, insecure=True)
    assert await migrate.end() == 5
    assert migrate.last["code"] == "connect_failed"
    await world.check_runs("s")


# ---- what does not fit ----


async def test_no_common_version_at_the_destination(world: World) -> None:
    await world.room()
    _, port = await world.serve(insecure=True)
    received = await say(port, PREFACE + whole(replace(HELLO, versions=(7 << 16 | 3,))))
    assert last_word(received) == ErrorCode.NO_COMMON_VERSION


async def test_overlapping_regions_at_the_destination(world: World) -> None:
    await world.room()
    serve, port = await world.serve(insecure=True)
    regions = (Region(0, 0, 1 << 20), Region(1, 1 << 19, 1 << 20))
    guest = Guest("overlapping", Architecture.SYNTHETIC, 1, 1 << 20, regions)
    wrong = unchecked.frame(Guest.type, unchecked.body(guest), sequence=1)
    received = await say(port, PREFACE + whole(HELLO) + wrong)
    assert last_word(received) == ErrorCode.BAD_REGION
    session = await serve.until("session")
    assert session["code"] == "bad_region"
    assert (await world.status("d")).state == "empty"


def described(**changes: object) -> SimulatedSourceGuest:
    guest = SimulatedSourceGuest(WorkloadParameters.for_memory(1 << 20, 1 << 19), rate_bytes_s=1 << 20)
    object.__setattr__(guest, "description", replace(guest.description, **changes))
    return guest


async def test_a_guest_that_does_not_fit_is_refused_and_runs_on(world: World) -> None:
    await world.room("d", "--memory-limit", "16MiB")
    _, port = await world.serve(insecure=True)
    region = Region(0, 0, 1 << 20)
    cases: list[tuple[ErrorCode, dict[str, object]]] = [
        (ErrorCode.PAGE_SIZE, {"regions": (replace(region, granule_log2=14),)}),
        (ErrorCode.ARCHITECTURE, {"architecture": Architecture.X86_64}),
        (ErrorCode.CPU_FEATURES, {"cpu_features": ("avx512f",)}),
        (ErrorCode.REGION_KIND, {"regions": (replace(region, kind=RegionKind.PMEM),)}),
        (ErrorCode.LIMIT_MISMATCH, {"state_bytes": 1 << 40}),
    ]
    for code, changes in cases:
        guest = described(**changes)
        transport = await open_tcp(Address("127.0.0.1", port))
        result = await Source(guest, transport).run()
        assert (result.outcome, result.code) == (Outcome.ROLLED_BACK, code)
        assert guest.running
        assert guest.advance(1.0) > 0
        assert guest.workload.audit().errors == 0
    assert (await world.status("d")).state == "empty"


async def test_a_destination_that_is_too_small(world: World) -> None:
    """What it announces is checked before anything is reserved; what it has, when it is asked to reserve."""
    await world.source()
    await world.room("d", "--memory-limit", "8MiB")
    _, announced = await world.serve("--memory-limit", "12MiB", insecure=True)
    migrate = await world.migrate(announced, insecure=True)
    assert await migrate.end() == 4, migrate.said()
    assert migrate.last["code"] in {"limit_memory", "limit_mismatch"}
    await world.check_runs("s")
    _, full = await world.serve(insecure=True, host="c")
    migrate = await world.migrate(full, insecure=True)
    assert await migrate.end() == 4, migrate.said()
    assert (migrate.last["code"], migrate.last["by_peer"]) == ("full", True)
    await world.check_runs("s")
    assert (await world.status("d")).state == "empty"


async def test_a_destination_that_has_a_guest_already(world: World) -> None:
    await world.source("one")
    await world.source("two")
    await world.room()
    _, port = await world.serve(insecure=True)
    first = await world.migrate(port, holder="one", insecure=True)
    assert await first.end() == 0, first.said()
    second = await world.migrate(port, holder="two", insecure=True)
    assert await second.end() not in {0, 70}, second.said()
    assert second.last["outcome"] == "rolled_back"
    await world.check_runs("two")
    await world.check_runs("d")


async def test_two_migrations_of_one_guest(world: World) -> None:
    """The holder has one controller; the second source is told so and touches nothing."""
    await world.source()
    await world.room()
    _, port = await world.serve(insecure=True)
    first = await world.migrate(port, "--bandwidth", "2MiB/s", insecure=True)
    await first.until("progress", lambda line: line["bytes_sent"] > 1 << 20)
    second = await world.migrate(port, insecure=True)
    assert await second.end() == 4, second.said()
    assert second.last["code"] == "busy"
    assert first.process.returncode is None


# ---- misuse ----


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["migrate", "--to", "127.0.0.1:1", "--holder", "none.sock"], "--insecure"),
        (["migrate", "--to", "nowhere", "--holder", "none.sock", "--insecure"], "host:port"),
        (["serve", "--listen", "127.0.0.1:0", "--holder", "none.sock", "--pki", "."], "--peers"),
        (["migrate", "--to", "h:1", "--holder", "n", "--insecure", "--json", "--follow"], "exclude"),
        (["holder", "--socket", "x.sock", "--memory", "1kB"], "pages"),
        (["demo", "--memory", "64KiB"], "at least"),
    ],
)
async def test_misuse_is_explained(world: World, arguments: list[str], said: str) -> None:
    command = await world.start(*arguments)
    assert await command.end() == 2, command.said()
    assert said in command.said() + str(command.lines)


async def test_no_holder(world: World) -> None:
    command = await world.start("migrate", "--to", "127.0.0.1:1", "--holder", "none.sock", "--insecure")
    assert await command.end() == 6
    assert "no holder at none.sock" in command.said()
