"""Every defect has a name for the command line, and a text."""

from __future__ import annotations

from sterna.sim.defects import Defect


def test_names_and_texts():
    assert len({each.text for each in Defect}) == len(Defect) == 17
    assert Defect("old-controller") is Defect.OLD_CONTROLLER
