"""Which style of switchover comes, and when, where a guest may run before all of its pages are there.

With the styles bitmap and post-copy the downtime does not depend on what is left to be sent. So rounds are
worth their time only as long as each leaves much less to be fetched afterwards. And if a guest writes faster
than the link carries, it need not be slowed down, nor does its migration have to be given up [CON-36].

What the operator asked for is in `PolicySettings.switchover`. A style that was not selected is not used: the
answer is that of the policy for stop-and-copy then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from sterna.core.negotiate import Selection, offer
from sterna.core.policy import (
    Action,
    Decision,
    PolicySettings,
    RoundStats,
    Switchover,
    View,
    decide,
    still_shrinks,
)
from sterna.core.words import duration_text, rate_text, size_text
from sterna.errors import remote_error
from sterna.limits import CHUNK_BYTES
from sterna.registry import ErrorCode, Feature, FrameType, Style
from sterna.wire.records import FeatureOffer

# A bit for each page of 4 KiB: what a bitmap takes at most of the bytes that it stands for.
_BITMAP_SHARE: Final = 1 / (8 * 4096)

# What the link carries in this time is no reason for another round: it can follow the guest.
FETCHED_S: Final = 0.02

_NOTHING: Final[Mapping[Feature, int]] = MappingProxyType({})


def decide_style(
    history: Sequence[RoundStats],
    remaining_bytes: int,
    state_bytes: int,
    rtt_s: float,
    settings: PolicySettings,
    *,
    styles: Collection[Style] = (),
) -> Decision:
    """What to do after the last round of `history`, and in which style if it is to switch over.

    Args:
        history: every acknowledged round of this migration, oldest first.
        remaining_bytes: dirty and rejected pages.
        state_bytes: about how much CPU and device state will be sent in the blackout.
        rtt_s: round trip time.
        settings: what the operator wants.
        styles: those that were selected besides stop-and-copy.
    """
    history = [stats.in_pages() for stats in history]  # what is left is pages, too
    decision = decide(history, remaining_bytes, state_bytes, rtt_s, settings)
    view = View.of(history, state_bytes, rtt_s, settings)
    if settings.switchover == "post-copy" and Style.POST_COPY in styles and not history:
        facts = f"nothing has been sent yet, and nothing is to be: {_early(view, remaining_bytes)}"
        return _switch(decision, view, remaining_bytes, facts, Style.POST_COPY)
    if settings.switchover == "bitmap" and Style.BITMAP in styles and history:
        return _after_rounds(decision, view, remaining_bytes, history, settings)
    if settings.switchover == "auto" and _is_stuck(decision, view, remaining_bytes):
        if Style.BITMAP not in styles:
            verdict = f"{decision.verdict} (the destination does not take a switchover by bitmap)"
            return replace(decision, verdict=verdict)
        facts = f"{decision.verdict.rpartition(': ')[0]}: {_early(view, remaining_bytes)}"
        return _switch(decision, view, remaining_bytes, facts, Style.BITMAP)
    return decision


def selected_styles(selection: Selection) -> frozenset[Style]:
    """The styles that may be used besides stop-and-copy."""
    pairs = ((Feature.BITMAP, Style.BITMAP), (Feature.POST_COPY, Style.POST_COPY))
    return frozenset(style for feature, style in pairs if selection.has(feature))


# What a source offers, and what it cannot do without, by what its operator wants.
_OFFERED: Final[Mapping[Switchover, tuple[frozenset[Feature], frozenset[Feature]]]] = {
    "stop-and-copy": (frozenset(), frozenset()),
    "bitmap": (frozenset({Feature.BITMAP}), frozenset({Feature.BITMAP})),
    "post-copy": (frozenset({Feature.POST_COPY}), frozenset({Feature.POST_COPY})),
    "auto": (frozenset({Feature.BITMAP}), frozenset()),
}


def offer_for(
    switchover: Switchover, more: Mapping[Feature, int] = _NOTHING, required: Collection[Feature] = ()
) -> tuple[FeatureOffer, ...]:
    """The offer of a source that is to switch over in this way; `more` and `required` as for `offer`."""
    offered, needed = _OFFERED[switchover]
    return offer(more={**dict.fromkeys(offered, 0), **more}, required=needed | set(required))


def check_batch(selection: Selection) -> None:
    """Whether every group fits a batch of the destination [PCY-20].

    Raises:
        RemoteProtocolError: LIMIT_MISMATCH.
    """
    if selected_styles(selection) and selection.limits.bulk_bytes < CHUNK_BYTES:
        detail = f"batches of {selection.limits.bulk_bytes} bytes, and pages that follow the guest"
        raise remote_error(ErrorCode.LIMIT_MISMATCH, detail, clause="PCY-20", frame=FrameType.WELCOME)


def _is_stuck(decision: Decision, view: View, remaining: int) -> bool:
    """Whether it cannot go on in rounds without slowing the guest down, or too much is left to be sent."""
    if decision.action is Action.SWITCHOVER:
        return not view.fits(remaining)
    return decision.action in {Action.THROTTLE, Action.GIVE_UP}


def _after_rounds(
    decision: Decision,
    view: View,
    remaining: int,
    history: Sequence[RoundStats],
    settings: PolicySettings,
) -> Decision:
    """Rounds as long as much is left and each leaves much less to be fetched.

    Much is what takes the link long, whatever downtime is allowed: to hold accesses to the stale pages is in
    the way of the guest, and takes the longer the more they are.
    """
    facts = f"{size_text(remaining)} are left, the guest writes {rate_text(decision.dirty_rate_bytes_s)}"
    following = view.after_another_round(remaining)
    used, much = len(history), remaining / view.bandwidth > FETCHED_S
    pays = following < remaining * (1 - settings.worthwhile_gain)
    if much and pays and used < settings.max_rounds and still_shrinks(history, remaining, settings):
        verdict = f"{facts}; another round should bring that to {size_text(following)}: go on"
        return replace(decision, action=Action.CONTINUE, throttle=view.throttle, verdict=verdict)
    return _switch(decision, view, remaining, f"{facts}: {_early(view, remaining)}", Style.BITMAP)


def _switch(decision: Decision, view: View, remaining: int, verdict: str, style: Style) -> Decision:
    downtime_s = _early_downtime_s(view, remaining)
    return replace(
        decision,
        action=Action.SWITCHOVER,
        throttle=view.throttle,
        predicted_downtime_s=downtime_s,
        verdict=verdict,
        style=style,
    )


def _early_downtime_s(view: View, remaining: int) -> float:
    """Seconds from pause to the next instruction if only the bitmap of these bytes is sent before."""
    return view.downtime_s(remaining * _BITMAP_SHARE)


def _early(view: View, remaining: int) -> str:
    stops = duration_text(_early_downtime_s(view, remaining))
    return f"switch over, the guest stops for {stops} and {size_text(remaining)} follow while it runs there"
