"""Sessions in which pages have no hashes, because both sides were told so [MEM-20]."""

from __future__ import annotations

import pytest
from arrival import completed
from core_support import DestinationRig, code_of
from resume_support import SECONDS, FirstSourceRig, SecondSourceRig
from test_core_departure import die as source_dies
from test_core_departure import migration as written_while_moved
from test_core_reopening import die as destination_dies
from test_core_reopening import opening_of

from sterna.core.negotiate import BASE_FEATURES, offer
from sterna.core.tables import DestinationState, SourceState
from sterna.memory import pages
from sterna.registry import ErrorCode, Feature
from sterna.testing.pair import Pair
from sterna.wire import FrameReader, PagesAnnounced
from sterna.wire import records as r

UNHASHED = {Feature.UNHASHED}
STYLES = pytest.mark.parametrize("switchover", ["stop-and-copy", "bitmap", "post-copy"])


@pytest.fixture(autouse=True)
def no_hash(monkeypatch):
    """Nobody computes a hash of pages."""

    def computed(_):
        raise AssertionError("a page was hashed")

    monkeypatch.setattr(pages, "xxh3_64_intdigest", computed)


def migration(switchover: str) -> Pair:
    """Guests that write while they run, and whose pages go without hashes."""
    return written_while_moved(switchover, also=UNHASHED)


@STYLES
def test_neither_side_computes_a_hash_and_the_guest_arrives(switchover):
    """[same-memory] [MEM-20] [MEM-21] The digests agree on which pages are held, and both sides say it."""
    pair = migration(switchover)
    pair.run(chunk=100_000)
    completed(pair)
    assert not pair.source.result.verified
    assert not pair.destination.result.verified


def test_whoever_takes_the_session_up_again_goes_without_hashes_too():
    """[NEG-9] [RES-2] [RES-13] [RES-19] A link that is lost, and processes that die, once at each side."""
    pair = migration("bitmap")
    pair.start()
    while pair.destination.state is not DestinationState.RECEIVING:
        assert pair.step(chunk=20_000)
    pair.cut()
    pair.reconnect()
    while pair.destination.state is not DestinationState.FETCHING:
        assert pair.step(chunk=100_000)
    opening = opening_of(pair)
    for death in (lambda: destination_dies(pair, opening), lambda: source_dies(pair)):
        for _ in range(12):
            assert pair.step(chunk=20_000)
        death()
    pair.run(chunk=100_000, steps=200_000)
    completed(pair)
    assert pair.source.result.verified is False
    assert pair.destination.result.verified is False


def test_whoever_takes_it_up_knows_before_anybody_has_answered():
    """[MEM-21] What it reports of a guest that waits there for good, or of which no more is heard."""
    pair = migration("bitmap")
    pair.start()
    while pair.destination.state is not DestinationState.FETCHING:
        assert pair.step(chunk=100_000)
    assert opening_of(pair).without_round(None, pair.now).account.verified is False
    assert source_dies(pair).account.verified is False


def test_a_process_that_dies_before_the_handover():
    """[RES-7] The next one has room, and no round."""
    pair = migration("stop-and-copy")
    pair.start()
    while pair.destination.state is not DestinationState.RECEIVING:
        assert pair.step(chunk=20_000)
    destination_dies(pair, opening_of(pair))
    pair.run(chunk=100_000)
    completed(pair)


def bare_source() -> FirstSourceRig:
    """A source that goes without, and so does its destination."""
    return FirstSourceRig(features=offer(more=dict.fromkeys(UNHASHED, 0)))


def test_what_the_source_sends():
    """[MEM-20] [PGS-25] As many hashes as ever, and each of them 0."""
    rig = bare_source()
    heard: list[r.Pages] = []
    announced = FrameReader.next_event

    def listen(reader):
        event = announced(reader)
        if isinstance(event, PagesAnnounced):
            heard.append(event.record)
        return event

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameReader, "next_event", listen)
        rig.until(SourceState.ACKING)
    assert [each for table in heard for each in table.hashes.tolist()] == [0]


def test_a_destination_that_rejects_pages_nevertheless():
    """[RAK-6]"""
    rig = bare_source().until(SourceState.ACKING)
    rig.say(rig.ack(r.PageRange(0, 1, 1)))
    assert code_of(rig) is ErrorCode.BAD_VALUE
    assert rig.machine._account.error.clause == "RAK-6"


def test_a_destination_that_says_so_when_it_is_back():
    """[BMP-9] Who takes the session up goes by what it was opened with."""
    features = offer(more={**dict.fromkeys(UNHASHED, 0), Feature.RESUME: SECONDS})
    rig = SecondSourceRig(features=features).until(SourceState.RESUMING)
    rig.say(rig.welcome_back(held_frames=1), rig.held(rejected=True))
    assert code_of(rig) is ErrorCode.BAD_VALUE
    assert rig.machine._account.error.clause == "BMP-9"


class UnhashedRig(DestinationRig):
    """A destination that goes without, and so does its source."""

    def __init__(self) -> None:
        super().__init__(features=BASE_FEATURES | UNHASHED)

    def hello(self, **changes: object) -> r.Hello:
        """A HELLO that offers to."""
        return super().hello(features=offer(more=dict.fromkeys(UNHASHED, 0)), **changes)

    def batch(self, *args: object) -> pages.EncodedBatch:
        """Pages with a hash of 0."""
        found = pages.RegionPages(self.table, {0: memoryview(self.image)})
        return found.encode(0, *args, hashed=False)


def test_damage_is_taken_as_content():
    """[MEM-20] This is what the operators have asked for."""
    rig = UnhashedRig().until(DestinationState.RECEIVING)
    rig.pages((0,), (4,), damage=True)
    rig.finish_round()
    ack = rig.last()
    assert isinstance(ack, r.RoundAck)
    assert (ack.pages, ack.rejected) == (4, ())
    assert not rig.machine._digest.stale_pages


def test_a_source_that_sends_hashes_nevertheless():
    """[PGS-25]"""
    rig = UnhashedRig().until(DestinationState.RECEIVING)
    table = rig.batch((0,), (4,)).table(1, 1)
    table.hashes[0] = 5
    rig.say_bytes(rig.encode(table, bytes(rig.image)))
    assert code_of(rig) is ErrorCode.BAD_VALUE
    assert rig.machine._account.error.clause == "PGS-25"
