"""The target `state`: whole histories of two machines, with every invariant looked at after every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sterna_fuzz.histories import History
from sterna_fuzz.target import Property, Stateful, Target
from sterna_fuzz.variants import PackedHistory, UnhashedHistory


def properties(_: Sequence[str]) -> list[Property]:
    """The properties."""
    return [
        Stateful(
            "history",
            "one-runner",
            "whatever happens on the way, the guest runs once, whole, and everybody says how it ended",
            History,
        ),
        Stateful(
            "packed",
            "one-runner",
            "and if its pages travel packed, right or wrong",
            PackedHistory,
        ),
        Stateful(
            "unhashed",
            "one-runner",
            "and if its pages go without hashes, though they may be damaged on their way",
            UnhashedHistory,
        ),
    ]


TARGET: Final = Target(
    "state", "histories of two machines, their guests and their connection", properties, {}
)
