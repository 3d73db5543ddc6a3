"""What a demo's migration costs: CPU seconds of its processes, from the first word on.

What they have spent until then, to start above all, is no part of it. Holders tell theirs without those of
the guest: what that spends it would spend anywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

from sterna.guest.holder_client import HolderStatus
from sterna.linux.cpu_time import children_cpu_s, process_cpu_s

_FIGURE: Final = "holder_cpu_s"


class Costs:
    """Of the migration that begins now.

    Attributes:
        seconds: by role, as far as they were noted.
    """

    def __init__(self, endpoints: Mapping[str, int], holders: Mapping[str, HolderStatus]) -> None:
        """`endpoints`: processes that nobody has waited for, by role. `holders`: what they said last."""
        self._endpoints = endpoints
        self._before = {role: _spent_s(pid) for role, pid in endpoints.items()}
        self._before |= {role: status.figure(_FIGURE) for role, status in holders.items()}
        self.seconds: dict[str, float] = {}

    def note_endpoint(self, role: str) -> None:
        """What it has spent until now; nothing of one that is gone."""
        with contextlib.suppress(OSError):
            self.seconds[role] = _spent_s(self._endpoints[role]) - self._before[role]

    def note_holder(self, role: str, figures: Mapping[str, object]) -> None:
        """What a holder has said since; nothing of one that does not tell."""
        spent = figures.get(_FIGURE)
        if isinstance(spent, int | float):
            self.seconds[role] = spent - self._before[role]


def _spent_s(pid: int) -> float:
    """Of a process and the children that it has waited for."""
    return process_cpu_s(pid) + children_cpu_s(pid)
