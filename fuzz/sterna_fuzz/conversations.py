"""Valid conversations, recorded: what mutators start from.

Two machines talk through a `sterna.testing.pair.Pair`, and every byte is kept, with the guest's memory at
the moment of the pause. Guests are a few pages large: what a parser can get wrong does not need more, and a
fuzzer lives from the number of its examples.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from sterna.core.destination import DestinationConfig
from sterna.core.events import CollectDirty, Discard, Pause, Prepare, Request, Reserve, StartTracking
from sterna.core.negotiate import BASE_FEATURES, offer
from sterna.core.policy import PolicySettings
from sterna.core.session import Grease, Session
from sterna.core.source import SourceConfig
from sterna.errors import GuestError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import PAGE_BYTES, WorkloadParameters
from sterna.limits import EXPANSION, Limits
from sterna.memory.pages import RegionPages
from sterna.memory.unpacking import Unpacking
from sterna.registry import GREASE_FIRST, ErrorCode, Feature, StateKind
from sterna.testing.pair import Pair
from sterna.wire import decode_header
from sterna.wire.records import Region, Runner, StateSection
from sterna_fuzz.guests import ScribblingGuest

EPOCH: Final = 5
PREFACE_BYTES: Final = 16
HEADER_BYTES: Final = 32
SOURCE, DESTINATION = "source", "destination"
WINDOW_LOG2: Final = 18
PACKED: Final = MappingProxyType({Feature.ENCODING_ZSTD: WINDOW_LOG2, Feature.ENCODING_DELTA: 1 << 20})


@dataclass(frozen=True, slots=True)
class Script:
    """What happens in a conversation besides its frames.

    Attributes:
        pages, zero_pages: of the guest.
        regions: pages of each region; one region if empty.
        writes: pages that the guest writes before each collect; the last number holds for all that follow.
        rounds: rounds of the running guest that the policy is made to go for.
        not_ready: how often preparing fails.
        damage: whether the first page bytes are damaged on their way, so that they are rejected.
        grease: whether frames to be skipped are sent.
        zeros: whether the feature of zero pages is offered.
        sections: sizes of further state sections, besides the workload's.
        wiped: whether a page that was sent becomes zero afterwards.
        packed: whether pages may come packed, and some compress. They do not come so: mutators pack them.
        hashed: whether pages have hashes.
        fault: the request that fails, None for none.
    """

    pages: int = 6
    zero_pages: int = 2
    regions: tuple[int, ...] = ()
    writes: tuple[int, ...] = (0,)
    rounds: int = 1
    not_ready: int = 0
    damage: bool = False
    grease: bool = False
    zeros: bool = True
    sections: tuple[int, ...] = ()
    wiped: bool = False
    packed: bool = False
    hashed: bool = True
    fault: type | None = None


SCRIPTS: Final[Mapping[str, Script]] = {
    "plain": Script(),
    "dirty": Script(writes=(2, 1), rounds=3),
    "regions": Script(pages=9, zero_pages=3, regions=(4, 2, 3), writes=(1,), rounds=2),
    "zero": Script(pages=24, zero_pages=23, writes=(1,)),
    "bytes_only": Script(zeros=False),
    "grease": Script(writes=(1,), rounds=2, grease=True),
    "rejected": Script(writes=(1, 0), rounds=2, damage=True),
    "not_ready": Script(writes=(1,), not_ready=1),
    "state": Script(sections=(0, 300, 40_000)),
    "wiped": Script(rounds=2, wiped=True),
    "packed": Script(pages=24, zero_pages=12, writes=(3, 1), rounds=2, packed=True),
    "unhashed": Script(writes=(2, 1), rounds=2, hashed=False),
    "refused": Script(fault=Reserve),
    "aborted": Script(fault=Pause),
}


class _Guest(ScribblingGuest):
    """With state sections of devices that nobody knows."""

    sections: tuple[int, ...] = ()

    async def save_state(self) -> Sequence[StateSection]:
        """The workload's, and the others."""
        more = (
            StateSection(StateKind.OPAQUE, 1, bytes(number % 251 for number in range(size)), instance=index)
            for index, size in enumerate(self.sections)
        )
        return (*await super().save_state(), *more)


class _Room(SimulatedDestinationGuest):
    """Takes the workload's state, whatever devices there are."""

    async def load_state(self, sections: Sequence[StateSection]) -> None:
        """The workload's section alone."""
        await super().load_state([each for each in sections if each.kind != StateKind.OPAQUE])


class Scripted(Pair):
    """A pair that follows a script. The guest writes whenever its writes are about to be collected."""

    def __init__(self, script: Script, *, destination_config: DestinationConfig | None = None) -> None:
        self.script = script
        hot = script.pages - script.zero_pages
        parameters = WorkloadParameters(7, script.pages, hot, block_pages=1, zero_pages=script.zero_pages)
        guest = _Guest(parameters, region_pages=script.regions)
        guest.sections = script.sections
        super().__init__(
            guest,
            _Room(),
            source_config=source_config(script, guest),
            destination_config=destination_config or destination_config_of(script),
        )
        self.guest: Final = guest
        self.room: Final[SimulatedDestinationGuest] = self.destination_guest  # type: ignore[assignment]
        self.image = b""
        self._collects = 0
        self._not_ready = script.not_ready
        self._damage = script.damage
        if script.fault is not None:
            self.fail_on[script.fault] = GuestError("scripted", ErrorCode.FULL)

    def answer(self, name: str, machine: Session) -> bool:
        """Carry out the requests of one side, and let the guest have its writes. Whether there were any."""
        if self._not_ready and name == DESTINATION:
            self.fail_on[Prepare] = GuestError("scripted", ErrorCode.NOT_READY)
        moved = self.perform(name, machine)
        if self._not_ready and any(isinstance(each, Prepare) for each in self.performed[name]):
            self._not_ready -= 1
            self.fail_on.pop(Prepare, None)
        return moved

    def under_way(self, said: bytes) -> bytes:
        """What arrives of what was said: the first page bytes damaged, if the script wants that."""
        if not self._damage or len(said) <= PAGE_BYTES:
            return said
        self._damage = False
        return said[:-1] + bytes([said[-1] ^ 1])

    async def _source(self, request: Request) -> object:
        scribbled = self.script.zero_pages if self.script.packed else int(self.script.wiped)
        for number in range(scribbled):
            if isinstance(request, StartTracking):
                self.guest.scribble(number, number + 1)
            elif isinstance(request, CollectDirty) and not request.last and not self._collects:
                self.guest.scribble(number, 0)
        if isinstance(request, CollectDirty) and not request.last:
            writes = self.script.writes
            self.guest.workload.write(writes[min(self._collects, len(writes) - 1)])
            self._collects += 1
        answer = await super()._source(request)
        if isinstance(request, Pause):
            self.image = self.guest.machine.memory.tobytes()
        return answer

    async def _destination(self, request: Request) -> object:
        if isinstance(request, Discard) and self.room.description is None:
            return None  # nothing was reserved
        answer = await super()._destination(request)
        if self.script.packed and isinstance(answer, RegionPages):
            return Unpacking(answer, WINDOW_LOG2)
        return answer


def source_config(script: Script, guest: SimulatedSourceGuest) -> SourceConfig:
    """What makes the source do what the script says."""
    # Never satisfied before the rounds are used up, and then in any case.
    policy = PolicySettings(
        allowed_downtime_s=0.001,
        fixed_cost_s=1.0,
        max_rounds=script.rounds,
        max_throttle=0.0,
        on_exhausted="switch",
    )
    offered = offer(more=_more(script))
    features = tuple(each for each in offered if script.zeros or each.id != Feature.ENCODING_ZERO)
    runner = Runner("here", bytes(range(32, 48)))
    record = guest.description.to_record()
    return SourceConfig(
        guest=replace(record, state_bytes=record.state_bytes + sum(script.sections)),
        guest_id=guest.description.id,
        agent="here",
        epoch=EPOCH,
        runner=runner,
        policy=policy,
        features=features,
        grease=_grease(script),
    )


def destination_config_of(script: Script, limits: Limits | None = None) -> DestinationConfig:
    """What a destination announces and takes; `limits` other than the default ones."""
    config = DestinationConfig(agent="there", grease=() if limits else _grease(script))
    limits = limits or config.limits
    if script.packed:
        limits = replace(limits, expansion=EXPANSION)
    return replace(config, limits=limits, features=BASE_FEATURES | _more(script).keys())


def _more(script: Script) -> dict[Feature, int]:
    """What is offered and taken besides what always is."""
    bare = {} if script.hashed else {Feature.UNHASHED: 0}
    return {**bare, **(PACKED if script.packed else {})}


def _grease(script: Script) -> tuple[Grease, ...]:
    if not script.grease:
        return ()
    return tuple(Grease(after, GREASE_FIRST + after, bytes(after)) for after in (2, 3, 5, 8))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A recorded one.

    Attributes:
        frames: by side, what it sent: the preface, then frames, each whole.
        image: the guest's memory at the pause; empty if it came to none.
        regions: the guest's.
        completed: whether the guest has moved.
    """

    script: Script
    frames: Mapping[str, tuple[bytes, ...]]
    image: bytes
    regions: tuple[Region, ...]
    completed: bool


@functools.cache
def conversation(name: str) -> Conversation:
    """The conversation of a script."""
    script = SCRIPTS[name]
    pair = Scripted(script)
    heard = {SOURCE: bytearray(), DESTINATION: bytearray()}
    pair.start()
    moved = True
    while moved:
        moved = _turn(pair, SOURCE, heard) | _turn(pair, DESTINATION, heard)
    assert pair.source.result is not None
    return Conversation(
        script,
        {side: split(bytes(data)) for side, data in heard.items()},
        pair.image,
        pair.guest.description.regions,
        pair.source.result.outcome.value == "completed",
    )


def _turn(pair: Scripted, side: str, heard: dict[str, bytearray]) -> bool:
    """One side does all that it can, and the other one hears it."""
    machine, other = (pair.source, pair.destination)
    if side == DESTINATION:
        machine, other = other, machine  # type: ignore[assignment]
    moved = pair.answer(side, machine)
    while said := say(machine, pair.now):
        moved = True
        heard[side] += said
        other.receive_data(pair.under_way(said), pair.now)
    return moved


def say(machine: Session, now: float) -> bytes:
    """The next unit that a machine sends; empty if there is none."""
    data = b"".join(bytes(buffer) for buffer in machine.poll_transmit(now))
    if data:
        machine.transmitted(len(data), now)
    return data


def split(stream: bytes) -> tuple[bytes, ...]:
    """Preface and frames of a valid stream."""
    parts, at = [stream[:PREFACE_BYTES]], PREFACE_BYTES
    while at < len(stream):
        header = decode_header(stream[at : at + HEADER_BYTES])
        end = at + HEADER_BYTES + header.body_bytes + header.bulk_bytes
        parts.append(stream[at:end])
        at = end
    return tuple(parts)
