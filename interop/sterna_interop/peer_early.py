"""What scripted peers do with the demand connection (13.3), where pages follow the guest and come early.

Neither lets the session depend on that connection, and nor may the endpoint. peer_early_source.py and
peer_early_destination.py have the conversations.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import trio

from sterna.errors import TransportError
from sterna.registry import Feature, FrameType, Style
from sterna.wire import PageRequest
from sterna_interop.peer import Peer
from sterna_interop.peer_steps import Act, Breach, Over, Place

GONE: Final = (Over, TransportError, trio.ClosedResourceError)  # how the connection can end
LAST_WRITTEN: Final = (PageRequest(1, 253, 1), PageRequest(1, 250, 3))  # what no round of the kit's guest has
_END_WITHIN_S: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyPlan:
    """What a peer does with the demand connection; the defaults are legal.

    Attributes:
        place, act: how it misbehaves there.
        ends: the endpoint has to end that connection then, and goes on with the session.
        opens: as a source: whether it is opened.
        resumes: as a source: whether the session is lost before its first round, and resumed.
        answers: as a source: whether requests are answered.
        differs: as a source: the first group with early pages has other bytes for them [PCY-35].
        asks: as a destination: what is asked for there.
    """

    place: Place | None = None
    act: Act | None = None
    ends: bool = False
    opens: bool = True
    resumes: bool = False
    answers: bool = True
    differs: bool = False
    asks: tuple[PageRequest, ...] = (
        PageRequest(1, 37, 1),
        PageRequest(1, 32, 5),
        PageRequest(2, 0, 16),
        PageRequest(1, 37, 1),
    )


async def see_the_end(lane: Peer, plan: EarlyPlan) -> None:
    """What was wrong on the demand connection ends it."""
    if plan.ends and lane.account.acted and not await lane.heard_out(_END_WITHIN_S):
        raise Breach("the demand connection goes on after what was wrong on it [PCY-27] [PCY-28]")


def check_words(lane: Peer, legal: Collection[str]) -> None:
    """Nothing else was said there, and no unknown frame either."""
    if lane.account.breach:
        raise Breach(lane.account.breach)
    said = {name for name in lane.account.heard if name not in {FrameType.ABORT.name, *legal}}
    if said:
        raise Breach(f"{', '.join(sorted(said))} on the demand connection [PCY-27]")


def style_of(features: Collection[int]) -> Style:
    """In which pages follow the guest, where one of the features was selected."""
    if Feature.POST_COPY in features:
        return Style.POST_COPY
    return Style.BITMAP if Feature.BITMAP in features else Style.STOP_AND_COPY


def note_end(peer: Peer, end: BaseException, lane: Peer | None = None) -> None:
    """What has ended a task beside the conversation, if it was the endpoint's fault."""
    problem = "" if lane is None else lane.account.breach
    peer.account.breach = peer.account.breach or problem or (str(end) if isinstance(end, Breach) else "")
