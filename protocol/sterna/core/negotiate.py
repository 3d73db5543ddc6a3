"""What the two sides agree on before anything moves. Pure functions; every refusal has its code.

The source offers, the destination selects a subset, and what was not selected is illegal from then on.
Unknown offers are ignored, so that a newer source can talk to an older destination; a *required* feature
that the destination lacks is a refusal, so that nobody guesses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from sterna import limits as bounds
from sterna.errors import LocalProtocolError, RemoteProtocolError, remote_error
from sterna.limits import HANDSHAKE_BODY_BYTES, Limits
from sterna.memory.zstd import WINDOW_LOG2_MAX, WINDOW_LOG2_MIN
from sterna.registry import (
    IMPLEMENTED_FEATURES,
    Encoding,
    ErrorCode,
    Feature,
    FrameType,
    Mode,
    Transfer,
)
from sterna.wire import header
from sterna.wire.records import FeatureChoice, FeatureOffer, Guest, Hello, Welcome

VERSION, VERSIONS = header.VERSION, header.VERSIONS

# Without these two nothing can be moved; the rest makes it better.
_REQUIRED = frozenset({Feature.STOP_AND_COPY, Feature.HASH_XXH3_64})

# What depends on more than the code: on a host's store, on what a guest can do, on what its owner wants.
_CONDITIONAL = frozenset(
    {
        Feature.BITMAP,
        Feature.POST_COPY,
        Feature.RESUME,
        Feature.LEASE_STORE,
        Feature.DATA_STREAMS,
        Feature.EARLY_PAGES,
        Feature.UNHASHED,
        Feature.ENCODING_ZSTD,
        Feature.ENCODING_DELTA,
    }
)

# What every endpoint of ours supports.
BASE_FEATURES: Final[frozenset[Feature]] = IMPLEMENTED_FEATURES - _CONDITIONAL

# With one of these the guest may run before all of its pages are there: the rest follows it.
FOLLOW_FEATURES: Final = frozenset({Feature.BITMAP, Feature.POST_COPY})
_ENCODINGS: Final = {
    Feature.ENCODING_ZERO: Encoding.ZERO,
    Feature.ENCODING_ZSTD: Encoding.ZSTD,
    Feature.ENCODING_DELTA: Encoding.DELTA,
}
_NOTHING: Final[Mapping[Feature, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Selection:
    """What a session runs on: version, features with their parameters, and the receiver's limits."""

    version: int
    features: Mapping[int, int]
    limits: Limits

    def has(self, feature: Feature) -> bool:
        """Whether the feature was selected."""
        return feature in self.features

    @property
    def encodings(self) -> frozenset[Encoding]:
        """The page encodings that may be used [PGS-9]."""
        return encodings_of(self.features)

    @property
    def hashed(self) -> bool:
        """Whether chunks have hashes; if not, each of them is 0 [MEM-20]."""
        return Feature.UNHASHED not in self.features

    @property
    def window_log2(self) -> int:
        """How far back zstd frames may look, in bytes; 0 if there are none [PGS-16]."""
        return self.features.get(Feature.ENCODING_ZSTD, 0)


def encodings_of(features: Collection[int]) -> frozenset[Encoding]:
    """The page encodings that these features permit [PGS-9]."""
    return frozenset({Encoding.RAW, *(_ENCODINGS[each] for each in _ENCODINGS if each in features)})


def offer(
    progress_ms: int = 1000,
    *,
    more: Mapping[Feature, int] = _NOTHING,
    required: Collection[Feature] = frozenset(),
) -> tuple[FeatureOffer, ...]:
    """The features that a source of ours offers: none that is not implemented [NEG-10].

    Args:
        progress_ms: least time between two PROGRESS frames.
        more: conditional features with their parameters, which this source can do with.
        required: those of them that it does not go without.
    """
    parameters = {**dict.fromkeys(BASE_FEATURES, 0), Feature.PROGRESS: progress_ms, **more}
    needed = _REQUIRED | frozenset(required)
    return tuple(FeatureOffer(each, each in needed, parameters[each]) for each in sorted(parameters))


def check_version(hello: Hello) -> None:
    """Raises RemoteProtocolError, NO_COMMON_VERSION, for a source that speaks none of ours."""
    if VERSION not in hello.versions:
        spoken = ", ".join(f"{version >> 16}-draft.{version & 0xFFFF}" for version in hello.versions)
        raise _refusal(ErrorCode.NO_COMMON_VERSION, f"the source speaks {spoken}", "NEG-1", FrameType.HELLO)


def select(hello: Hello, supported: Collection[int] = BASE_FEATURES, *, data_streams: int = 0) -> Selection:
    """The destination's choice. `data_streams`: how many data connections it takes.

    Raises:
        RemoteProtocolError: NO_COMMON_VERSION, MISSING_FEATURE or LIMIT_MISMATCH, to be answered with REFUSE.
    """
    check_version(hello)
    if hello.mode is not Mode.OPEN:
        detail = f"a HELLO of mode {hello.mode.name.lower()}"
        raise _refusal(ErrorCode.UNSUPPORTED, detail, "CON-10", FrameType.HELLO)
    missing = [each.id for each in hello.features if each.required and each.id not in supported]
    if missing:
        raise _refusal(
            ErrorCode.MISSING_FEATURE,
            f"required features that are missing here: {', '.join(map(feature_name, missing))}",
            "NEG-4",
            FrameType.HELLO,
        )
    features = {each.id: each.parameter for each in hello.features if each.id in supported}
    if Feature.RESUME in features:
        features[Feature.RESUME] = min(features[Feature.RESUME], bounds.RESUME_MOST_S)
    if Feature.DATA_STREAMS in features:
        features[Feature.DATA_STREAMS] = min(features[Feature.DATA_STREAMS], data_streams, bounds.STREAMS_MAX)
        if not features[Feature.DATA_STREAMS]:
            del features[Feature.DATA_STREAMS]
    if not _follows(features):
        features.pop(Feature.EARLY_PAGES, None)  # no page could be early [PCY-25]
    _limit_window(features)
    if Feature.UNHASHED in features:
        features.pop(Feature.ENCODING_DELTA, None)  # a change needs a base that is known [PGS-26]
    lacking = [feature_name(feature) for feature in sorted(_REQUIRED) if feature not in features]
    if lacking:
        detail = f"the source does not offer {', '.join(lacking)}"
        raise _refusal(ErrorCode.MISSING_FEATURE, detail, "NEG-4", FrameType.HELLO)
    return Selection(VERSION, features, usable_limits(hello.limits, FrameType.HELLO))


def _follows(features: Collection[int]) -> bool:
    """Whether pages may follow the guest."""
    return not FOLLOW_FEATURES.isdisjoint(features)


def _limit_window(features: dict[int, int]) -> None:
    """Zstd frames of a size that this side takes, or none, and then no changes either [PGS-23]."""
    window_log2 = min(features.get(Feature.ENCODING_ZSTD, 0), WINDOW_LOG2_MAX)
    if window_log2 < WINDOW_LOG2_MIN:
        features.pop(Feature.ENCODING_ZSTD, None)
        features.pop(Feature.ENCODING_DELTA, None)
    else:
        features[Feature.ENCODING_ZSTD] = window_log2


def check_first_epoch(hello: Hello, selection: Selection) -> None:
    """Two stores agree on an epoch that neither has filled, so with a store epoch 0 proves nothing [ONE-54].

    Raises:
        RemoteProtocolError: STALE_EPOCH, to be answered with REFUSE.
    """
    if selection.has(Feature.LEASE_STORE) and not hello.epoch:
        detail = "a guest that nobody has claimed, of a source with a lease store"
        raise _refusal(ErrorCode.STALE_EPOCH, detail, "ONE-54", FrameType.HELLO)


def choices(selection: Selection) -> tuple[FeatureChoice, ...]:
    """A selection as WELCOME carries it."""
    return tuple(FeatureChoice(feature, parameter) for feature, parameter in selection.features.items())


def check_welcome(hello: Hello, welcome: Welcome) -> Selection:
    """The source's check of what was selected.

    Raises:
        RemoteProtocolError: UNSOLICITED if it was not offered or makes no sense, MISSING_FEATURE if it was
            required and is not selected, LIMIT_MISMATCH for limits that no session fits.
    """
    if welcome.version not in hello.versions:
        raise _refusal(ErrorCode.UNSOLICITED, "a version that was not offered", "NEG-2", FrameType.WELCOME)
    selected = {each.id: each.parameter for each in welcome.features}
    offers = {each.id: each.parameter for each in hello.features}
    surplus = [feature for feature in selected if feature not in offers]
    if surplus:
        raise _refusal(
            ErrorCode.UNSOLICITED,
            f"features that were not offered: {', '.join(map(feature_name, surplus))}",
            "NEG-5",
            FrameType.WELCOME,
        )
    grown = [number for number, parameter in selected.items() if _is_more(number, parameter, offers[number])]
    if grown:
        raise _refusal(
            ErrorCode.UNSOLICITED,
            f"parameters that ask for more than was offered: {', '.join(map(feature_name, grown))}",
            "NEG-8",
            FrameType.WELCOME,
        )
    if Feature.ENCODING_DELTA in selected and Feature.ENCODING_ZSTD not in selected:
        detail = "encoding_delta without encoding_zstd"
        raise _refusal(ErrorCode.UNSOLICITED, detail, "PGS-23", FrameType.WELCOME)
    if Feature.ENCODING_DELTA in selected and Feature.UNHASHED in selected:
        detail = "encoding_delta together with unhashed"
        raise _refusal(ErrorCode.UNSOLICITED, detail, "PGS-26", FrameType.WELCOME)
    if Feature.EARLY_PAGES in selected and not _follows(selected):
        detail = "early_pages without bitmap or post_copy"
        raise _refusal(ErrorCode.UNSOLICITED, detail, "PCY-25", FrameType.WELCOME)
    missing = [each.id for each in hello.features if each.required and each.id not in selected]
    if missing:
        raise _refusal(
            ErrorCode.MISSING_FEATURE,
            f"required, but not selected: {', '.join(map(feature_name, missing))}",
            "NEG-6",
            FrameType.WELCOME,
        )
    return Selection(welcome.version, selected, usable_limits(welcome.limits, FrameType.WELCOME))


def _is_more(feature: int, selected: int, offered: int) -> bool:
    """Whether a parameter asks for more than the offered one; that of `progress` is a least time."""
    return selected < offered if feature == Feature.PROGRESS else selected > offered


def check_granules(guest: Guest, limits: Limits) -> None:
    """The destination's check that a page fits a frame; the codec holds GUEST to the other limits.

    Raises:
        RemoteProtocolError: PAGE_SIZE, to be answered with REFUSE.
    """
    granule_bytes = _largest_granule_bytes(guest)
    if granule_bytes > limits.bulk_bytes:
        detail = f"granules of {granule_bytes} bytes, a frame takes {limits.bulk_bytes}"
        raise _refusal(ErrorCode.PAGE_SIZE, detail, "CON-15", FrameType.GUEST)


def check_room(guest: Guest, peer: Limits) -> None:
    """The source's check that a guest fits what the destination announced, before it sends GUEST.

    Raises:
        LocalProtocolError: LIMIT_MISMATCH.
    """
    memory_bytes = sum(region.size_bytes for region in guest.regions)
    for need, have, what in (
        (len(guest.regions), peer.regions, "regions"),
        (memory_bytes, peer.memory_bytes, "bytes of memory"),
        (guest.state_bytes, peer.state_bytes, "bytes of state"),
        (_largest_granule_bytes(guest), peer.bulk_bytes, "bytes of bulk a frame"),
    ):
        if need > have:
            detail = f"the guest needs {need} {what}, announced are {have}"
            raise LocalProtocolError(ErrorCode.LIMIT_MISMATCH, detail, clause="LIM-6")


def _largest_granule_bytes(guest: Guest) -> int:
    copied = (region for region in guest.regions if region.transfer is Transfer.COPY)
    return max((1 << region.granule_log2 for region in copied), default=0)


def usable_limits(stated: Mapping[int, int], frame: FrameType) -> Limits:
    """The peer's limits, if a session fits them at all."""
    limits = Limits.from_wire(stated)
    if limits.control_bytes < HANDSHAKE_BODY_BYTES or not limits.bulk_bytes or not limits.batch_runs:
        raise _refusal(ErrorCode.LIMIT_MISMATCH, "no session fits the peer's limits", "LIM-7", frame)
    return limits


def feature_name(number: int) -> str:
    """The registry's name of a feature, or its number."""
    return next((each.name.lower() for each in Feature if each == number), f"feature {number}")


def _refusal(code: ErrorCode, detail: str, clause: str, frame: FrameType) -> RemoteProtocolError:
    return remote_error(code, detail, clause=clause, frame=frame)
