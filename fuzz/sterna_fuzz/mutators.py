"""Named ways to spoil a valid conversation.

A mutator changes a draft; what it changes, and to what, follows from the three numbers of its step, so that
an example reads as what was done, and shrinks. Each row tells what it does and which invariant it attacks,
and where one mutator alone decides how a conversation must go on, it says that too: the codes of which one
has to end it, or that nothing may change.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final, cast

from sterna.registry import CRITICAL_BIT, FRAMES, GREASE_FIRST, MAGIC, ErrorCode, FrameType, Sender
from sterna.wire import unchecked
from sterna.wire.records import Abort, Pages, Ping, Progress, Record, Region
from sterna_fuzz import drafts, packed
from sterna_fuzz.conversations import HEADER_BYTES
from sterna_fuzz.drafts import Draft, field, is_frame, with_field

# Ends of what a field can hold, and of what a receiver takes: limits of the registry, and one more.
EDGES: Final = (
    0, 1, 2, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 16384, 16385, 65535, 65536, 65537,
    1 << 20, (1 << 20) + 1, 1 << 24, (1 << 24) + 1, (1 << 26) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 32, (1 << 52) - 1, 1 << 52, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1,
)  # fmt: skip
UNKNOWN_IN_A_ROW: Final = 256  # FRM-8
_LONG_TEXTS: Final = (
    "",
    "\0",
    "..",
    "../../etc/passwd",
    "x" * 255,
    "x" * 256,
    "é" * 127,
    "é" * 128,
    "\x1b[2J",
)
_WAYS: Final = tuple(packed.WAYS)
_ONE_SIDED: Final = frozenset(int(each) for each, info in FRAMES.items() if info.sender is not Sender.BOTH)
_STARTS: Final = (b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\0\x01\0\x01", b"SSH-2.0-x\r\n", b"", MAGIC[:9])


@dataclass(frozen=True, slots=True)
class Step:
    """One use of a mutator.

    Attributes:
        at: which frame, counted from the first and around.
        where: which bit, byte or field of it.
        value: what is written there, or how often.
    """

    mutator: str
    at: int = 0
    where: int = 0
    value: int = 0


@dataclass(frozen=True, slots=True)
class Mutator:
    """A row of the table.

    Attributes:
        text: what it does.
        attacks: the invariant that it is after.
        apply: changes a draft; tells whether it is as the next two say, which it may not be at the end of
            a stream or for a frame without the part that is changed.
        ends: codes of which one ends the session, if nothing else was changed; empty if that is open.
        same: whether nothing may change, except for what was skipped.
    """

    name: str
    text: str
    attacks: str
    apply: Callable[[Draft, Step], bool]
    ends: frozenset[ErrorCode] = frozenset()
    same: bool = False


_TABLE: Final[dict[str, Mutator]] = {}
MUTATORS: Final[Mapping[str, Mutator]] = _TABLE


def _mutator(
    text: str, attacks: str, *ends: ErrorCode, same: bool = False
) -> Callable[[Callable[[Draft, Step], bool]], Callable[[Draft, Step], bool]]:
    def register(apply: Callable[[Draft, Step], bool]) -> Callable[[Draft, Step], bool]:
        name = apply.__name__.strip("_")
        _TABLE[name] = Mutator(name, text, attacks, apply, frozenset(ends), same)
        return apply

    return register


def _flip(data: bytes, bit: int) -> bytes:
    if not data:
        return data
    at = bit // 8 % len(data)
    return data[:at] + bytes([data[at] ^ 1 << bit % 8]) + data[at + 1 :]


def _edge(value: int) -> int:
    return EDGES[value % len(EDGES)]


# --- bits ---------------------------------------------------------------------------------------


@_mutator("flips a bit of the preface", "coded-refusal")
def _flip_preface(draft: Draft, step: Step) -> bool:
    draft.parts[0] = _flip(draft.parts[0], step.where)
    return True


@_mutator("flips a bit of a header", "coded-refusal", ErrorCode.HEADER_CHECKSUM)
def _flip_header(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    part = draft.parts[index]
    draft.parts[index] = _flip(part[:HEADER_BYTES], step.where) + part[HEADER_BYTES:]
    return _followed(draft, index) and is_frame(part)


@_mutator("flips a bit of a header, header_crc repaired", "coded-refusal")
def _flip_header_repaired(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    part = draft.parts[index]
    if is_frame(part):
        flipped = _flip(part[: drafts.HEADER_CRC], step.where) + part[drafts.HEADER_CRC :]
        draft.parts[index] = drafts.with_header_crc(flipped)
    return True


@_mutator("flips a bit of a body", "coded-refusal", ErrorCode.BODY_CHECKSUM)
def _flip_body(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    part, body = draft.parts[index], draft.body_of(index)
    end = HEADER_BYTES + len(body)
    draft.parts[index] = part[:HEADER_BYTES] + _flip(body, step.where) + part[end:]
    return bool(body) and _followed(draft, index)


@_mutator("flips a bit of a body, body_crc repaired", "same-memory")
def _flip_body_repaired(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    if is_frame(draft.parts[index]):
        draft.put_body(index, _flip(draft.body_of(index), step.where))
    return True


@_mutator("flips a bit of page bytes", "same-memory")
def _flip_bulk(draft: Draft, step: Step) -> bool:
    index = _pages(draft, step.at)
    part, start = draft.parts[index], HEADER_BYTES + len(draft.body_of(index))
    draft.parts[index] = part[:start] + _flip(part[start:], step.where)
    return True


@_mutator("flips many bits, anywhere from a frame on", "coded-refusal")
def _flip_many(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    data = bytearray(b"".join(draft.parts[index:]))
    state = step.where + 1
    for _ in range(step.value % 64 + 1):
        state = (state * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        if data:
            data[(state >> 33) % len(data)] ^= 1 << (state >> 61)
    draft.parts[index:] = [bytes(data)]
    return True


@_mutator("overwrites up to 512 bytes with zeros, as a torn write does", "coded-refusal")
def _zero_block(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    part = draft.parts[index]
    start = step.where % max(len(part), 1)
    size = min(step.value % 512 + 1, len(part) - start)
    draft.parts[index] = part[:start] + bytes(size) + part[start + size :]
    return True


# --- ends ---------------------------------------------------------------------------------------


@_mutator("ends the stream inside a frame", "coded-refusal", ErrorCode.TRUNCATED)
def _truncate(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    part = draft.parts[index]
    draft.parts[index:] = [part[: 1 + step.where % max(len(part) - 1, 1)]]
    return len(part) > 1


@_mutator("ends the stream between two frames", "rollback", ErrorCode.CONNECTION_LOST)
def _end_early(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    del draft.parts[index:]
    return True


@_mutator("puts an ABORT in", "rollback")
def _abort(draft: Draft, step: Step) -> bool:
    words = Abort(step.value & 0xFFFF, 0, 0, 0, 0, "fuzzed")
    draft.insert(step.at, unchecked.frame(FrameType.ABORT, unchecked.body(words)))
    return True


# --- frames -------------------------------------------------------------------------------------


@_mutator("leaves a frame out", "no-stale-page", ErrorCode.BAD_SEQUENCE)
def _drop(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    del draft.parts[index : index + 1]
    return index < len(draft.parts)


@_mutator("leaves a frame out, numbers repaired", "no-stale-page")
def _drop_renumbered(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    del draft.parts[index : index + 1]
    draft.renumber()
    return True


@_mutator("sends a frame twice", "no-stale-page", ErrorCode.BAD_SEQUENCE)
def _repeat(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    followed = _followed(draft, index)
    draft.parts[index:index] = draft.parts[index : index + 1]
    return followed and index > 0


@_mutator("sends a frame again later, numbers repaired", "no-stale-page")
def _repeat_later(draft: Draft, step: Step) -> bool:
    draft.insert(step.where, draft.parts[draft.pick(step.at)])
    return True


@_mutator("swaps two frames", "no-stale-page", ErrorCode.BAD_SEQUENCE)
def _swap(draft: Draft, step: Step) -> bool:
    first, second = draft.pick(step.at), draft.pick(step.where)
    draft.parts[first], draft.parts[second] = draft.parts[second], draft.parts[first]
    return first != second


@_mutator("swaps two frames, numbers repaired", "no-stale-page")
def _swap_renumbered(draft: Draft, step: Step) -> bool:
    _swap(draft, step)
    draft.renumber()
    return True


@_mutator("begins again from an earlier frame", "no-stale-page")
def _again(draft: Draft, step: Step) -> bool:
    first, last = sorted((draft.pick(step.at), draft.pick(step.where)))
    draft.parts[last:last] = draft.parts[first:last]
    draft.renumber()
    return True


@_mutator("puts a frame of another session in", "same-memory")
def _splice(draft: Draft, step: Step) -> bool:
    draft.insert(step.at, draft.strangers[step.where % len(draft.strangers)])
    return True


@_mutator("takes a frame of another session instead", "same-memory")
def _replace(draft: Draft, step: Step) -> bool:
    draft.parts[draft.pick(step.at)] = draft.strangers[step.where % len(draft.strangers)]
    draft.renumber()
    return True


@_mutator("sends what the other side says", "coded-refusal", ErrorCode.WRONG_DIRECTION)
def _mirror(draft: Draft, step: Step) -> bool:
    frame = draft.other[step.where % len(draft.other)]
    number, inside = field(frame, drafts.TYPE), draft.place(step.at) < len(draft.parts)
    draft.insert(step.at, frame)
    # Page tables are read before anybody asks who sent them, and cannot be without a region.
    return inside and number in _ONE_SIDED and number != FrameType.PAGES


# --- headers ------------------------------------------------------------------------------------


def _set_header(draft: Draft, step: Step, offset: int, value: int) -> bool:
    """Whether the frame has a header, and it is another one now."""
    index = draft.pick(step.at)
    before = draft.parts[index]
    if is_frame(before):
        draft.parts[index] = with_field(before, offset, value)
    return draft.parts[index] != before and _followed(draft, index)


@_mutator("another type", "coded-refusal")
def _type(draft: Draft, step: Step) -> bool:
    return _set_header(draft, step, drafts.TYPE, step.value)


@_mutator("flags that are not zero", "coded-refusal", ErrorCode.BAD_HEADER)
def _flags(draft: Draft, step: Step) -> bool:
    return _set_header(draft, step, drafts.FLAGS, 1 << step.value % 16)


@_mutator("a reserved field that is not zero", "coded-refusal", ErrorCode.BAD_HEADER)
def _reserved(draft: Draft, step: Step) -> bool:
    return _set_header(draft, step, drafts.RESERVED, 1 << step.value % 16)


@_mutator("another number of the connection", "coded-refusal", ErrorCode.BAD_HEADER)
def _stream(draft: Draft, step: Step) -> bool:
    return _set_header(draft, step, drafts.STREAM, _edge(step.value))


@_mutator("another sequence number", "no-stale-page", ErrorCode.BAD_SEQUENCE)
def _sequence(draft: Draft, step: Step) -> bool:
    return _set_header(draft, step, drafts.SEQUENCE, _edge(step.value))


@_mutator(
    "body_bytes at an edge", "bounded", ErrorCode.LIMIT_CONTROL, ErrorCode.BODY_CHECKSUM, ErrorCode.TRUNCATED
)
def _body_bytes(draft: Draft, step: Step) -> bool:
    return _set_header(draft, step, drafts.BODY, _edge(step.value))


@_mutator("bulk_bytes at an edge", "bounded", ErrorCode.BAD_HEADER, ErrorCode.LIMIT_BULK, ErrorCode.MALFORMED)
def _bulk_bytes(draft: Draft, step: Step) -> bool:
    return _set_header(draft, step, drafts.BULK, _edge(step.value))


# --- bodies -------------------------------------------------------------------------------------


@_mutator("four bytes of a body at an edge: counts, lengths, numbers", "bounded")
def _word(draft: Draft, step: Step) -> bool:
    return _overwrite(draft, step, 4)


@_mutator("eight bytes of a body at an edge: addresses, sums", "bounded")
def _long_word(draft: Draft, step: Step) -> bool:
    return _overwrite(draft, step, 8)


def _overwrite(draft: Draft, step: Step, width: int) -> bool:
    index = draft.pick(step.at)
    body = draft.body_of(index)
    start = step.where * 4 % max(len(body), 1)
    new = (_edge(step.value) & (1 << 8 * width) - 1).to_bytes(width, "little")
    if is_frame(draft.parts[index]):
        draft.put_body(index, (body[:start] + new + body[start + width :])[: len(body)])
    return True


@_mutator("a body cut short, or filled up with zeros", "coded-refusal")
def _resize(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    body = draft.body_of(index)
    size = step.value % (len(body) + 64)
    if is_frame(draft.parts[index]):
        draft.put_body(index, body[:size].ljust(size, b"\0"))
    return True


@_mutator("a list that states another count", "bounded", ErrorCode.MALFORMED, ErrorCode.TRAILING_BYTES)
def _count(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    record = draft.record(index)
    lists = _lists(record)
    if record is not None and lists:
        counts = {lists[step.where % len(lists)]: _edge(step.value) & 0xFFFF}
        draft.put_body(index, unchecked.body(record, counts))
    return False  # some counts have a bound and a code of their own


@_mutator("another value of one field of a record", "same-memory")
def _field(draft: Draft, step: Step) -> bool:
    index = draft.pick(step.at)
    record = draft.record(index)
    if record is not None and not isinstance(record, Pages):
        changed = _changed(record, step)
        try:
            draft.put_body(index, unchecked.body(changed))
        except Exception:  # noqa: BLE001 - a value that its field has no room for
            return False
    return True


def field_count(frame: bytes, regions: Sequence[Region]) -> int:
    """How many fields `field` can change in a frame."""
    record = Draft([b"", frame], (), (), regions).record(1)
    return 0 if record is None or isinstance(record, Pages) else len(fields(record))


def _changed(record: Record, step: Step) -> Record:
    names = [each.name for each in fields(record)]
    if not names:
        return record
    name = names[step.where % len(names)]
    return cast("Record", _with(record, name, _other_value(getattr(record, name), step.value)))


def _with(value: Any, name: str, new: object) -> object:  # noqa: ANN401 - a dataclass, with anything in it
    return replace(value, **{name: new})


def _other_value(value: object, choice: int) -> object:
    """Something near a value, or at an edge."""
    match value:
        case bool():
            return choice % 256
        case enum.IntEnum():
            return value + choice % 8
        case int():
            return (value + 1, max(value - 1, 0), *EDGES)[choice % (len(EDGES) + 2)]
        case bytes():
            return _flip(value, choice)
        case str():
            return _LONG_TEXTS[choice % len(_LONG_TEXTS)]
        case tuple() if value:
            at = choice % len(value)
            return (value[:at] + value[at + 1 :], (*value, value[at]), value[::-1])[choice // 8 % 3]
        case _ if is_dataclass(value) and not isinstance(value, type):
            names = [each.name for each in fields(value)]
            name = names[choice % len(names)]
            return _with(value, name, _other_value(getattr(value, name), choice // 8))
        case _:
            return value


def _lists(record: Record | None) -> list[str]:
    if record is None:
        return []
    if isinstance(record, Pages):
        return ["runs", "hashes"]
    return [each.name for each in fields(record) if isinstance(getattr(record, each.name), tuple | bytes)]


# --- pages that travel packed -------------------------------------------------------------------


@_mutator("packs a run of pages, right or wrong", "same-memory")
def _pack(draft: Draft, step: Step) -> bool:
    return packed.pack(draft, _pages(draft, step.at), step.where, _WAYS[step.value % len(_WAYS)])


@_mutator("packs a run of pages, and flips a bit of what that came to", "same-memory")
def _pack_flip(draft: Draft, step: Step) -> bool:
    index = _pages(draft, step.at)
    done = packed.pack(draft, index, 0, _WAYS[step.value % len(_WAYS)])
    part, start = draft.parts[index], HEADER_BYTES + len(draft.body_of(index))
    draft.parts[index] = part[:start] + _flip(part[start:], step.where)
    return done


# --- what is to be skipped, and what comes too often --------------------------------------------


@_mutator("puts an unknown frame in that is to be skipped", "skips-unknown", same=True)
def _unknown(draft: Draft, step: Step) -> bool:
    draft.insert(step.at, unchecked.frame(_strange(step.value), bytes(step.where % 1025)))
    return True


@_mutator("puts 256 frames in that are to be skipped", "skips-unknown", same=True)
def _grease_flood(draft: Draft, step: Step) -> bool:
    frames = [part for part in draft.parts if is_frame(part)]
    alone = not any(field(part, drafts.TYPE) >> 8 == GREASE_FIRST >> 8 for part in frames)
    draft.insert(step.at, *[unchecked.frame(GREASE_FIRST)] * UNKNOWN_IN_A_ROW)
    return alone


@_mutator("puts 257 frames in that are to be skipped", "bounded", ErrorCode.LIMIT_RATE)
def _unknown_flood(draft: Draft, step: Step) -> bool:
    inside = draft.place(step.at) < len(draft.parts)
    draft.insert(step.at, *[unchecked.frame(GREASE_FIRST)] * (UNKNOWN_IN_A_ROW + 1))
    return inside


@_mutator("puts an unknown critical frame in", "skips-unknown", ErrorCode.UNKNOWN_CRITICAL)
def _unknown_critical(draft: Draft, step: Step) -> bool:
    inside = draft.place(step.at) < len(draft.parts)
    draft.insert(step.at, unchecked.frame(_strange(step.value) | CRITICAL_BIT, bytes(step.where % 1025)))
    return inside


def _strange(value: int) -> int:
    """A number without the critical bit that no frame has, with it or without."""
    number = value % CRITICAL_BIT
    known = {int(frame) & ~CRITICAL_BIT for frame in FrameType}
    return number if number not in known else GREASE_FIRST


@_mutator("puts up to 40 PINGs in", "bounded")
def _ping_flood(draft: Draft, step: Step) -> bool:
    bodies = (unchecked.body(Ping(number)) for number in range(step.value % 40 + 1))
    draft.insert(step.at, *[unchecked.frame(FrameType.PING, body) for body in bodies])
    return True


@_mutator("puts up to 40 PROGRESS frames in", "bounded")
def _progress_flood(draft: Draft, step: Step) -> bool:
    words = unchecked.body(Progress(step.where % 16, 0, 0, 0, 0, 0, 0, 0))  # type: ignore[arg-type]
    draft.insert(step.at, *[unchecked.frame(FrameType.PROGRESS, words)] * (step.value % 40 + 1))
    return True


@_mutator("puts bytes in that are no frame", "coded-refusal")
def _garbage(draft: Draft, step: Step) -> bool:
    place = draft.place(step.at)
    draft.parts[place:place] = [_noise(step.where, step.value % 200 + 1)]
    return True


def _noise(state: int, size: int) -> bytes:
    """Bytes without a pattern, the same for the same number."""
    return random.Random(state).randbytes(size)


@_mutator("begins with a preface of another kind", "coded-refusal")
def _preface(draft: Draft, step: Step) -> bool:
    draft.parts[0] = _STARTS[step.value % len(_STARTS)]
    return True


# --- looking ------------------------------------------------------------------------------------


def _followed(draft: Draft, index: int) -> bool:
    """Whether something comes behind a frame: behind the last one, nobody listens any more."""
    return 0 < index < len(draft.parts) - 1


def _pages(draft: Draft, at: int) -> int:
    """The index of a PAGES frame; of any, if there is none."""
    found = [
        index
        for index, part in enumerate(draft.parts)
        if index and is_frame(part) and field(part, drafts.TYPE) == FrameType.PAGES
    ]
    return found[at % len(found)] if found else draft.pick(at)
