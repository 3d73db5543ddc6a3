"""Sessions without page hashes: who goes without, and what is wrong then.

An endpoint that was told to may go without, and need not: with hashes the conversation is the honest one, and
nothing was tried. One that was not told must not offer or select it, which the peers look at each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from sterna.registry import Feature
from sterna.wire import FeatureChoice, FeatureOffer, PageRange, Welcome
from sterna_interop import peer_acts as do
from sterna_interop.contract import Role
from sterna_interop.misbehaviours import ROUNDS, E, F, Misbehaviour, Rows, misbehaviour
from sterna_interop.peer_image import Batch
from sterna_interop.peer_steps import Act, Place

_OFFERED: Final = (FeatureOffer(Feature.ENCODING_ZERO), FeatureOffer(Feature.UNHASHED))
_ASKED: Final = (Feature.ENCODING_ZERO, Feature.UNHASHED)


def of_unhashed(role: Role) -> tuple[Misbehaviour, ...]:
    """The rows of one role."""
    return tuple(_of_source() if role is Role.SOURCE else _of_destination())


def _hash_of_one(batch: Batch, _: Callable[[int], bytes]) -> Batch:
    """Its last chunk has a hash nevertheless."""
    hashes = batch.table.hashes.copy()
    hashes[-1] = np.uint64(1)
    return replace(batch, table=replace(batch.table, hashes=hashes))


def _of_source() -> Rows:
    row = partial(misbehaviour, Role.SOURCE, unverified=True, about=Feature.UNHASHED)
    bare = {"features": _OFFERED, "unhashed": True}
    hashes = {**bare, "packed": (1, _hash_of_one), "needs": frozenset({Feature.UNHASHED})}
    return [
        row("unhashed-001 goes-without: sends pages without hashes [MEM-20 PGS-25]", None, None, plan=bare),
        row(
            "unhashed-002 hashes-one: has a hash in a session without [PGS-25 MEM-20]",
            *(None, None, E.BAD_VALUE),
            plan=hashes,
        ),
        row(
            "unhashed-003 offers: offers to go without hashes to who was not told [MEM-21]",
            *(None, None),
            plan={"features": _OFFERED},
            unverified=False,
            about=None,
        ),
    ]


def _of_destination() -> Rows:
    row = partial(misbehaviour, Role.DESTINATION, unverified=True, about=Feature.UNHASHED)
    bare = {"features": _ASKED, "unhashed": True}

    def selects(*features: FeatureChoice) -> tuple[Place, Act]:
        more = do.alter(Welcome, lambda welcome: replace(welcome, features=welcome.features + features))
        return Place(F.WELCOME), more

    return [
        row("unhashed-101 goes-without: takes pages without hashes [MEM-20 PGS-25]", None, None, plan=bare),
        row(
            "unhashed-102 not-offered: selects to go without hashes, which was not offered [NEG-5]",
            *(*selects(FeatureChoice(Feature.UNHASHED)), E.UNSOLICITED),
            unverified=False,
            about=None,
        ),
        row(
            "unhashed-103 changes: selects changes of pages, which were not offered either [NEG-5]",
            *(*selects(FeatureChoice(Feature.ENCODING_DELTA)), E.UNSOLICITED),
            plan=bare,
            about=None,
        ),
        row(
            "unhashed-104 rejects: rejects a page that nobody can have found damaged [RAK-6]",
            *(Place(F.ROUND_ACK), do.rejects(PageRange(1, 0, 1)), E.BAD_VALUE),
            plan=bare,
            order=ROUNDS,
            optional=True,
        ),
    ]
