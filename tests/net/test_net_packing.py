"""Pages that are packed beside a session: they arrive, and in fewer bytes where that can be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import trio

from sterna.core import sending, shares
from sterna.core.events import Event, Outcome, Result, RoundFinished, RoundStarted, SessionResumed
from sterna.core.negotiate import VERSION, Selection
from sterna.core.paying import Paying
from sterna.core.policy import PolicySettings, RoundStats
from sterna.guest.embedded import REGION, EmbeddedGuest
from sterna.limits import EXPANSION, Limits
from sterna.memory.packing import Measure, Packer
from sterna.memory.pages import RegionPages
from sterna.memory.recent import RecentPages
from sterna.memory.regions import RegionTable
from sterna.net.destination import Destination
from sterna.net.memory import memory_transport_pair
from sterna.net.options import Compress, Options
from sterna.net.packing import (
    FIRST_MEASURED_S,
    MEASURED_S,
    SOCKET_BYTES,
    TRIAL_BYTES,
    USELESS_ROUNDS,
    Changes,
    Meter,
    PackingPages,
    _first_bytes,
    pages_to_send,
)
from sterna.net.source import Source
from sterna.net.steady import SteadyPages
from sterna.registry import Feature
from sterna.wire.records import Region

MIB = 1 << 20
PAGE = 4096
TEXT = (b"something that a guest might have written, more than once, and again: %d\n" * 60)[:PAGE]
RANDOM = np.random.default_rng(3).bytes(2 * MIB)
STATS = RoundStats(1, 256, MIB, 1.0, 0, 0, 0, 1e6, 0.0)


class Quiet(EmbeddedGuest):
    """Memory and nothing else; as long as it runs it writes a byte of some of its pages after each round."""

    def __init__(self, memory: bytearray, rounds: int = 0) -> None:
        super().__init__(memory, guest_id=b"q" * 16)
        self.bytes, self.rounds = memory, rounds

    def stop(self) -> None: ...

    def start(self) -> None: ...

    def save(self) -> bytes:
        return b"state"

    def load(self, state: bytes) -> None:
        assert state == b"state"

    def on_event(self, event: Event) -> None:
        if isinstance(event, RoundStarted) and not event.last and self.rounds:
            self.rounds -= 1
            for page in range(0, len(self.bytes) // PAGE, 2):
                self.bytes[page * PAGE + 9] ^= 0x5A
                self.wrote(page * PAGE + 9, 1)


async def move(memory: bytearray, rounds: int = 0, **options: object) -> tuple[Result, Source]:
    """Move a guest; it is there then, byte for byte."""
    guest, there = Quiet(memory, rounds), bytearray(len(memory))
    near, far = memory_transport_pair()
    source = Source(guest, near, options=Options(on_event=guest.on_event, **options))
    destination = Destination(lambda _: Quiet(there), far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(destination.run)
        result = await source.run()
    assert result.outcome is Outcome.COMPLETED, result
    assert destination.result is not None
    assert destination.result.digest == result.digest
    assert there == memory
    return result, source


def wire_bytes(result: Result) -> int:
    return sum(stats.bulk_bytes for stats in result.rounds)


@pytest.mark.parametrize("compress", [Compress.AUTO, Compress.ALWAYS])
async def test_what_compresses_takes_fewer_bytes(compress) -> None:
    """[PGS-16] [NEG-7] Over a link that is slow enough for anybody."""
    result, _ = await move(bytearray(TEXT * 384), compress=compress, bandwidth_bytes_s=3e6)
    assert wire_bytes(result) < 384 * PAGE * 0.8


async def test_random_memory_goes_as_it_is() -> None:
    result, _ = await move(bytearray(RANDOM), compress=Compress.ALWAYS)
    assert wire_bytes(result) == len(RANDOM)


async def test_without_being_asked_nothing_is_packed() -> None:
    result, _ = await move(bytearray(TEXT * 256))
    assert wire_bytes(result) == 256 * PAGE


async def test_a_destination_that_cannot() -> None:
    """[NEG-5] Then nothing is packed either."""
    memory = bytearray(TEXT * 256)
    guest, there = Quiet(memory), bytearray(len(memory))
    near, far = memory_transport_pair()
    source = Source(guest, near, options=Options(compress=Compress.ALWAYS))
    destination = Destination(lambda _: Quiet(there), far)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sterna.net.options.PACKED", frozenset())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(destination.run)
            result = await source.run()
    assert (result.outcome, wire_bytes(result)) == (Outcome.COMPLETED, 256 * PAGE)
    assert there == memory


async def test_changes_of_random_pages_take_few_bytes() -> None:
    """[PGS-19] Pages of which a byte was written in every round; the first sends them whole."""
    result, _ = await move(bytearray(RANDOM), rounds=3, compress=Compress.ALWAYS)
    assert len(result.rounds) > 1
    assert wire_bytes(result) < len(RANDOM) * 1.1
    first, second, *_ = result.rounds
    assert (first.versions_asked, first.versions_found) == (512, 0)
    assert second.versions_asked == second.versions_found == second.pages


class Cornered(Quiet):
    """It writes to the last quarter of its memory: to every second page first, and to all at the end."""

    def stop(self) -> None:
        self._write(1)

    def on_event(self, event: Event) -> None:
        if isinstance(event, RoundStarted) and event.round == 1:
            self._write(2)

    def _write(self, step: int) -> None:
        for page in range(len(self.bytes) // PAGE * 3 // 4, len(self.bytes) // PAGE, step):
            self.bytes[page * PAGE + 9] ^= 0x5A
            self.wrote(page * PAGE + 9, 1)


async def test_near_what_the_guest_writes_versions_are_kept_in_the_first_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """[PGS-19] There is room for a part of the guest: not for what is sent once."""
    monkeypatch.setattr(sending, "LOOK_BYTES", MIB // 4)
    monkeypatch.setattr(sending, "FIRST_LOOK_BYTES", MIB // 4)
    monkeypatch.setattr(shares, "NEAR_BYTES", MIB // 2)
    monkeypatch.setattr(f"{__name__}.Quiet", Cornered)
    options = {"versions_bytes": MIB, "batch_bytes": MIB // 8}
    result, _ = await move(bytearray(RANDOM), compress=Compress.ALWAYS, **options)
    assert (result.rounds[0].pages, result.rounds[-1].pages) == (512 - 64, 128)
    assert 512 * PAGE < wire_bytes(result) < 516 * PAGE


async def test_a_cache_of_other_versions_is_cleared_and_its_pages_go_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """[PGS-20] Versions that the destination does not hold: it rejects what is made of them."""
    kept: list[RecentPages] = []
    wrong = np.arange(0, 16, 2)
    known: list[int] = []
    all_rounds = PolicySettings(0.001, max_rounds=3, fixed_cost_s=1, on_exhausted="switch")

    class Remembering(RecentPages):
        def __init__(self, table: RegionTable, room_bytes: int) -> None:
            super().__init__(table, room_bytes)
            kept.append(self)

    class Watching(Quiet):
        def on_event(self, event: Event) -> None:
            super().on_event(event)
            match event:
                case RoundStarted(2):
                    versions = kept[0].versions(REGION, 0, 16)[::2]
                    versions[:, 99] ^= 0x5A
                    kept[0].sent(REGION, wrong, versions)
                case RoundFinished():
                    known.append(int(np.count_nonzero(kept[0].known(REGION, np.arange(len(RANDOM) // PAGE)))))
                case _:
                    pass

    monkeypatch.setattr("sterna.net.packing.RecentPages", Remembering)
    monkeypatch.setattr(f"{__name__}.Quiet", Watching)
    result, _ = await move(bytearray(RANDOM), rounds=3, compress=Compress.ALWAYS, policy=all_rounds)
    first, second, third, _ = result.rounds
    assert (first.rejected_pages, second.rejected_pages, third.rejected_pages) == (0, len(wrong), 0)
    assert known[:2] == [len(RANDOM) // PAGE, 0]
    assert second.bulk_bytes < third.bulk_bytes  # of nothing that is sent then a version is known


async def test_without_memory_for_versions_there_are_no_changes() -> None:
    result, _ = await move(bytearray(RANDOM), rounds=1, compress=Compress.ALWAYS, versions_bytes=0)
    assert wire_bytes(result) >= len(RANDOM) * 1.5


# ---- the parts ----


def test_what_passes_is_measured_while_there_is_something_to_send() -> None:
    paying = Paying()
    meter = Meter(paying)
    now = 0.0
    for _ in range(SOCKET_BYTES // MIB):  # the socket takes that at once
        meter.goes(2 * MIB, MIB, now)
    assert paying.link_bytes_s == math.inf
    for _ in range(30):
        now += 0.01
        meter.goes(2 * MIB, MIB, now)
    assert paying.link_bytes_s == pytest.approx(200 * MIB)  # of pages, as all of it is of what is in use
    meter.interrupted()
    now += 10
    for _ in range(SOCKET_BYTES // MIB):
        meter.goes(2 * MIB, MIB, now)
    assert paying.link_bytes_s == pytest.approx(200 * MIB)
    now += MEASURED_S
    meter.goes(2 * MIB, MIB, now)
    assert paying.link_bytes_s < 200 * MIB


def test_what_fills_no_socket_is_measured_after_a_while() -> None:
    paying = Paying()
    meter = Meter(paying)
    for number in range(40):
        meter.goes(1000, 10, number * 0.01)
    assert paying.link_bytes_s == pytest.approx(100_000)


def some_pages() -> RecentPages:
    recent = RecentPages(RegionTable((Region(1, 0, 16 * PAGE),)), MIB)
    recent.sent(1, np.arange(4), np.zeros((4, PAGE), np.uint8))
    return recent


def test_useless_changes_are_given_up() -> None:
    """After some rounds in a row, of which the first one with versions is the first."""
    changes = Changes(some_pages())
    useless = Measure(page_bytes=100 * PAGE, sent_bytes=100 * PAGE, change_bytes=PAGE, changed_bytes=PAGE)
    useful = replace(useless, change_bytes=50 * PAGE)
    changes.packed(useless)
    changes.round_finished(0)  # there were none when it began
    for measure in (useless, useful, useless):
        changes.round_started()
        changes.packed(measure)
        changes.round_finished(0)
        changes.round_started()
        changes.round_finished(0)  # a round of nothing says nothing
    assert changes.recent is not None
    for _ in range(USELESS_ROUNDS - 1):
        changes.round_started()
        changes.packed(useless)
        changes.round_finished(0)
    assert changes.recent is None
    changes.round_started()
    changes.round_finished(0)


def test_what_was_rejected_is_no_base() -> None:
    """[PGS-20] Nor is anything else: what the destination holds is not what this side believes."""
    changes = Changes(some_pages())
    changes.round_started()
    changes.round_finished(1)
    assert changes.recent is not None
    assert not changes.recent.known(1, np.arange(4)).any()


class Bench:
    """Pages to send, at a time that the test sets, and a selection."""

    def __init__(self, **options: object) -> None:
        self.now = 0.0
        self.memory = bytearray(RANDOM)
        table = RegionTable((Region(0, 0, len(self.memory)),))
        pages = RegionPages(table, {0: memoryview(self.memory)})
        self.options = Options(clock=lambda: self.now, **{"compress": Compress.AUTO, **options})
        self.pages = pages_to_send(pages, self.options)
        assert isinstance(self.pages, PackingPages)
        self.features = {Feature.ENCODING_ZSTD: 18, Feature.ENCODING_DELTA: MIB}

    @property
    def selection(self) -> Selection:
        return Selection(VERSION, self.features, Limits(expansion=EXPANSION))

    def encode(self) -> None:
        self.pages.encode(0, [0], [MIB // PAGE])


def test_who_is_not_asked_to_pack_is_as_ever() -> None:
    table = RegionTable((Region(0, 0, PAGE),))
    pages = pages_to_send(RegionPages(table, {0: memoryview(bytes(PAGE))}), Options())
    assert type(pages) is SteadyPages


def test_a_sample_is_taken_when_one_is_due() -> None:
    bench = Bench()
    bench.encode()
    assert bench.pages._sample is None  # nothing was agreed on
    assert bench.pages._knows(bench)
    bench.encode()
    assert bench.pages._sample is None  # nothing is known of the link
    bench.pages._paying.passed(MIB, MIB, 0.01, bench.now)
    bench.encode()
    assert bench.pages._sample == RANDOM[:TRIAL_BYTES]
    bench.pages._sample = None
    bench.pages._paying.sampled(MIB, MIB, 1.0, bench.now)
    bench.encode()
    assert bench.pages._sample is None


async def test_what_shrinks_is_tried_further_beside_what_is_sent() -> None:
    """At another level each time, and with more of it. No batch is held up for that."""
    bench = Bench(versions_bytes=0)
    bench.features[Feature.ENCODING_DELTA] = 0
    assert bench.pages._knows(bench)
    bench.pages._paying.passed(MIB, MIB, 1.0, bench.now)
    packing = bench.pages._paying._packing
    await bench.pages._try(memoryview(RANDOM))
    assert not any(each.page_bytes for each in packing.values())
    await bench.pages._try(memoryview(TEXT * 64))
    assert {level for level, each in packing.items() if each.page_bytes} == {2}
    assert packing[2].page_bytes == 64 * PAGE
    assert bench.pages._trial is None
    assert bench.pages._packs()


async def test_where_batches_are_packed_one_of_them_is_the_trial() -> None:
    """It goes like the others, and what passes meanwhile counts."""
    bench = Bench(compress=Compress.ALWAYS)
    assert bench.pages._knows(bench)
    await bench.pages._try(memoryview(TEXT * 64))
    assert bench.pages._trial is not None


def test_an_unknown_link_is_soon_known() -> None:
    """As long as nothing is known of it, all goes as it is; later measures take longer."""
    paying = Paying()
    meter = Meter(paying)
    meter.goes(SOCKET_BYTES, SOCKET_BYTES, 0.0)
    meter.goes(MIB, MIB, FIRST_MEASURED_S)
    assert paying.link_bytes_s == pytest.approx(SOCKET_BYTES / FIRST_MEASURED_S)
    meter.goes(2 * MIB, 2 * MIB, 2 * FIRST_MEASURED_S)
    assert paying.link_bytes_s == pytest.approx(SOCKET_BYTES / FIRST_MEASURED_S)


def test_a_sample_is_of_several_runs_if_need_be() -> None:
    assert bytes(_first_bytes([memoryview(b"abc"), memoryview(b"def"), memoryview(b"ghi")], 5)) == b"abcde"
    assert bytes(_first_bytes([memoryview(b"abc")], 5)) == b"abc"


def test_it_is_seen_how_busy_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time in which this thread could run, but did not."""
    ran_ns, waited_ns = 1000, 1000

    def told() -> tuple[int, int]:
        nonlocal ran_ns, waited_ns
        ran_ns, waited_ns = ran_ns + 100, waited_ns + 300
        return ran_ns, waited_ns

    monkeypatch.setattr("sterna.net.packing.thread_ns", told)
    paying = Paying()
    meter = Meter(paying)
    for number in range(40):
        meter.goes(MIB, MIB, number * 0.01)
    assert paying._machine_share == 0.25
    monkeypatch.setattr("sterna.net.packing.thread_ns", lambda: (0, 0))  # a kernel that does not tell
    paying = Paying()
    meter = Meter(paying)
    for number in range(40):
        meter.goes(MIB, MIB, number * 0.01)
    assert paying._machine_share == 1


def test_a_batch_is_packed_in_earnest_when_a_sample_has_shrunk() -> None:
    bench = Bench(versions_bytes=0)
    bench.features[Feature.ENCODING_DELTA] = 0
    assert bench.pages._knows(bench)
    assert not bench.pages._packs()
    bench.pages._trial = 1
    assert bench.pages._packs()
    bench.encode()
    assert bench.pages._sample is None  # one after another


def test_changes_are_tried_on_slow_links_only() -> None:
    for link_bytes_s, tried in ((100e6, True), (1e9, False)):
        bench = Bench()
        assert bench.pages._knows(bench)
        bench.pages.on_event(RoundStarted(1, 1, last=False))
        assert not bench.pages._packs()  # nothing is known of the link
        bench.pages._paying.passed(int(link_bytes_s), int(link_bytes_s), 1.0, 0.0)
        assert not bench.pages._packs()  # and few pages of a first round come again
        bench.pages.on_event(RoundStarted(2, 1, last=False))
        assert bench.pages._packs() == tried


def test_a_lost_link_forgets_the_versions() -> None:
    bench = Bench()
    bench.pages.on_event(SessionResumed(1, 0, 0))
    assert bench.pages._knows(bench)
    recent = bench.pages._changes.recent
    assert recent is not None
    recent.sent(0, np.arange(4), np.zeros((4, PAGE), np.uint8))
    bench.pages.on_event(RoundStarted(1, 4, last=False))
    bench.pages.on_event(RoundFinished(STATS))
    assert recent.known(0, np.arange(4)).all()
    bench.pages.on_event(SessionResumed(1, 0, 0))
    assert not recent.known(0, np.arange(4)).any()


def test_nothing_is_packed_unless_it_was_selected() -> None:
    bench = Bench()
    bench.features = {}
    assert not bench.pages._knows(bench)
    bench.features = {Feature.ENCODING_ZSTD: 18}
    assert bench.pages._knows(bench)
    assert bench.pages._changes.recent is None


def test_what_waits_for_the_link_has_not_passed() -> None:
    """Batches that are packed faster than they leave say nothing of the link, until they leave."""
    bench = Bench(compress=Compress.ALWAYS)
    assert bench.pages._knows(bench)
    packer = Packer(RegionPages(RegionTable((Region(0, 0, PAGE),)), {0: memoryview(bytes(PAGE))}), EXPANSION)
    packer.measure = Measure(page_bytes=4 * MIB, sent_bytes=MIB, zstd_bytes=4 * MIB)

    waits = 0
    for seconds in [0.02] * 16 + [0.04] * 4:  # half of each leaves at first, then as much as comes
        bench.now += seconds
        waits += int(MIB - 25 * MIB * seconds)
        bench.pages._note(packer, 2, 0.01, waits, used=2, trial=False)
    assert bench.pages._paying.link_bytes_s == pytest.approx(25 * MIB, rel=0.05)


def test_no_level_is_chosen_for_a_core_that_others_may_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection packs in two threads where there are cores, and counts on one."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for streams, threads, sure in ((0, 2, 1), (1, 2, 1), (4, 4, 4)):
        bench = Bench(streams=streams)
        assert (len(bench.pages._free), bench.pages._paying._workers) == (threads, sure)
