"""What endpoints ask of a host about the sessions of a process that is gone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from endpoint_support import PARAMETERS, DestinationGuest
from resume_net_support import NAMES, Resuming
from trio.abc import Clock

from sterna.core import refusing
from sterna.core.events import Outcome
from sterna.core.image_notes import ImageNotes
from sterna.core.policy import PolicySettings
from sterna.core.reopening import Opening
from sterna.errors import GuestError, LocalProtocolError
from sterna.guest.api import GuestDescription
from sterna.limits import RESUME_S, Limits
from sterna.memory.bitmap import expand_runs
from sterna.net.hosting import LocalHost, Reopened
from sterna.net.kept import Sessions, no_session
from sterna.net.memory import memory_transport_pair
from sterna.net.redial import LONGEST_WAIT_S
from sterna.net.transport import Peer
from sterna.registry import VERSION_DRAFT, VERSION_MAJOR, ErrorCode, Owner
from sterna.wire import encode_frame, encode_preface
from sterna.wire.records import Hello, Verdict

BYTES = 64 * 4096


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    return autojump_clock


class Remembering(LocalHost):
    """A host that notes the openings of its sessions, and knows whether their guests run."""

    def __init__(self, *, runs: bool) -> None:
        super().__init__("destination")
        self.runs = runs
        self.noted: dict[bytes, Opening] = {}
        self.asked = self.opened_times = 0
        self.is_asked = trio.Event()
        self.verdict_instead = False
        self.busy_times = 0

    async def opened(self, opening: Opening) -> None:
        assert self.noted.setdefault(opening.welcome.session, opening) == opening
        self.opened_times += 1

    async def reopen(self, hello: Hello, peer: Peer) -> Reopened | Verdict:
        self.asked += 1
        self.is_asked.set()
        await trio.sleep(0.5)  # others come meanwhile
        if self.busy_times:
            self.busy_times -= 1
            raise LocalProtocolError(ErrorCode.BUSY, "an operator looks at the records")
        if self.verdict_instead:
            return Verdict(Owner.DESTINATION, hello.epoch + 1, hello.runner)
        if peer.identity != NAMES[0] or hello.session not in self.noted:
            raise no_session()
        return Reopened(self.noted[hello.session], self.runs)


class Outliving(DestinationGuest):
    """A guest that outlives its endpoint, as those in holders do."""

    taken_over = 0

    async def take_over(self) -> GuestDescription:
        if not self.running:
            raise GuestError("nobody runs here", ErrorCode.REFUSED)
        self.taken_over += 1
        assert self.description is not None
        return self.description


def migration(switchover: str, **changes: object) -> Resuming:
    made = Resuming(
        cuts=(BYTES // 3,),
        link={"identities": NAMES, "rate_bytes_s": 1e6},
        source_options={"policy": PolicySettings(switchover=switchover)},
        destination_options={"post_copy": True},
        destination_host=Remembering(runs=switchover == "post-copy"),
        **changes,
    )
    made.check = lambda: None  # it looks at one process a side
    return made


async def die(migration: Resuming) -> None:
    """The process that had the session is gone, and another one there when the source dials again."""
    await migration.called.wait()
    migration.sessions = Sessions()
    if not migration.room.running:  # what it had reserved is another process's mess now
        migration.room = DestinationGuest(rate_bytes_s=migration.rate_bytes_s, journal=migration.journal)


async def test_another_process_goes_on_with_a_guest_that_runs(virtual_time: Clock) -> None:
    """[RES-13] [PCY-16]"""
    one = migration("post-copy")
    one.room = Outliving(rate_bytes_s=one.rate_bytes_s, journal=one.journal)
    await one.run(lambda: die(one))
    source, (other,) = one.results["source"], one.others
    assert (source.outcome, source.resumed) == (Outcome.COMPLETED, 1)
    assert other.result is not None
    assert other.result.outcome is Outcome.COMPLETED
    assert other.result.digest == source.digest != b""
    assert other.result.after.stale == other.result.after.demanded + other.result.after.pushed == 64
    assert not other.took_up
    assert one.room.taken_over == 1
    assert one.room.workload.audit().errors == 0
    assert one.guest.released


async def test_a_page_that_is_zero_by_now_was_not_when_the_other_process_had_it(virtual_time: Clock) -> None:
    """[RES-13] What is there of rounds before the pause is overwritten, with zeros too."""
    one = migration("post-copy", parameters=replace(PARAMETERS, zero_pages=32))
    one.room = Outliving(rate_bytes_s=one.rate_bytes_s, journal=one.journal)

    async def die_with_old_pages() -> None:
        await die(one)
        missing = (await one.room.missing())[0]
        memory = one.room.memory(0)
        starts, counts = missing.runs()
        for page in expand_runs(starts, counts).tolist():
            memory[page * 4096 : (page + 1) * 4096] = b"o" * 4096

    await one.run(die_with_old_pages)
    assert one.results["source"].outcome is Outcome.COMPLETED
    assert one.room.taken_over == 1
    assert one.room.workload.audit().errors == 0


async def test_another_process_makes_room_again(virtual_time: Clock) -> None:
    """[RES-7] [RES-16]"""
    one = migration("stop-and-copy")
    await one.run(lambda: die(one))
    source, (other,) = one.results["source"], one.others
    assert (source.outcome, source.resumed) == (Outcome.COMPLETED, 1)
    assert other.result is not None
    assert other.result.digest == source.digest
    assert one.destination_host.opened_times == 2  # whoever has room, has the session
    assert one.room.running
    assert one.room.workload.audit().errors == 0


async def test_whoever_comes_while_another_process_is_asked_finds_what_it_finds(virtual_time: Clock) -> None:
    """[RES-4] Two connections, one session: it is looked for once, and the newer connection has it."""
    one = migration("stop-and-copy")

    async def twice() -> None:
        await die(one)
        await one.destination_host.is_asked.wait()
        one.nears[0].abort()

    await one.run(twice)
    assert one.results["source"].outcome is Outcome.COMPLETED
    assert one.destination_host.asked == 1


@pytest.mark.parametrize("switchover", ["stop-and-copy", "post-copy"])
async def test_a_guest_that_has_all_its_pages_is_told_of(virtual_time: Clock, switchover: str) -> None:
    """[RES-15] Its process has died before COMPLETE was recorded: the next one has a guest, and no notes.

    Or other ones: it was to be sent on.
    """
    one = migration(switchover)
    host = one.destination_host
    assert isinstance(host, Remembering)
    one.room = Outliving(rate_bytes_s=one.rate_bytes_s, journal=one.journal)
    await one.run()
    assert one.room.running
    host.runs = True
    if switchover == "post-copy":
        assert ImageNotes.lie_in(await one.room.notes())
        await one.room.notes(64)
    (opening,) = host.noted.values()
    one.sessions = Sessions()
    near, far = memory_transport_pair(**one.link)
    other = one.destination_of(far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.run)
        preface = encode_preface(VERSION_MAJOR, VERSION_DRAFT)
        await near.send([preface, *encode_frame(opening.ticket.next_hello(), 0)])
    assert other.result is not None
    assert other.result.outcome is Outcome.ANSWERED
    assert other.guest is None
    assert one.room.taken_over == 1


@pytest.mark.parametrize("what", ["memory", "styles"])
async def test_another_process_takes_no_more_than_at_an_opening(virtual_time: Clock, what: str) -> None:
    """[RES-16] [GST-9] It was started with other options: nothing is reserved, and the guest runs on."""
    one = migration("auto")

    async def then() -> None:
        await die(one)
        if what == "memory":
            one.destination_options["limits"] = replace(Limits(), memory_bytes=BYTES // 2)
        else:
            one.destination_options["post_copy"] = False

    await one.run(then)
    source = one.results["source"]
    code = ErrorCode.LIMIT_MEMORY if what == "memory" else ErrorCode.MISSING_FEATURE
    assert (source.outcome, source.code) == (Outcome.ROLLED_BACK, code)
    assert one.guest.running
    assert one.room.description is None


async def test_a_host_that_is_busy_is_asked_again_later(virtual_time: Clock) -> None:
    """[RES-18] [REF-2] Its guest runs, and waits for its pages."""
    one = migration("post-copy")
    host = one.destination_host
    assert isinstance(host, Remembering)
    one.room = Outliving(rate_bytes_s=one.rate_bytes_s, journal=one.journal)

    async def then() -> None:
        await die(one)
        host.busy_times = 3

    await one.run(then)
    source = one.results["source"]
    assert (source.outcome, source.resumed) == (Outcome.COMPLETED, 1)
    assert host.asked == 4
    assert [other.result.code for other in one.others if other.result] == [*3 * [ErrorCode.BUSY], None]
    assert one.room.workload.audit().errors == 0


async def test_a_host_that_is_busy_and_does_not_say_for_how_long(
    virtual_time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[RES-18] It is not hammered at, and the session lasts as long as after a lost link."""
    refuse = refusing.Refuse
    monkeypatch.setattr(refusing, "Refuse", lambda code, _, *others: refuse(code, 0, *others))
    one = migration("post-copy")
    host = one.destination_host
    assert isinstance(host, Remembering)
    one.room = Outliving(rate_bytes_s=one.rate_bytes_s, journal=one.journal)
    began = 0.0

    async def then() -> None:
        nonlocal began
        await die(one)
        host.busy_times, began = 1 << 30, trio.current_time()

    await one.run(then)
    assert one.results["source"].outcome is Outcome.MOVED
    assert trio.current_time() - began >= RESUME_S - LONGEST_WAIT_S
    assert 1 < host.asked <= RESUME_S / LONGEST_WAIT_S + 2


@pytest.mark.parametrize("why", ["verdict", "guest", "unknown"])
async def test_what_another_process_cannot_go_on_with(virtual_time: Clock, why: str) -> None:
    """[RES-3] [RES-15] [ONE-38] The source keeps its image."""
    one = migration("post-copy")
    host = one.destination_host
    assert isinstance(host, Remembering)

    async def then() -> None:
        await die(one)
        host.verdict_instead = why == "verdict"
        if why == "unknown":
            host.noted.clear()

    await one.run(then)
    source = one.results["source"]
    assert source.outcome is Outcome.MOVED
    code = {
        "verdict": ErrorCode.CONNECTION_LOST,
        "guest": ErrorCode.GUEST_LOST,
        "unknown": ErrorCode.BAD_TOKEN,
    }
    assert source.code is code[why]
    assert not one.guest.released
    assert not one.guest.running


async def test_a_host_that_notes_nothing(virtual_time: Clock) -> None:
    """[RES-3]"""
    one = Resuming(cuts=(BYTES // 3,))
    await one.run(lambda: die(one))
    assert one.results["source"].code is ErrorCode.BAD_TOKEN
