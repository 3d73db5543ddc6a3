"""Every bound, with its reason. Nothing here is negotiated except `Limits`, which each side announces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from sterna.registry import DEFAULT_LIMITS, Limit

PREFACE_BYTES: Final = 16
HEADER_BYTES: Final = 32

# A chunk is what one page hash covers at most: large enough that a hash costs less than the copy,
# small enough to stay in the first-level caches while it is hashed and sent.
CHUNK_BYTES: Final = 64 * 1024
GRANULE_MIN_LOG2: Final = 12  # 4 KiB, the smallest page of every architecture that we know
GRANULE_MAX_LOG2: Final = 16  # a granule is never larger than a chunk

# The largest plaintext of a TLS record.
RECORD_BYTES: Final = 16 * 1024

# Handshake frames come from peers that have announced nothing yet.
HANDSHAKE_BODY_BYTES: Final = 64 * 1024
TEXT_BYTES: Final = 255  # every text field: a name, a reason. Its length still fits one byte.
VERSIONS: Final = 16
FEATURES: Final = 64
LIMITS: Final = 64
CPU_FEATURES: Final = 1024
NICS: Final = 64
DISKS: Final = 64
REFUSE_ITEMS: Final = 64
STREAMS_MAX: Final = 16

# A batch is what one PAGES frame carries: large enough that its fixed cost (some 200 us on both sides)
# is small beside its bytes, small enough that frames behind it, heartbeats and ABORT, wait some 40 ms
# on a gigabit link.
BATCH_BYTES: Final = 4 * 1024 * 1024
# What a source makes of it where the link is fast and the guest large: the fixed cost is that of caches which
# page bytes have passed through, a tenth of what moving takes with batches of the usual size.
LARGE_BATCH_BYTES: Final = 4 * BATCH_BYTES

# Runs without bytes may cover so many times what a frame may carry [PGS-24]: a GiB by default, of which a
# receiver writes the entries, 2.3 MiB. What was never written is few frames then, and none takes long.
BLANK_FACTOR: Final = 64

# What a run of a batch may expand to, for each of its bytes. No frame has less than 10, so a mebibyte is not
# too much, whatever is in it; and what a batch comes to is bounded whatever this says.
EXPANSION: Final = 1 << 17

# Ignored frames of unknown type between two frames that we know; more is a peer that only burns time.
UNKNOWN_FRAMES_IN_A_ROW: Final = 256

# A rejected page of a running guest means that it was written between hash and send. More than this
# share of a round (and more than the floor) is a broken sender.
REJECTED_SHARE_MAX: Final = 0.25
REJECTED_FLOOR_PAGES: Final = 1024

# Rounds that a side remembers of a session. Our own sources have at most 1000 (`PolicySettings.max_rounds`);
# a destination cannot tell how many its peer has in mind, and a round costs that one two empty frames.
ROUNDS_KEPT: Final = 1024

# What a policy may be told: below, a clock's own error decides; above, it is no live migration any more.
DOWNTIME_LEAST_S: Final = 0.001
DOWNTIME_MOST_S: Final = 3600.0
ROUNDS_MOST: Final = 1000

# Seconds for which a lost session is kept: what a source asks for, and the most that a destination agrees to.
# It pays with a guest's whole memory; a source that is not back within minutes has given up or is gone.
RESUME_S: Final = 60
RESUME_MOST_S: Final = 600

# Rounds that were begun and not completed, one for each loss of the link, whose pages each side tells apart;
# of older ones the pages are sent again. A bit a page each: at most two bytes a page.
ROUNDS_APART: Final = 16

# 2**64 bytes of guest address space; a region must end inside.
ADDRESS_SPACE: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver announces in HELLO or WELCOME; field names are those of the registry.

    A peer's unknown limits are ignored, missing ones have the registry's default. For an endpoint of one's
    own begin with those of `Options`: ``replace(Options().limits, memory_bytes=1 << 30)``. The default of
    `expansion` here takes no packed pages.

    Attributes:
        control_bytes: the longest body of a frame that is no bulk; 64 KiB at least [LIM-7].
        bulk_bytes: the most page bytes of a frame; above 0.
        regions: of a guest.
        memory_bytes: of a guest, all regions together.
        state_bytes: of a guest's state, all sections together.
        state_sections: of a guest's state [STA-7].
        batch_runs: runs of one PAGES frame; above 0 [PGS-5].
        data_streams: data connections; of a destination `Options.streams` says it.
        page_requests: of pages that are asked for and have not come [CMP-3].
        expansion: times its bytes on the wire that a run may have; 1 is no packed pages.
        rejected_runs: of pages in one ROUND_ACK.
    """

    control_bytes: int = DEFAULT_LIMITS[Limit.CONTROL_BYTES]
    bulk_bytes: int = DEFAULT_LIMITS[Limit.BULK_BYTES]
    regions: int = DEFAULT_LIMITS[Limit.REGIONS]
    memory_bytes: int = DEFAULT_LIMITS[Limit.MEMORY_BYTES]
    state_bytes: int = DEFAULT_LIMITS[Limit.STATE_BYTES]
    state_sections: int = DEFAULT_LIMITS[Limit.STATE_SECTIONS]
    batch_runs: int = DEFAULT_LIMITS[Limit.BATCH_RUNS]
    data_streams: int = DEFAULT_LIMITS[Limit.DATA_STREAMS]
    page_requests: int = DEFAULT_LIMITS[Limit.PAGE_REQUESTS]
    expansion: int = DEFAULT_LIMITS[Limit.EXPANSION]
    rejected_runs: int = DEFAULT_LIMITS[Limit.REJECTED_RUNS]

    @classmethod
    def from_wire(cls, pairs: Mapping[int, int]) -> Limits:
        """The limits that a peer stated as id and value."""
        known = {int(limit): limit.name.lower() for limit in Limit}
        return cls(**{known[number]: value for number, value in pairs.items() if number in known})

    def to_wire(self) -> dict[int, int]:
        """Id and value of every limit, in the order of the registry."""
        return {int(Limit[field.name.upper()]): getattr(self, field.name) for field in fields(self)}
