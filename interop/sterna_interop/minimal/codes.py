"""Error codes (6.5) and how a session ends with one."""

from __future__ import annotations

from typing import Final

_CLASSES: Final = {
    0x0101: "bad_magic text_mode_damage tls_on_plain http_on_plain header_checksum body_checksum bad_header "
    "unknown_critical malformed trailing_bytes bad_value bad_text truncated bad_sequence unexpected_frame "
    "wrong_direction not_selected bad_region outside_region overlapping_runs bad_attempt bad_round "
    "count_mismatch page_hash too_many_rejected digest_mismatch bad_fragment bad_epoch bad_token "
    "memory_mismatch unsolicited",
    0x0201: "no_common_version missing_feature page_size architecture cpu_features region_kind unknown_state "
    "unsupported",
    0x0301: "limit_control limit_bulk limit_regions limit_memory limit_state limit_runs limit_rejected "
    "limit_mismatch limit_rate limit_expansion",
    0x0401: "refused full not_authorised busy stale_epoch guest_failed state_rejected not_ready "
    "record_failed internal",
    0x0501: "connection_lost not_closed tls_failed peer_not_listed plain_on_tls wrong_alpn peer_silent "
    "peer_stalled phase_deadline connect_failed",
    0x0601: "cancelled not_converging too_late undecided guest_lost voided",
}
NUMBERS: Final = {
    name: base + place for base, names in _CLASSES.items() for place, name in enumerate(names.split())
}
NAMES: Final = {number: name for name, number in NUMBERS.items()}


class SessionError(Exception):
    """The session is over.

    Attributes:
        code: name of the error code.
        offset: where in the offending frame, from the header's first byte.
        by_peer: the code came in ABORT or REFUSE.
        mute: there is nobody to be told: the connection is gone, or the peer has said it itself.
    """

    def __init__(self, code: str, offset: int = 0, *, by_peer: bool = False, mute: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self.offset = offset
        self.by_peer = by_peer
        self.mute = mute


def from_peer(number: int) -> SessionError:
    """What an ABORT or REFUSE means; a code that nobody knows is `internal` (ABT-3, REF-3)."""
    return SessionError(NAMES.get(number, "internal"), by_peer=True, mute=True)
