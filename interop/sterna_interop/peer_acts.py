"""Acts: what a peer says instead of the honest frame. Small words of which misbehaviours are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias, TypeVar

import numpy as np

from sterna.registry import Encoding
from sterna.wire import PageRange, Pages, Record, RoundAck, make_runs, unchecked
from sterna_interop.peer_steps import Act, End, Moment, Raw, Say, Step, Wait

Steps: TypeAlias = Iterable[Step]
R = TypeVar("R")


def change(**fields: object) -> Act:
    """The honest frame with other values in these fields."""
    return lambda moment: [_again(moment, replace(honest(moment).record, **fields))]  # type: ignore[arg-type]


def alter(kind: type[R], how: Callable[[R], R]) -> Act:
    """The honest frame, which is of this kind, with another record; a bulk part stays as it is."""

    def build(moment: Moment) -> Steps:
        record = honest(moment).record
        assert isinstance(record, kind)
        return [_again(moment, how(record))]  # type: ignore[arg-type]

    return build


def _again(moment: Moment, record: Record) -> Say:
    return replace(honest(moment), record=record)


def before(*steps: Step) -> Act:
    """Something, and then the honest frame."""
    return lambda moment: [*steps, *moment.honest]


def after(*steps: Step) -> Act:
    """The honest frame, if one was about to be said, and then something."""
    return lambda moment: [*moment.honest, *steps]


def instead(*steps: Step) -> Act:
    """Something else."""
    return lambda _: steps


def twice() -> Act:
    """The honest frame, and once more."""
    return lambda moment: [*moment.honest, *moment.honest]


def patch(offset: int, new: bytes, *, repair: bool = True) -> Act:
    """The honest frame with bytes overwritten, see `unchecked.patch`; the offset counts from the header's."""
    return lambda moment: [
        Raw(lambda number: unchecked.patch(honest(moment).encode(number), offset, new, repair=repair))
    ]


def resize(by: int) -> Act:
    """The honest frame with so many bytes more of body, zeros, or fewer; checksums right."""

    def build(whole: bytes) -> bytes:
        body_bytes = int.from_bytes(whole[16:20], "little")
        return unchecked.resize(whole, max(body_bytes + by, 0))

    return lambda moment: [Raw(lambda number: build(honest(moment).encode(number)))]


def header(**fields: int) -> Act:
    """The honest frame with other header fields, named as in `unchecked.frame`; the rest fits them."""

    def build(moment: Moment) -> Steps:
        say = honest(moment)
        body = unchecked.body(say.record)
        return [
            Raw(
                lambda number: unchecked.frame(
                    say.record.type,
                    body,
                    say.bulk,
                    **({"sequence": number} | fields),
                )
            )
        ]

    return build


def numbered(step: int) -> Act:
    """The honest frame under a number that is `step` too high; what follows goes on from there."""
    return lambda moment: [Raw(lambda number: honest(moment).encode(number + step), 1 + step)]


def part(share: float, how: End) -> Act:
    """A part of the honest frame, then the end: 0.0 is nothing of it, 1.0 all."""

    def build(moment: Moment) -> Steps:
        def cut(number: int) -> bytes:
            whole = honest(moment).encode(number)
            return whole[: int(share * len(whole))]

        return [Raw(cut, 0, is_last=True), how]

    return build


def frame(frame_type: int, body: bytes = b"", **header: int) -> Raw:
    """A frame of any type; header fields as `unchecked.frame` has them."""
    return Raw(lambda number: unchecked.frame(frame_type, body, **({"sequence": number} | header)))  # type: ignore[arg-type]


def drip(interval_s: float) -> Act:
    """The honest frame, one byte in so many seconds."""
    return lambda moment: [Raw(honest(moment).encode, interval_s=interval_s)]


def for_ever(step: Step, interval_s: float, times: int = 1000) -> Act:
    """Something that is legal, again and again, instead of going on."""

    def build(_: Moment) -> Steps:
        for _number in range(times):
            yield step
            yield Wait(interval_s)

    return build


# ---- tables of pages ----


def rejects(*ranges: PageRange) -> Act:
    """ROUND_ACK that rejects these pages, and counts as if they had been verified otherwise."""

    def changed(record: RoundAck) -> RoundAck:
        lost = sum(each.count for each in ranges)
        return replace(record, rejected=ranges, pages=max(record.pages - lost, 0))

    return alter(RoundAck, changed)


def with_run(table: Pages, number: int, **columns: int) -> Pages:
    """A table with other values in one row; -1 is the last one."""
    rows = table.runs.copy()
    for name, value in columns.items():
        rows[name][number] = value
    return replace(table, runs=rows)


def run(number: int, **columns: int) -> Act:
    """PAGES with other values in a row of its table, see `with_run`."""
    return alter(Pages, lambda table: with_run(table, number, **columns))


def bulk_cut(count: int) -> Act:
    """PAGES with so many bytes of bulk less, in the header too."""
    return lambda moment: [replace(honest(moment), bulk=honest(moment).bulk[:-count])]


def wrong_hash(*numbers: int) -> Act:
    """PAGES with other hashes of these chunks, of all if none is named."""

    def changed(table: Pages) -> Pages:
        hashes = table.hashes.copy()
        hashes[list(numbers) or slice(None)] ^= np.uint64(1)
        return replace(table, hashes=hashes)

    return alter(Pages, changed)


def table(rows: Iterable[tuple[int, int, int]], granule_log2: int = 12) -> Act:
    """PAGES with a table of its own, of (first, count, encoding), and without bulk part or hashes."""
    runs = make_runs(((first, count, Encoding(encoding)) for first, count, encoding in rows), granule_log2)

    def build(moment: Moment) -> Steps:
        record = honest(moment).record
        assert isinstance(record, Pages)
        return [Say(replace(record, runs=runs, hashes=np.array([], "<u8")))]

    return build


def honest(moment: Moment) -> Say:
    """The frame that was about to be said."""
    (step,) = moment.honest
    assert isinstance(step, Say)
    return step
