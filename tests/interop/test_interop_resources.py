"""The clauses of the specification, as the kit has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sterna.errors import ConfigError
from sterna_interop import resources


def test_the_clauses() -> None:
    every = resources.clauses()
    assert every["HDR-2"].levels == ("MUST",)
    assert every["HDR-2"].codes == ("header_checksum",)
    assert "28 bytes" in every["HDR-2"].text
    assert every["STO-1"].excuse
    assert resources.spec_version() == "sterna/1-draft.1"


def test_musts_are_counted() -> None:
    every = [one for one in resources.clauses().values() if "MUST" in one.levels]
    excused = [one.id for one in every if one.excuse]
    assert resources.musts(()) == resources.Musts(len(every), 0, len(excused))
    # FRM-9 is a SHOULD; what is covered needs no excuse.
    counted = resources.musts({"HDR-2", "HDR-3", "FRM-9", "XXX-1", excused[0]})
    assert counted == resources.Musts(len(every), 3, len(excused) - 1)


def test_a_damaged_installation_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="install sterna again"):
        resources._load(tmp_path / "clauses.json")
    (tmp_path / "clauses.json").write_text(json.dumps({"clauses": []}))
    assert resources._load(tmp_path / "clauses.json") == {"clauses": []}
