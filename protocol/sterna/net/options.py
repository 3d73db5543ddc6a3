"""What endpoints can be told, and what follows from that for what they offer, select and send."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from sterna import limits as bounds
from sterna.core.deadlines import Deadlines
from sterna.core.events import Request
from sterna.core.negotiate import BASE_FEATURES, FOLLOW_FEATURES
from sterna.core.policy import PolicySettings, Switchover
from sterna.core.session import Grease
from sterna.core.style import offer_for
from sterna.errors import ConfigError
from sterna.limits import Limits
from sterna.memory.zstd import WINDOW_LOG2
from sterna.net.pump import Clock, OnEvent, boottime
from sterna.net.rate import RateLimiter
from sterna.net.streams import enough_streams
from sterna.registry import GREASE_FIRST, GREASE_LAST, Feature
from sterna.wire.records import FeatureOffer

AGENT = "sterna"

PACKED = frozenset({Feature.ENCODING_ZSTD, Feature.ENCODING_DELTA})

_BATCH_S = 0.05
# What QEMU sets aside for the same, unless it is told otherwise.
VERSIONS_BYTES = 64 << 20

_GREASE_FRAMES = 3
_GREASE_WITHIN = 40
_GREASE_BYTES = 64


class Compress(Enum):
    """Whether a source packs pages.

    `AUTO` does where it pays at the rate of the link, `ALWAYS` wherever they become smaller.
    """

    OFF = "off"
    AUTO = "auto"
    ALWAYS = "always"


def own_limits(memory_bytes: int | None = None) -> Limits:
    """What this side announces. `memory_bytes`: of a guest at most, None for the default."""
    limits = Limits(expansion=bounds.EXPANSION)
    return limits if memory_bytes is None else replace(limits, memory_bytes=memory_bytes)


class OnRequest(Protocol):
    """Told of every request before it is carried out, and again when it has been."""

    def __call__(self, request: Request, /, *, done: bool) -> None:
        """Must not block; what it raises fails the request."""
        ...


def ignore_request(request: object, *, done: bool) -> None:
    """The `OnRequest` that does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What both endpoints can be told; the defaults suit a local network.

    Attributes:
        limits: what this side announces that it takes; begin with the default, see `Limits`.
        deadlines: how long the peer is waited for, by the phase.
        policy: when to pause; None is the default with a fixed cost that suits the guest's size.
        bandwidth_bytes_s: cap on all that this side sends, on all connections together, before TLS; None for
            none. It is kept within 5 % over any second, see `sterna.net.rate`.
        batch_bytes: of page bytes in a frame at most; less with a cap, on a slow link or one with TLS, of a
            small guest, where pages may be packed, or where the peer's limits are lower.
        on_event: called with every event of the machine, between two checkpoints; must not block.
        post_copy: as a destination: its guests can run before all of their pages are there.
        on_request: called around every request; for tests that must know where an endpoint stands.
        clock: seconds that never run backwards; tests in virtual time pass `trio.current_time`.
        grease: whether to send reserved frames at random, which keeps peers honest [FRM-9].
        agent: what this implementation calls itself to the peer.
        resume_s: how long a lost session is to be kept, for a source that can reconnect.
        streams: data connections, beside which the control connection carries no bulk: as a source, what is
            asked for, if it can dial; as a destination, the most that are taken. None: as a source, as many
            as a link of this delay needs (`sterna.net.streams`); as a destination, as many as there can be.
        compress: as a source: whether pages are packed. Destinations take what they can bound.
        versions_bytes: memory for versions that were sent, to send changes of them; 0 for none.
        lease_store: whether the endpoint's `Host` has one; a source does not go without then [ONE-55].
        verified: whether pages are verified by hashes. They go without where both sides say so, and then
            nothing finds bytes that change in memory or on the way [MEM-20].
        early_pages: whether what a guest waits for may come page by page on a connection of its own, ahead of
            the groups of pages that follow it [13.3]. Each side forks a process for that. Connections that
            are recorded go without: nobody can give them away.
    """

    limits: Limits = field(default_factory=own_limits)
    deadlines: Deadlines = field(default_factory=Deadlines)
    policy: PolicySettings | None = None
    bandwidth_bytes_s: float | None = None
    batch_bytes: int = bounds.LARGE_BATCH_BYTES
    post_copy: bool = False
    on_event: OnEvent = lambda _: None
    on_request: OnRequest = ignore_request
    clock: Clock = boottime
    grease: bool = True
    agent: str = AGENT
    resume_s: int = bounds.RESUME_S
    lease_store: bool = False
    streams: int | None = 0
    compress: Compress = Compress.OFF
    versions_bytes: int = VERSIONS_BYTES
    verified: bool = True
    early_pages: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for a cap so low that a chunk would look stalled, or too many streams."""
        if self.streams is not None and not 0 <= self.streams <= bounds.STREAMS_MAX:
            raise ConfigError(f"{self.streams} data connections: there are at most {bounds.STREAMS_MAX}")
        cap = self.bandwidth_bytes_s
        if cap is not None and not bounds.CHUNK_BYTES <= cap < math.inf:
            raise ConfigError(f"a bandwidth cap of {cap:g} bytes/s: the least is {bounds.CHUNK_BYTES}")


def offer(options: Options, switchover: Switchover, *, dials: bool) -> tuple[FeatureOffer, ...]:
    """What a source offers, and what it cannot do without. `dials`: it can make more connections."""
    more = {Feature.RESUME: options.resume_s} if dials and options.resume_s else {}
    if options.compress is not Compress.OFF:
        more[Feature.ENCODING_ZSTD] = WINDOW_LOG2
        more[Feature.ENCODING_DELTA] = options.versions_bytes
    if dials and options.streams:
        more[Feature.DATA_STREAMS] = options.streams
        if _can_answer_early(options) and switchover != "stop-and-copy":
            more[Feature.EARLY_PAGES] = 0
    if not options.verified:
        more[Feature.UNHASHED] = 0
    if not options.lease_store:
        return offer_for(switchover, more)
    return offer_for(switchover, {**more, Feature.LEASE_STORE: 0}, {Feature.LEASE_STORE})


def _can_answer_early(options: Options) -> bool:
    """A source with a bandwidth cap cannot: these pages would pass it by."""
    return options.early_pages and options.bandwidth_bytes_s is None


def supported(options: Options, *, finds: bool) -> frozenset[Feature]:
    """What a destination selects if it is offered. `finds`: a connection finds the session of another."""
    follow = FOLLOW_FEATURES if options.post_copy else frozenset()
    store = {Feature.LEASE_STORE} if options.lease_store else frozenset()
    more = {Feature.RESUME, Feature.DATA_STREAMS} if finds else frozenset()
    unhashed = frozenset() if options.verified else {Feature.UNHASHED}
    early = {Feature.EARLY_PAGES} if finds and options.early_pages and options.post_copy else frozenset()
    return BASE_FEATURES | PACKED | follow | store | more | unhashed | early


def with_streams(options: Options, switchover: Switchover, rtt_s: float | None) -> Options:
    """The same for a source, with a number of data connections. `rtt_s`: of its connection, if known."""
    if options.streams is not None:
        return options
    enough = enough_streams(
        rtt_s, pages_may_follow=switchover != "stop-and-copy", cap_bytes_s=options.bandwidth_bytes_s
    )
    return replace(options, streams=enough)


def most_streams(options: Options) -> int:
    """How many data connections a destination takes."""
    return bounds.STREAMS_MAX if options.streams is None else options.streams


def batch_bytes(options: Options, *, plain: bool) -> int:
    """A batch that passes a bandwidth cap in `_BATCH_S`, so that heartbeats behind it are not late.

    None is large that TLS encrypts: it should lie in a near cache for that, and what a batch costs else is
    little beside it. Nor is one that may be packed, of which several are held in memory.
    """
    most = options.batch_bytes
    if not plain or options.compress is not Compress.OFF:
        most = min(most, bounds.BATCH_BYTES)
    if options.bandwidth_bytes_s is None:
        return most
    return min(most, max(bounds.CHUNK_BYTES, int(options.bandwidth_bytes_s * _BATCH_S)))


def limiter(options: Options) -> RateLimiter | None:
    """The bandwidth cap, if there is one."""
    return None if options.bandwidth_bytes_s is None else RateLimiter(options.bandwidth_bytes_s)


def grease() -> tuple[Grease, ...]:
    """A few reserved frames at random places of the session; the core itself throws no dice."""
    return tuple(
        Grease(
            secrets.randbelow(_GREASE_WITHIN),
            GREASE_FIRST + secrets.randbelow(GREASE_LAST - GREASE_FIRST + 1),
            secrets.token_bytes(secrets.randbelow(_GREASE_BYTES)),
        )
        for _ in range(_GREASE_FRAMES)
    )
