"""A real machine, with its guest, hears what one side of a conversation should never say.

The other side is a recording, spoilt. It is played part by part: the machine does all that it can do before
the next part comes, as it would with a peer that waits for its answers. What must hold does not depend on
what was heard: one end, with one code; a guest that runs here until permission to run it elsewhere has left,
and there only with the memory of the pause; words that the peer can read, with the same code in them.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sterna.core.events import Finished, Outcome, Result
from sterna.core.session import Session
from sterna.core.source import SourceMachine
from sterna.errors import RemoteProtocolError
from sterna.limits import EXPANSION, Limits
from sterna.registry import ERRORS, IMPLEMENTED_ENCODINGS, Feature, FrameType
from sterna.wire import FrameReader, FrameReceived, PagesAnnounced, PagesReceived
from sterna.wire.records import (
    Abort,
    Bye,
    Complete,
    Handover,
    Loaded,
    Record,
    Refuse,
    Region,
    Running,
    Seal,
    Welcome,
)
from sterna_fuzz import drafts
from sterna_fuzz.conversations import (
    DESTINATION,
    EPOCH,
    HEADER_BYTES,
    SOURCE,
    Scripted,
    destination_config_of,
    say,
)
from sterna_fuzz.guests import damaged
from sterna_fuzz.plans import Plan, Spoilt, spoil
from sterna_fuzz.streams import LIMITS, pieces
from sterna_fuzz.target import Words

# What a destination with LIMITS may hold of a peer's: a body in pieces, whole and decoded, where an item of a
# list takes some hundred bytes for its twelve on the wire; the state and its fragments; reserved memory with
# its digest and bitmaps; and what Python itself needs to get there.
ROOM_BYTES: Final = 1 << 20
_LAST: Final = frozenset({FrameType.ABORT, FrameType.REFUSE, FrameType.BYE})
HELD_BYTES_MAX: Final = 16 * LIMITS.control_bytes + 2 * LIMITS.state_bytes + 2 * ROOM_BYTES + (1 << 20)


@dataclass(frozen=True, slots=True)
class Heard:
    """How it went.

    Attributes:
        said: all that the machine has said.
        result: how the session ended for it.
        held_bytes: the most memory that was allocated meanwhile; 0 if nobody looked.
    """

    pair: Scripted
    machine: Session
    said: bytes
    result: Result
    held_bytes: int = 0


def hear(
    plan: Plan, parts: Iterable[bytes], marks: Sequence[int] = (), *, limits: Limits | None = None
) -> Heard:
    """Let the machine at the other side hear these parts, and then the end of the connection."""
    config = destination_config_of(plan.conversation.script, limits)
    pair = Scripted(plan.conversation.script, destination_config=config)
    name, machine = (DESTINATION, pair.destination) if plan.side == SOURCE else (SOURCE, pair.source)
    if limits:
        pair.room.memory_limit_bytes = ROOM_BYTES
    said = bytearray()
    if name == SOURCE:
        pair.start()
    _settle(pair, name, machine, said)
    for part in parts:
        for piece in pieces(part, marks):
            machine.receive_data(piece, pair.now)
        _settle(pair, name, machine, said)
    machine.connection_lost(None, pair.now)
    _settle(pair, name, machine, said)
    assert machine.result is not None, f"the connection has ended, and the machine is {machine.state}"
    ends = [event for event in pair.events[name] if isinstance(event, Finished)]
    assert len(ends) == 1, f"{len(ends)} ends"
    return Heard(pair, machine, bytes(said), machine.result)


def _settle(pair: Scripted, name: str, machine: Session, said: bytearray) -> None:
    """All that the machine does by itself."""
    moved = True
    while moved:
        moved = pair.answer(name, machine)
        while words := say(machine, pair.now):
            said += words
            moved = True
        while (event := machine.poll_event()) is not None:
            pair.events[name].append(event)


def check_machine(plan: Plan) -> Words:
    """Whatever is heard: one coded end, and the guest where it belongs."""
    spoilt = spoil(plan)
    heard = hear(plan, spoilt.parts)
    check(plan, heard)
    _check_end(plan, spoilt, heard)
    return (word(heard),)


def check_pieces(plan: Plan, marks: Sequence[int]) -> Words:
    """However it is cut: the same words, the same end."""
    parts = spoil(plan).parts
    whole, cut = hear(plan, parts), hear(plan, parts, marks)
    assert cut.said == whole.said, "other words, when it comes in pieces"
    assert _summary(cut) == _summary(whole), f"in pieces: {_summary(cut)}, at once: {_summary(whole)}"
    return (word(whole),)


def check_skipped(plan: Plan) -> Words:
    """What is to be skipped changes nothing of what a machine says and does."""
    spoilt = spoil(plan)
    heard, honest = hear(plan, spoilt.parts), hear(plan, plan.frames)
    mutator = plan.only
    if mutator is not None and mutator.same and spoilt.as_said:
        assert heard.said == honest.said, "other words, because of a frame to be skipped"
        assert heard.result.outcome is honest.result.outcome, f"{heard.result.outcome}"
    _check_end(plan, spoilt, heard)
    return (word(heard),)


def check_held(plan: Plan) -> Words:
    """Memory stays within what was announced, whatever lengths and counts are stated."""
    parts = spoil(plan).parts
    hear(plan, plan.frames)  # what is made once and kept is not the peer's doing
    tracemalloc.start()
    try:
        heard = hear(plan, parts, limits=LIMITS)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held <= HELD_BYTES_MAX, f"{held} bytes held, allowed are {HELD_BYTES_MAX}"
    return (word(heard),)


def word(heard: Heard) -> str:
    """For the statistics."""
    result = heard.result
    return result.outcome.value if result.code is None else result.code.name.lower()


def _summary(heard: Heard) -> tuple[object, ...]:
    result, error = heard.result, heard.result.error
    at = (error.clause, error.offset, error.frame) if isinstance(error, RemoteProtocolError) else ()
    return result.outcome, result.code, result.phase, result.digest, at


def _check_end(plan: Plan, spoilt: Spoilt, heard: Heard) -> None:
    """What a mutator's row says of the end holds where the session lasts as long as the words do."""
    mutator = plan.only
    if mutator is None or not mutator.ends or not spoilt.as_said or not plan.conversation.completed:
        return
    codes = sorted(code.name.lower() for code in mutator.ends)
    error = heard.result.error
    assert error is not None, f"{mutator.name} was not noticed"
    assert error.code in mutator.ends, f"{error.code.name.lower()} instead of {' or '.join(codes)}"


# --- what must hold -----------------------------------------------------------------------------


def check(plan: Plan, heard: Heard) -> None:
    """The invariants of a session that is over."""
    result, error = heard.result, heard.result.error
    assert (result.code is None) == (result.outcome is Outcome.COMPLETED), (
        f"{result.outcome} with {result.code}"
    )
    assert error is None or error.code in ERRORS, f"{error!r} has no code of the registry"
    if isinstance(error, RemoteProtocolError):
        assert error.clause, f"{error!r} names no clause"
    words = understand(heard.said, plan.conversation.regions)
    _check_words(words, heard)
    if plan.side == DESTINATION:
        _check_source(words, heard)
        _check_grounds(words, spoilt_words(plan), heard.machine)
    else:
        _check_destination(plan, heard)
        _check_seal(words, spoilt_words(plan), spoilt_words(replace(plan, steps=())))


def understand(said: bytes, regions: Sequence[Region]) -> list[Record]:
    """What a machine has said. Everything of it can be read."""
    return list(_read(said, regions))


def _read(said: bytes, regions: Sequence[Region], *, packed: bool = False) -> Iterator[Record]:
    reader = FrameReader()
    reader.set_limits(Limits(expansion=EXPANSION) if packed else Limits())
    reader.set_regions({region.id: region for region in regions})
    reader.receive_data(said)
    while (event := reader.next_event()) is not None:
        match event:
            case PagesAnnounced(header):
                if header.bulk_bytes:
                    reader.discard_bulk()
            case FrameReceived(record=Welcome(features=features)):
                hashed = all(each.id != Feature.UNHASHED for each in features)
                reader.set_encodings(IMPLEMENTED_ENCODINGS, hashed=hashed)
                yield event.record
            case FrameReceived() | PagesReceived():
                yield event.record
            case _:
                pass
    reader.receive_eof()


def spoilt_words(plan: Plan) -> list[Record]:
    """What the machine could hear of a plan, up to the first error."""
    records = list[Record]()
    try:
        whole = plan.conversation
        for record in _read(spoil(plan).data, whole.regions, packed=whole.script.packed):
            records.append(record)
    except RemoteProtocolError:
        pass
    return records


def _check_grounds(words: Sequence[Record], heard: Sequence[Record], machine: Session) -> None:
    """A source goes on only if what it was told is what it knows [CON-53] [RUN-1] [CMP-1] [CMP-4]."""
    assert isinstance(machine, SourceMachine)
    sealed, result = machine.digest, machine.result
    if any(isinstance(record, Handover) for record in words):
        loaded = [record.digest for record in heard if isinstance(record, Loaded)]
        assert sealed in loaded, "HANDOVER, though nobody has loaded what was sealed"
    if result is None or result.outcome not in {Outcome.MOVED, Outcome.COMPLETED}:
        return
    epochs = [record.epoch for record in heard if isinstance(record, Running)]
    assert EPOCH + 1 in epochs, f"it has moved, and runs in the epochs {epochs}"
    if result.outcome is Outcome.COMPLETED:
        wanted = (EPOCH + 1, sealed)
        complete = [(record.epoch, record.digest) for record in heard if isinstance(record, Complete)]
        assert wanted in complete, "its image is released, though the other one is not complete"


def _check_seal(words: Sequence[Record], heard: Sequence[Record], honest: Sequence[Record]) -> None:
    """A destination says LOADED only of what was sealed [MEM-15] [MEM-19], and takes its permission only."""
    sealed = {record.digest: record.state_digest for record in heard if isinstance(record, Seal)}
    state = {record.state_digest for record in honest if isinstance(record, Seal)}
    for record in words:
        if isinstance(record, Loaded):
            assert record.digest in sealed, "LOADED names a digest that nobody has sealed"
            assert sealed[record.digest] in state, "LOADED, though another state was sealed"
    if any(isinstance(record, Running) for record in words):
        epochs = [record.epoch for record in heard if isinstance(record, Handover)]
        assert EPOCH in epochs, f"it runs, and was handed over in the epochs {epochs}"


def _check_words(words: Sequence[Record], heard: Heard) -> None:
    """At most one last word, at the end; if the peer's bytes were wrong, it names their code [ABT-1]."""
    last = [index for index, record in enumerate(words) if record.type in _LAST]
    assert last in ([], [len(words) - 1]), "words behind the last one"
    error = heard.result.error
    if not isinstance(error, RemoteProtocolError) or error.code.name == "TRUNCATED":
        return
    assert last, f"the peer is not told of {error}"
    final = words[-1]
    if isinstance(final, Bye):
        return  # it has said that it has nothing more to say
    assert isinstance(final, Abort | Refuse)
    assert final.code == error.code, f"the peer is told {final.code:#06x} of {error}"
    assert isinstance(final, Refuse) or final.frame == (error.frame or 0), f"frame {final.frame} of {error}"


def _check_source(words: Sequence[Record], heard: Heard) -> None:
    """The guest runs here unless HANDOVER has left, and then no more [CON-62] [ONE-20]."""
    guest, result = heard.pair.guest, heard.result
    handed_over = any(isinstance(record, Handover) for record in words)
    if handed_over:
        assert not guest.running, "it runs on, though another may run it"
        assert result.outcome in {Outcome.UNDECIDED, Outcome.MOVED, Outcome.COMPLETED}, result.outcome
        assert guest.released == (result.outcome is Outcome.COMPLETED), f"released: {guest.released}"
        return
    assert result.outcome is Outcome.ROLLED_BACK, f"{result.outcome}, though nobody else may run it"
    assert guest.running, "the guest stands still at the source"
    assert guest.granted_epoch is None, "it is still granted"
    assert not guest.released, "its memory is gone"
    assert not guest.machine.throttle, "it is still slowed down"
    assert not damaged(guest.workload), "its memory is damaged"


def _check_destination(plan: Plan, heard: Heard) -> None:
    """The guest runs here only with the memory of the pause, and if it was handed over.

    Where pages have no hashes, nobody finds other ones.
    """
    room, result = heard.pair.room, heard.result
    if not room.has_run:
        assert result.outcome is Outcome.ROLLED_BACK, f"{result.outcome}, though it never ran"
        assert room.machine is None, "what was reserved is still there"
        return
    assert result.outcome in {Outcome.COMPLETED, Outcome.MOVED}, result.outcome
    assert room.machine is not None
    if result.verified is False and _tables(spoil(plan).parts) != _tables(plan.frames):
        return
    assert room.machine.memory.tobytes() == plan.conversation.image, "it runs with another memory"
    assert not damaged(room.workload), "it runs with another state"


def _tables(parts: Sequence[bytes]) -> list[bytes]:
    """What comes of pages, whatever the numbers of their frames are."""
    frames = (part for part in parts[1:] if drafts.is_frame(part))
    return [part[HEADER_BYTES:] for part in frames if drafts.field(part, drafts.TYPE) == FrameType.PAGES]
