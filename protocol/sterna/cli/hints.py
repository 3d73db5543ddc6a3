"""What to do next, for errors whose text says only what is wrong: the protocol's know of no options."""

from __future__ import annotations

from typing import Final

from sterna.errors import PeerAborted
from sterna.registry import ErrorCode

_HERE: Final = {
    ErrorCode.CONNECT_FAILED: "is `sterna serve` running there, and does a firewall let the port through?",
    ErrorCode.TLS_ON_PLAIN: "the other side wants TLS: give --pki DIR instead of --insecure",
    ErrorCode.PLAIN_ON_TLS: "the other side was started with --insecure: give it certificates with --pki DIR",
    ErrorCode.TLS_FAILED: (
        "`sterna pki issue DIR NAME --host ADDRESS` makes a certificate for the dialled name; "
        "--peer NAME expects an identity instead"
    ),
    ErrorCode.NOT_CONVERGING: "allow a longer --downtime or more --bandwidth, or wait until it writes less",
    ErrorCode.PEER_SILENT: "look at the other host; --patience TIME waits longer",
    ErrorCode.PEER_STALLED: "look at the other host; --patience TIME waits longer",
    ErrorCode.PHASE_DEADLINE: "look at the other host; --patience TIME waits longer",
    ErrorCode.NO_COMMON_VERSION: "install the same release of Sterna on both hosts",
}
_THERE: Final = {
    ErrorCode.BUSY: (
        "another session there has this guest, or another process its records. A session that lost its link "
        "is kept there as long as its --resume said, 1min unless it was given: try again then. If both hosts "
        "are this machine, give each of them its own --name or --records"
    ),
    ErrorCode.PEER_NOT_LISTED: "add this host's identity to the peer list there (`sterna serve --help`)",
    ErrorCode.NOT_AUTHORISED: "add the guest to this host's may_send in the peer list there",
    ErrorCode.FULL: "free memory there, or try another host",
    ErrorCode.LIMIT_MEMORY: "the other host was started with a smaller --memory-limit",
    ErrorCode.REFUSED: (
        "look at what the other host says: its holder may have a guest already, or its store not answer; "
        "a --store directory without a / in front is looked for where that command was started"
    ),
    ErrorCode.MISSING_FEATURE: (
        "the other host says which; if it is a lease store, give both hosts the same --store, or neither"
    ),
    ErrorCode.STALE_EPOCH: (
        "give both hosts the same --store, or neither; `sterna verdict` tells who owns the guest"
    ),
    ErrorCode.NO_COMMON_VERSION: "install the same release of Sterna on both hosts",
}


def hint(error: BaseException | None) -> str:
    """One sentence, empty if there is nothing to add."""
    code = getattr(error, "code", None)
    known = _THERE if isinstance(error, PeerAborted) else _HERE
    return known.get(code, "") if isinstance(code, ErrorCode) else ""


def hinted(text: str, error: BaseException | None) -> str:
    """`text`, with the hint of `error` on a line of its own."""
    said = hint(error)
    return f"{text}\n  {said}" if said else text
