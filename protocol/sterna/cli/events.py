"""A migration's events as JSON objects: the lines of `--follow`, and what the live display is drawn from.

Every line is one object with `schema`, `event` and `time_ns` (CLOCK_BOOTTIME: on one host the lines of two
commands can be put in order). Commands add their own: `listening`, `connected`, `refused`, `guest`,
`progress`, `notice`; the last line of a command is always `result` or `error`.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from sterna.cli.warned import warnings_of
from sterna.core.events import (
    Decided,
    Event,
    Finished,
    PagesFollow,
    PagesFollowed,
    PeerProgress,
    PhaseEntered,
    Result,
    RoundFinished,
    RoundStarted,
    SessionOpened,
    SessionResumed,
    StreamAttached,
    Suspended,
)
from sterna.core.policy import RoundStats
from sterna.core.serving import AfterStats
from sterna.core.words import count_text, duration_text, times_text
from sterna.guest.holder_client import HolderStatus
from sterna.net.transport import Peer, TlsInfo, Transport
from sterna.registry import ErrorCode, Phase, Style
from sterna.wire.records import Verdict

Fields: TypeAlias = dict[str, object]

# Sizes and counts that a peer states go up to 2**64 - 1; other readers of JSON lose digits above this.
_EXACT: Final = (1 << 53) - 1


def event_fields(event: Event) -> Fields:
    """A machine's event; `event` is its name."""
    match event:
        case SessionOpened(session, agent, version):
            return {
                "event": "session_opened",
                "session": session.hex(),
                "peer_agent": agent,
                "version": version,
            }
        case PhaseEntered(phase):
            return {"event": "phase", "phase": phase_name(phase)}
        case StreamAttached(stream, generation):
            return {"event": "stream_attached", "stream": stream, "generation": generation}
        case RoundStarted(number, pages, last):
            return {"event": "round_started", "round": number, "pages": min(pages, _EXACT), "last": last}
        case RoundFinished(stats):
            return {"event": "round_finished", **round_fields(stats)}
        case Decided(decision):
            return {
                "event": "decided",
                "action": decision.action.value,
                "throttle": decision.throttle,
                "predicted_downtime_s": decision.predicted_downtime_s,
                "bandwidth_bytes_s": decision.bandwidth_bytes_s,
                "dirty_rate_bytes_s": decision.dirty_rate_bytes_s,
                "verdict": decision.verdict,
                "style": style_name(decision.style),
            }
        case PagesFollow(pages):
            return {"event": "pages_follow", "pages": min(pages, _EXACT)}
        case PagesFollowed(stats):
            return {"event": "pages_followed", **after_fields(stats)}
        case PeerProgress(record):
            return {
                "event": "peer_progress",
                "phase": phase_name(record.phase),
                "round": record.round,
                "pages_remaining": min(record.pages_remaining, _EXACT),
                "pages_total": min(record.pages_total, _EXACT),
            }
        case Suspended(error, times):
            return {"event": "link_lost", "code": code_name(error.code), "text": str(error), "times": times}
        case SessionResumed(times, complete, missing):
            return {
                "event": "session_resumed",
                "times": times,
                "complete_round": complete,
                "pages_missing": missing,
            }
        case Finished(result):
            return {"event": "finished", "outcome": str(result.outcome), "code": code_name(result.code)}


def round_fields(stats: RoundStats) -> Fields:
    """One round, as everywhere in JSON."""
    return {
        "round": stats.round,
        "pages": stats.pages,
        "bytes": stats.bulk_bytes,
        "seconds": stats.seconds,
        "dirty_pages": stats.dirty_pages,
        "dirty_bytes": stats.dirty_bytes,
        "rejected_pages": stats.rejected_pages,
        "throttle": stats.throttle,
        "versions_asked": stats.versions_asked,
        "versions_found": stats.versions_found,
    }


def after_fields(stats: AfterStats) -> Fields:
    """How the pages went that followed the guest."""
    return {
        "stale_pages": stats.stale,
        "demanded_pages": stats.demanded,
        "pushed_pages": stats.pushed,
        "early_pages": stats.early,
        "repeated_pages": stats.repeated,
        "page_requests": stats.requests,
        "mismatched_pages": stats.mismatched,
        "outside_pages": stats.outside,
        "seconds_until_complete": stats.seconds,
    }


def resumed_text(result: Result) -> str:
    """How often the link was lost on the way, for the end of a sentence."""
    if not result.resumed:
        return ""
    return f"; the link was lost and came back {times_text(result.resumed)}"


def followed_text(result: Result) -> str:
    """What followed the guest, as the end of a sentence for people; empty if nothing had to."""
    after = result.after
    if after is None:
        return ""
    when = "" if after.seconds is None else f" within {duration_text(after.seconds)}"
    early = f", {after.early} one by one" if after.early else ""
    what = "it" if after.demanded == 1 else "them"
    waited = f"{after.demanded} of them because the guest waited for {what}"
    return f"; {count_text(after.stale, 'page')} followed{when}, {waited}{early}"


def unverified_text(result: Result) -> str:
    """That pages were not verified, as the end of a sentence for people; empty if they were [MEM-21]."""
    return "" if result.verified is not False else "; nobody has verified its pages (--unverified)"


def result_fields(result: Result) -> Fields:
    """How a session ended at one side."""
    return {
        "outcome": str(result.outcome),
        "code": code_name(result.code),
        "by_peer": result.by_peer,
        "text": "" if result.error is None or result.code is None else str(result.error),
        "phase": phase_name(result.phase),
        "epoch": result.epoch,
        "rounds": [round_fields(stats) for stats in result.rounds],
        "bytes_sent": result.bytes_sent,
        "bytes_received": result.bytes_received,
        "seconds_total": result.seconds,
        "seconds_blackout": result.blackout_s,
        "blackout_steps": [{"state": each.state, "seconds": each.seconds} for each in result.blackout_steps],
        "seconds_until_run": result.run_after_s,
        "style": style_name(result.style),
        "after": None if result.after is None else after_fields(result.after),
        "digest": result.digest.hex() or None,
        "verified": result.verified,
        "resumed": result.resumed,
        "resumable": result.resumable,
        "data_streams": result.streams,
        "retry_after_ms": result.retry_after_ms,
        "missing": list(result.items),
        "session": result.session.hex() if any(result.session) else None,
        "verdict": None if result.verdict is None else verdict_fields(result.verdict),
        "warnings": [{"code": code_name(each.code), "text": each.text} for each in warnings_of(result)],
    }


def verdict_fields(verdict: Verdict) -> Fields:
    """What a destination has said of who owns the guest."""
    return {
        "owner": verdict.owner.name.lower(),
        "epoch": min(verdict.epoch, _EXACT),
        "runner": {"host": verdict.runner.host, "id": verdict.runner.id.hex()},
        "handed_back": verdict.handed_back,
        "complete": verdict.complete,
        "digest": verdict.digest.hex() if verdict.complete else None,
    }


def connection_fields(transport: Transport) -> Fields:
    """Who is at the other end, and how that is known."""
    return {"peer": peer_fields(transport.peer), "tls": tls_fields(transport.tls)}


def peer_fields(peer: Peer) -> Fields:
    """A peer; `identity` is null on a plain connection, where nobody knows."""
    return {"address": peer.address, "identity": peer.identity}


def tls_fields(tls: TlsInfo | None) -> Fields | None:
    """What TLS negotiated; null for plaintext."""
    return None if tls is None else {"version": tls.version, "cipher": tls.cipher, "mutual": tls.mutual}


def holder_fields(status: HolderStatus) -> Fields:
    """A held guest."""
    return {
        "state": status.state,
        "epoch": status.epoch,
        "tracker": status.tracker,
        "tracking": status.tracking,
        **status.guest,
    }


def code_name(code: ErrorCode | None) -> str | None:
    """An error code as the registry writes it."""
    return None if code is None else code.name.lower()


def style_name(style: Style) -> str:
    """A style of switchover as `--switchover` has it."""
    return style.name.lower().replace("_", "-")


def phase_name(phase: Phase) -> str | None:
    """A phase as the registry writes it; null for none."""
    return None if phase is Phase.ANY else phase.name.lower()
