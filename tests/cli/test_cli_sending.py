"""Both commands in one process and one event loop, over real sockets, certificates and holders.

What only real processes can show (signals, kills, stalled peers) is in tests/e2e.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
from cli_support import make_hosts, without_signals

import holder_support
from holder_support import GUEST_ID, MEMORY_BYTES, holder
from sterna.cli import serve as serve_module
from sterna.cli.endpoint import Ending, Security
from sterna.cli.exits import Exit, exit_of, gravest
from sterna.cli.follow import Reporter
from sterna.cli.output import Output
from sterna.cli.ownership import Ownership
from sterna.cli.sending import Sending
from sterna.core.events import Admission
from sterna.core.records import (
    NO_SESSION,
    Claiming,
    Decided,
    Granted,
    Record,
    RunnerRecord,
    SessionRecord,
)
from sterna.core.records import Side as SessionSide
from sterna.errors import ConfigError, GuestError, RecordError, TransportError
from sterna.guest.holder_client import connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.host.agent import HostSession
from sterna.host.evidence import Evidence
from sterna.host.lease_files import FileLeaseStore, create_file_store
from sterna.host.records_shelf import RecordsShelf
from sterna.host.recovery import Recovered, Recovery
from sterna.net import recorder as recorder_module
from sterna.net.connect import Address
from sterna.net.options import Options
from sterna.net.transport import Peer
from sterna.observe.outcome import Ended
from sterna.observe.recording import RecordingReader, Side
from sterna.observe.sessions import Over, Sessions
from sterna.wire.records import NO_TOKEN, Hello, Runner, Verdict

Lines = list[dict[str, object]]


class Listening(Reporter):
    """Keeps what a command says."""

    def __init__(self) -> None:
        super().__init__(Output(json=True))
        self.lines: Lines = []
        self.said: list[str] = []
        self.results: Lines = []
        self.listening = trio.Event()
        self.port = 0

    def emit(self, fields: object) -> None:
        assert isinstance(fields, dict)
        self.lines.append(fields)
        if fields["event"] == "listening":
            self.port = int(fields["addresses"][0].rpartition(":")[2])
            self.listening.set()

    def notice(self, text: str) -> None:
        self.said.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)

    def result(self, fields: object) -> None:
        assert isinstance(fields, dict)
        self.results.append(fields)

    def events(self, name: str) -> Lines:
        return [line for line in self.lines if line["event"] == name]


@dataclass
class Hosts:
    """host-a has a guest, host-b has room."""

    directory: Path
    pki: Path
    endings: list[Ending]
    here: HolderEngine
    there: HolderEngine
    receiver: Listening = field(default_factory=Listening)
    sender: Listening = field(default_factory=Listening)

    def security(self, name: str, *, peers: bool = True) -> Security:
        return Security(pki=self.pki, name=name, peers=self.pki / "peers.toml" if peers else None)

    def serving(self, **changes: object) -> serve_module._Job:
        job = serve_module._Job(
            address=Address("127.0.0.1", 0),
            holder=self.directory / "b",
            spawn_holder=False,
            security=self.security("host-b"),
            ownership=Ownership(records=self.directory / "records-b"),
            options=Options(),
            once=True,
            evidence=None,
            reporter=self.receiver,
            die_with=None,
        )
        return replace(job, **changes)  # type: ignore[arg-type]

    def sending(self, port: int, **changes: object) -> Sending:
        job = Sending(
            address=Address("127.0.0.1", port),
            holder=self.directory / "a",
            peer="",
            security=self.security("host-a", peers=False),
            ownership=Ownership(records=self.directory / "records-a"),
            undecided_after_s=0.5,
            options=Options(on_event=self.sender.on_event),
            downtime_s=0.3,
            max_rounds=30,
            evidence=None,
            reporter=self.sender,
            die_with=None,
        )
        return replace(job, **changes)  # type: ignore[arg-type]

    @asynccontextmanager
    async def served(self, **changes: object) -> AsyncIterator[int]:
        """A destination that listens; its port. Its exit code is `served_exit` afterwards."""
        job = self.serving(**changes)
        self._served = len(self.endings)

        async def run() -> None:
            self.served_exit = await job.run()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await self.receiver.listening.wait()
            yield self.receiver.port

    def stop(self) -> None:
        """Ctrl-C at the destination."""
        self.endings[self._served].end("SIGINT")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hosts(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def hosts(tmp_path: Path, pki: Path) -> Iterator[Hosts]:
    with (
        without_signals() as endings,
        holder(tmp_path / "a", with_guest=True) as here,
        holder(tmp_path / "b", with_guest=False) as there,
    ):
        yield Hosts(tmp_path, pki, endings, here, there)


async def test_a_guest_moves(hosts: Hosts) -> None:
    """[SEC-14] [SEC-15] With evidence, as both were told to keep it; and both say what that is."""
    evidence = Evidence(hosts.directory / "evidence")
    async with hosts.served(evidence=evidence) as port:
        assert await hosts.sending(port, evidence=evidence).run() is Exit.OK
    assert hosts.served_exit is Exit.OK
    (sent,), (taken,) = hosts.sender.results, hosts.receiver.results
    assert sent["outcome"] == taken["outcome"] == "completed"
    assert (sent["role"], taken["role"]) == ("source", "destination")
    assert sent["digest"] == taken["digest"] is not None
    assert sent["guest"] == taken["guest"] == {"id": GUEST_ID.hex(), "name": "web-1"}
    assert sent["memory_bytes"] == MEMORY_BYTES
    assert sent["tracker"] == "compare"
    assert taken["runs"] is True
    assert taken["sessions"] == 1
    assert [one["peer"]["identity"] for one in (sent, taken)] == ["host-b", "host-a"]
    assert [one["tls"]["mutual"] for one in (sent, taken)] == [True, True]
    assert hosts.there.state == "running"
    assert sent["evidence_failures"] == taken["evidence_failures"] == []
    images = [evidence.path(name).read_bytes() for name in ("source.img", "destination.img")]
    assert images[0] == images[1]
    assert len(images[0]) == MEMORY_BYTES
    assert any(said.startswith("the guest runs at host-b at 127.0.0.1") for said in hosts.sender.said)
    assert any("over mutual TLSv1.3" in said for said in hosts.sender.said)
    assert sum("every secret" in said for said in (*hosts.sender.said, *hosts.receiver.said)) == 2


async def test_an_owner_that_cannot_be_recorded_is_told(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[ONE-63] The guest has moved all the same."""
    persist = HostSession.persist

    async def fails(self: HostSession, record: Record) -> None:
        if isinstance(record, Decided):
            raise RecordError("no space left")
        await persist(self, record)

    monkeypatch.setattr(HostSession, "persist", fails)
    async with hosts.served() as port:
        assert await hosts.sending(port).run() is Exit.OK
    (sent,) = hosts.sender.results
    assert (sent["outcome"], [each["code"] for each in sent["warnings"]]) == ("completed", ["record_failed"])
    assert sent["warnings"][0]["text"] in hosts.sender.said
    assert hosts.receiver.results[0]["warnings"] == []


async def test_what_passes_is_recorded_at_both_ends(hosts: Hosts) -> None:
    """[SEC-14] [SEC-15] Inside of TLS, for the owner alone, and said aloud; and it is a good session."""
    here, there = hosts.directory / "a.rec", hosts.directory / "b.rec"
    async with hosts.served(record=there) as port:
        assert await hosts.sending(port, record=here).run() is Exit.OK
    for path, said, side in (
        (here, hosts.sender.said, Side.SOURCE),
        (there, hosts.receiver.said, Side.DESTINATION),
    ):
        assert any(text.startswith(f"{path} holds the guest's memory") for text in said)
        assert path.stat().st_mode & 0o777 == 0o600
        with path.open("rb") as file:
            reader = RecordingReader(file)
            steps = list(Sessions(reader.side, reader.clock).follow(reader))
        assert reader.side is side
        assert not reader.cut_off
        (over,) = [step for step in steps if isinstance(step, Over)]
        assert over.follower.fault is None
        assert over.follower.outcome().ended is Ended.COMPLETED
    (sent,), (taken,) = hosts.sender.results, hosts.receiver.results
    assert sent["recording_failures"] == taken["recording_failures"] == []


async def test_a_recording_that_fails_is_told_and_changes_nothing(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[REC-14]"""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(recorder_module, "_write_all", full)
    path = hosts.directory / "a.rec"
    async with hosts.served() as port:
        assert await hosts.sending(port, record=path).run() is Exit.OK
    (sent,) = hosts.sender.results
    assert sent["outcome"] == "completed"
    (failure,) = sent["recording_failures"]
    assert failure.startswith(f"{path}: the recording ends here, and the migration does not: No space left")
    assert failure in hosts.sender.said


async def test_a_guest_is_shown_under_the_runner_that_it_runs_under(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[ONE-6] [HEL-7] It moves on, and its new host shows what the session before has made."""
    seen: list[tuple[Hello, Runner]] = []
    admit = HostSession.admit

    async def note(session: HostSession, hello: Hello, peer: Peer) -> Admission | Verdict:
        made = await admit(session, hello, peer)
        assert isinstance(made, Admission)
        seen.append((hello, made.runner))
        return made

    monkeypatch.setattr(HostSession, "admit", note)
    with holder(hosts.directory / "c", with_guest=False) as last:
        for here, there in (("a", "b"), ("b", "c")):
            source, destination = (
                Ownership(records=hosts.directory / f"records-{each}") for each in (here, there)
            )
            async with hosts.served(holder=hosts.directory / there, ownership=destination) as port:
                sending = hosts.sending(port, holder=hosts.directory / here, ownership=source)
                assert await sending.run() is Exit.OK
            hosts.receiver.listening = trio.Event()
        (first, made), (second, newest) = seen
        assert (first.epoch, first.runner) == (1, Runner("here", b"r" * 16))
        assert (second.epoch, second.runner) == (2, made)
        assert (last.epoch, last.runner) == (3, newest)
        assert len({first.runner.id, made.id, newest.id}) == 3


async def test_holder_and_store_agree_before_anything_is_sent(hosts: Hosts) -> None:
    """[ONE-9] [ONE-16] [ONE-55] Nothing listens: whoever dialled would end with another error."""
    leases = hosts.directory / "leases"
    leases.mkdir()

    async def refusal() -> str:
        ownership = Ownership(records=hosts.directory / "records-a", store=str(leases))
        with pytest.raises(BaseExceptionGroup) as caught:
            await hosts.sending(1, ownership=ownership).run()
        return f"{exit_of(caught.value).name}: {gravest(caught.value)}"

    assert "REFUSED: not_ready: no lease store at" in await refusal()
    create_file_store(leases)
    assert "USAGE: the guest has no slot in" in await refusal()
    await FileLeaseStore(leases).claim(GUEST_ID, 1, Runner("elsewhere", b"e" * 16))
    said = await refusal()
    assert said.startswith("REFUSED: stale_epoch: ")
    assert "its newest slot is 1, of 'elsewhere'" in said
    assert hosts.here.state == "running"


async def test_a_guest_with_a_slot_does_not_leave_without_a_store(hosts: Hosts) -> None:
    """[ONE-55] Its host's records know of the slot; what they know without one is in no store."""
    records, image = hosts.directory / "records-a", b"i" * 16
    async with RecordsShelf(records, "a test").opened(GUEST_ID) as keeper:
        assert keeper is not None
        await keeper.append(RunnerRecord(NO_SESSION, 1, hosts.here.runner, image))
    leases = hosts.directory / "leases"
    create_file_store(leases)
    for named, said in (None, "name it with --store [ONE-55]"), (str(leases), "another one, or has lost it"):
        ownership = Ownership(records=records) if named is None else Ownership(records=records, store=named)
        with pytest.raises(BaseExceptionGroup) as caught:
            await hosts.sending(1, ownership=ownership).run()
        assert isinstance(gravest(caught.value), ConfigError)
        assert said in str(gravest(caught.value))
    assert hosts.here.state == "running"


async def test_nothing_tells_a_token(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """[SEC-5] Neither the events for programs nor the words for people, nor the log."""
    tokens: list[bytes] = []
    generate = secrets.token_bytes

    def remember(size: int) -> bytes:
        made = generate(size)
        if size == len(NO_TOKEN):
            tokens.append(made)
        return made

    monkeypatch.setattr(secrets, "token_bytes", remember)
    caplog.set_level(logging.DEBUG)
    async with hosts.served() as port:
        assert await hosts.sending(port).run() is Exit.OK
    assert tokens  # GREASE may by chance be as long, and is not told either
    told = [*hosts.sender.lines, *hosts.receiver.lines, *hosts.sender.results, *hosts.receiver.results]
    words = f"{told} {hosts.sender.said} {hosts.receiver.said} {caplog.text}"
    assert len(told) > 10
    for token in tokens:
        assert token.hex() not in words.lower()
        assert repr(token)[2:-1] not in words


async def test_both_sides_report_the_same_rounds(hosts: Hosts) -> None:
    async with hosts.served() as port:
        await hosts.sending(port).run()
    rounds = [
        [line["pages"] for line in reporter.events("round_finished")]
        for reporter in (hosts.sender, hosts.receiver)
    ]
    assert rounds[0] == rounds[1]
    assert rounds[0][0] == MEMORY_BYTES // 4096
    # The events of one connection can be told from another's.
    assert {line["connection"] for line in hosts.receiver.events("round_finished")} == {1}
    assert hosts.receiver.events("session")[0]["outcome"] == "completed"


async def test_insecure_says_so_on_both_sides(hosts: Hosts) -> None:
    """[TLS-2]"""
    plain = Security(insecure=True, name="host")
    async with hosts.served(security=plain) as port:
        assert await hosts.sending(port, security=plain).run() is Exit.OK
    for reporter in (hosts.sender, hosts.receiver):
        assert any("--insecure: no TLS. Everybody on the network can read" in said for said in reporter.said)
        assert reporter.results[0]["tls"] is None
        assert reporter.results[0]["peer"]["identity"] is None
    assert any("in plaintext" in said for said in hosts.sender.said)


# ---- who may not ----


async def test_a_guest_that_the_peer_may_not_send(hosts: Hosts) -> None:
    peers = hosts.directory / "peers.toml"
    peers.write_text('[[peer]]\nidentity = "host-a"\nmay_send = ["db-*"]\n')
    security = replace(hosts.security("host-b"), peers=peers)
    async with hosts.served(security=security) as port:
        assert await hosts.sending(port).run() is Exit.REFUSED
    assert hosts.sender.results[0]["code"] == "not_authorised"
    assert hosts.sender.results[0]["by_peer"] is True
    assert hosts.here.state == "running"
    assert hosts.there.state == "empty"
    assert hosts.sender.said[-1].endswith("add the guest to this host's may_send in the peer list there")


async def test_a_peer_that_may_not_receive_the_guest(hosts: Hosts) -> None:
    peers = hosts.directory / "peers.toml"
    peers.write_text('[[peer]]\nidentity = "host-b"\nmay_receive = ["db-*"]\n')
    security = replace(hosts.security("host-a"), peers=peers)
    async with hosts.served(once=False) as port:
        assert await hosts.sending(port, security=security).run() is Exit.REFUSED
        hosts.stop()
    (sent,) = hosts.sender.results
    assert (sent["outcome"], sent["code"], sent["by_peer"]) == ("rolled_back", "not_authorised", False)
    assert "may_receive of this peer" in sent["text"]
    assert hosts.here.state == "running"


async def test_a_peer_that_is_not_whom_one_expected(hosts: Hosts) -> None:
    async with hosts.served(once=False) as port:
        with pytest.raises(BaseExceptionGroup) as caught:
            await hosts.sending(port, peer="host-c").run()
        assert caught.group_contains(TransportError, match="is 'host-b', not 'host-c'")
        hosts.stop()
    assert hosts.here.state == "running"


async def test_a_destination_that_has_a_guest_already(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says at once that it cannot serve; and to a peer, that it takes no guest."""
    with pytest.raises(BaseExceptionGroup) as caught:
        await hosts.serving(holder=hosts.directory / "a").run()
    assert caught.group_contains(ConfigError, match="has a guest already: it is running")
    async with hosts.served(once=False) as port:
        assert await hosts.sending(port).run() is Exit.OK
        monkeypatch.setattr(holder_support, "GUEST_ID", b"c" * 16)
        with holder(hosts.directory / "c", with_guest=True):
            assert await hosts.sending(port, holder=hosts.directory / "c").run() is Exit.REFUSED
        hosts.stop()
    assert hosts.sender.results[1]["code"] == "refused"
    assert hosts.sender.results[1]["outcome"] == "rolled_back"
    # The guest that came first does not notice, and a listener that was asked to end has done its work.
    assert hosts.there.state == "running"
    assert hosts.served_exit is Exit.OK
    assert hosts.receiver.results[0]["sessions"] == 2


async def test_no_guest_to_send(hosts: Hosts) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await hosts.sending(1, holder=hosts.directory / "b").run()
    assert caught.group_contains(ConfigError, match="no guest to send: the holder is empty")


async def test_a_guest_that_another_endpoint_has(hosts: Hosts) -> None:
    """[ONE-53] It may be under way: whoever comes second opens no session."""
    async with await connect_holder(hosts.directory / "a") as connection:
        with pytest.raises(BaseExceptionGroup) as caught:
            await hosts.sending(1).run()
        await connection.detach()
    assert caught.group_contains(GuestError, match="busy")


async def test_a_guest_that_was_granted_to_another_host(hosts: Hosts) -> None:
    """[ONE-53] [ONE-47] It may run there: nobody but its owner sends it anywhere."""
    async with await connect_holder(hosts.directory / "a") as connection:
        await connection.call("pause")
        await connection.call("grant", {"epoch": 2})
        await connection.detach()
    with pytest.raises(BaseExceptionGroup) as caught:
        await hosts.sending(1).run()
    assert caught.group_contains(GuestError, match="granted to another host at epoch 2")


async def test_no_holder_says_how_to_get_one(hosts: Hosts) -> None:
    nowhere = hosts.directory / "nowhere"
    with pytest.raises(BaseExceptionGroup) as caught:
        await hosts.sending(1, holder=nowhere).run()
    assert caught.group_contains(GuestError, match=f"start one with sterna holder --socket {nowhere}$")
    with pytest.raises(BaseExceptionGroup) as caught:
        await hosts.serving(holder=nowhere).run()
    assert caught.group_contains(GuestError, match="--destination, or add --spawn-holder here$")


# ---- the operator has second thoughts ----


async def test_who_cancels_keeps_the_guest(hosts: Hosts) -> None:
    """The first wish asks; the guest runs on here, and the destination has its room back."""
    async with hosts.served(once=False) as port:
        job = hosts.sending(port, options=Options(bandwidth_bytes_s=1 << 16))
        codes: list[Exit] = []

        async def send() -> None:
            codes.append(await job.run())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while not hosts.receiver.events("round_started"):
                await trio.testing.wait_all_tasks_blocked(0.001)
            hosts.endings[1].end("SIGINT")
        hosts.stop()
    assert codes == [Exit.ROLLED_BACK]
    assert "cancelling: the guest runs on here" in hosts.sender.said
    assert hosts.sender.results[0]["code"] == "cancelled"
    assert hosts.here.state == "running"
    assert hosts.there.state == "empty"


async def test_who_cancels_when_the_guest_has_left_is_too_late(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[CON-72] It moves all the same, and nobody is told that it was cancelled."""
    persist = HostSession.persist

    async def persists(self: HostSession, record: Record) -> None:
        if isinstance(record, Claiming):  # HANDOVER has come
            hosts.endings[1].end("SIGINT")
        await persist(self, record)

    monkeypatch.setattr(HostSession, "persist", persists)
    async with hosts.served() as port:
        assert await hosts.sending(port).run() is Exit.OK
    (sent,) = hosts.sender.results
    assert (sent["outcome"], sent["code"]) == ("completed", "too_late")
    assert any("too late to cancel" in said for said in hosts.sender.said)
    assert (hosts.here.state, hosts.there.state) == ("released", "running")


async def sent_on(hosts: Hosts, monkeypatch: pytest.MonkeyPatch, *records: Record, theirs: bool) -> Exit:
    """Send a guest that an earlier process has granted, and wish to cancel before recovery has begun."""
    run, store = Recovery.run, hosts.directory / "leases"
    create_file_store(store)
    leases = FileLeaseStore(store)
    await leases.claim(GUEST_ID, 1, hosts.here.runner)
    if theirs:
        await leases.claim(GUEST_ID, 2, Runner("host-b", b"b" * 16))
    async with RecordsShelf(hosts.directory / "records-a", "a test").opened(GUEST_ID) as keeper:
        assert keeper is not None
        for record in records:
            await keeper.append(record)

    async def runs(self: Recovery) -> Recovered | None:
        hosts.endings[0].end("SIGINT")
        return await run(self)

    monkeypatch.setattr(Recovery, "run", runs)
    ownership = Ownership(records=hosts.directory / "records-a", store=str(store))
    return await hosts.sending(1, ownership=ownership).run()


async def grant(hosts: Hosts) -> None:
    async with await connect_holder(hosts.directory / "a") as connection:
        await connection.call("pause")
        await connection.call("grant", {"epoch": 2})
        await connection.detach()


@pytest.mark.parametrize("theirs", [False, True])
async def test_who_cancels_while_it_is_found_out_who_owns_the_guest(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, theirs: bool
) -> None:
    """[CON-72] The claim is made, and tells: it runs on here and is sent nowhere, or it has moved."""
    await grant(hosts)
    session = SessionRecord(b"s" * 16, 1, SessionSide.SOURCE, b"t" * 32, "host-b", store=True)
    records = session, Granted(b"s" * 16, 2)
    if theirs:
        with pytest.raises(BaseExceptionGroup) as caught:
            await sent_on(hosts, monkeypatch, *records, theirs=True)
        assert caught.group_contains(GuestError, match="too_late: it is the destination's, under epoch 2")
        assert hosts.here.state == "granted"
        return
    assert await sent_on(hosts, monkeypatch, *records, theirs=False) is Exit.ROLLED_BACK
    (told,) = hosts.sender.results
    assert (told["outcome"], told["code"]) == ("rolled_back", None)
    assert (hosts.here.state, hosts.here.epoch) == ("running", 2)


async def test_who_cancels_before_anything_has_begun_interrupts(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        await sent_on(hosts, monkeypatch, theirs=False)
    assert hosts.here.state == "running"


async def test_a_listener_that_is_ended_before_anybody_came(hosts: Hosts) -> None:
    """With --once it was to wait for one session, so it was interrupted; without, that is the usual end."""
    async with hosts.served(once=False):
        hosts.stop()
    assert hosts.served_exit is Exit.OK
    assert hosts.receiver.results == [{"sessions": 0}]
    hosts.receiver = Listening()
    with pytest.raises(BaseExceptionGroup) as caught:
        async with hosts.served(once=True):
            hosts.stop()
    assert caught.group_contains(KeyboardInterrupt)
