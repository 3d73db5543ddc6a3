"""Sessions with packed pages are followed like any other, and what is wrong with such pages is found."""

from __future__ import annotations

import numpy as np

from observe_support import Tape, migration
from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.events import Request, Reserve
from sterna.core.negotiate import BASE_FEATURES, offer
from sterna.limits import EXPANSION, Limits
from sterna.memory.bitmap import expand_runs
from sterna.memory.packing import Packer
from sterna.memory.recent import RecentPages
from sterna.memory.unpacking import Unpacking
from sterna.memory.zstd import Compressor
from sterna.registry import Encoding, Feature, FrameType
from sterna.testing.pair import Pair
from sterna.wire.records import RUN_DTYPE

PACKED = {Feature.ENCODING_ZSTD: 18, Feature.ENCODING_DELTA: 1 << 20}


def packed(*, off_base: bool = False, damage: tuple[int, ...] = ()) -> Tape:
    """A migration whose pages go packed; `off_base`: once as changes of what is not there."""
    packers: list[Packer] = []

    def prepare(pair: Pair) -> None:
        takes = BASE_FEATURES | PACKED.keys()
        config = DestinationConfig(features=takes, limits=Limits(expansion=EXPANSION))
        pair.destination, pair.source.packs = DestinationMachine(config, pair.now), True
        plain, pages = pair._destination, pair._pages

        async def destination(request: Request) -> object:
            answer = await plain(request)
            return Unpacking(answer) if isinstance(request, Reserve) else answer

        pair._destination = destination  # type: ignore[method-assign]
        packers.append(Packer(pages, EXPANSION, RecentPages(pages.table, 1 << 20)))

    def meddle(pair: Pair) -> None:
        (packer,) = packers
        if (job := pair.source.next_job()) is None:
            return
        runs = job.region, job.starts, job.counts
        if off_base and job.round.number == 2 and packer.recent is not None:
            numbers = expand_runs(job.starts, job.counts)
            memory = np.frombuffer(pair.source_guest.memory(job.region), np.uint8).reshape(-1, 4096)
            packer.recent.sent(job.region, numbers, memory[numbers] ^ np.uint8(7))
        pair.source.job_done(job, packer.pack(*runs, Compressor(1), zeros=job.zeros, remember=True))
        if off_base and job.round.number == 2 and packer.recent is not None:
            packer.recent.clear()

    return migration(
        prepare=prepare, meddle=meddle, damage=damage, features=offer(more=PACKED), batch_bytes=16384
    )


def encodings(tape: Tape) -> set[int]:
    bodies = [unit.body for unit in tape if unit.type == FrameType.PAGES]
    tables = [np.frombuffer(body, RUN_DTYPE, int.from_bytes(body[12:16], "little"), 24) for body in bodies]
    return {int(number) for runs in tables for number in runs["encoding"]}


def only(tape: Tape, number: int) -> Tape:
    """The nth PAGES frame alone."""
    return Tape([tape[tape.where(FrameType.PAGES, number)]])


def faults(tape: Tape) -> list[str]:
    return [str(seen.fault) for seen in tape.seen() if seen.fault is not None]


def damaged(tape: Tape) -> int:
    return sum(len(getattr(seen.what, "damaged", ())) for seen in tape.seen())


def test_packed_pages() -> None:
    """[PGS-16] [PGS-19] They are taken apart, and the digest is that of what they are."""
    tape = packed()
    assert encodings(tape) >= {Encoding.RAW, Encoding.DELTA}
    assert faults(tape) == []
    assert damaged(tape) == 0
    assert tape.where(FrameType.BYE) > 0


def test_changes_of_what_was_not_there() -> None:
    """[PGS-20] A reader cannot see that; the destination says it, and they are sent again."""
    tape = packed(off_base=True)
    assert tape.record(FrameType.ROUND_ACK, 1).rejected
    assert faults(tape) == []
    assert damaged(tape) == 0
    assert tape.where(FrameType.BYE) > 0


def test_a_change_that_is_damaged_on_its_way() -> None:
    """[PGS-17] [PGS-20] Its hash is of what only the destination has, which is believed."""
    honest = packed()
    changes = [number for number in range(30) if Encoding.DELTA in encodings(only(honest, number))]
    for number in changes[:4]:
        tape = packed(damage=(number,))
        assert not [fault for fault in faults(tape) if "PGS-1" not in fault]


def test_other_pages_are_rejected_than_those_that_may_be() -> None:
    """[CON-35] [PGS-20]"""
    tape = packed(off_base=True)
    ack = tape.record(FrameType.ROUND_ACK, 1)
    lie = tape.changed(
        FrameType.ROUND_ACK,
        0,
        rejected=ack.rejected,
        pages=tape.record(FrameType.ROUND_ACK, 0).pages - sum(each.count for each in ack.rejected),
    )
    assert "CON-35" in faults(lie)[0]
