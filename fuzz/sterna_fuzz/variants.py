"""Histories of sessions that have agreed on more: pages that travel packed, and pages without hashes."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from sterna.core.events import Outcome
from sterna.registry import ErrorCode
from sterna_fuzz.histories import WAY_STEPS, History, names, settings_of_a_world
from sterna_fuzz.packers import WAYS_OF_RUNS, Harm, harm_of
from sterna_fuzz.worlds import Setting

_MOVED: Final = frozenset({Outcome.COMPLETED, Outcome.MOVED})

endings = st.sampled_from(("flow", "cut", "silence"))


class PackedHistory(History):
    """A guest whose pages travel packed; now and then a run is packed as nothing may be."""

    @initialize(setting=settings_of_a_world, ending=endings, changes=st.sampled_from((True, True, False)))
    def begin(self, setting: Setting, ending: str, *, changes: bool) -> None:
        """Start the source."""
        self.start(replace(setting, packs=True, changes=changes), ending)

    @rule(way=st.sampled_from(sorted(WAYS_OF_RUNS)))
    def pack(self, way: str) -> None:
        """A run of the next batch is packed in a way that may be none."""
        assert self.world.packs is not None
        self.world.packs.way = way


class UnhashedHistory(History):
    """A guest whose pages go without hashes: packed or not, torn now and then.

    As long as nothing changes on its way the guest arrives whole, as ever, and two of three histories are so.
    What does change is found by nobody, so nothing is rejected for it, and no session ends for it but where a
    run does not decode.
    """

    damages = False  # whether page bytes may change on their way

    @initialize(
        setting=settings_of_a_world,
        ending=endings,
        packs=st.booleans(),
        damages=st.sampled_from((True, False, False)),
    )
    def begin(self, setting: Setting, ending: str, *, packs: bool, damages: bool) -> None:
        """Start the source."""
        self.damages = damages
        self.start(replace(setting, packs=packs, changes=False, hashed=False), ending)

    @precondition(lambda self: self.world.packs is not None)
    @rule(way=st.sampled_from(sorted(WAYS_OF_RUNS)))
    def pack(self, way: str) -> None:
        """A run of the next batch is packed in a way that may be none."""
        assert self.world.packs is not None
        if self.damages or harm_of(way) is not Harm.REJECTED:
            self.world.packs.way = way

    @precondition(lambda self: self.damages)
    @rule(steps=st.integers(0, WAY_STEPS))
    def damage(self, steps: int) -> None:
        """A bit of page bytes flips under way."""
        super().damage(steps=steps)

    @precondition(lambda self: self.damages and self.ending != "flow")
    @rule(name=names, at=st.integers(0, 1 << 20), pages=st.booleans())
    def corrupt(self, name: str, at: int, *, pages: bool) -> None:
        """A bit flips under way, perhaps of the next page bytes."""
        super().corrupt(name=name, at=at, pages=pages)

    @invariant()
    def holds(self) -> None:
        """All of it; and nobody finds a page that was damaged, or says that there was none."""
        super().holds()
        for side in self.world.sides.values():
            if (result := side.machine.result) is None:
                continue
            assert result.code is not ErrorCode.PAGE_HASH, f"the {side.name} has compared a hash [MEM-20]"
            assert not any(each.rejected_pages for each in result.rounds), "pages were rejected [RAK-6]"
            assert result.outcome not in _MOVED or not result.verified, "it counts as verified [MEM-21]"
