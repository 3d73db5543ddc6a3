"""The defects that can be seeded: each still fits the product, and the table of them is current.

That they are found takes minutes; `python fuzz/teeth.py` looks, and `.ci/run` calls it.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from sterna_interop.plan import catalogue
from sterna_interop.vectors import load

ROOT = Path(__file__).parents[2]
TEETH = runpy.run_path(str(ROOT / "fuzz" / "teeth.py"))
DEFECTS = TEETH["defects"]()


def test_every_text_stands_once_in_its_file() -> None:
    assert len(DEFECTS) >= 40
    assert len({defect.id for defect in DEFECTS}) == len(DEFECTS)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.id)
def test_a_seeded_product_is_another_one_that_still_compiles(defect: Any) -> None:
    path = TEETH["PRODUCT"] / defect.file
    compile(defect.text(), str(path), "exec")
    assert defect.text() != path.read_text(encoding="utf-8")
    assert defect.found_by


def test_a_seeded_product_has_the_defect_and_is_else_what_it_was() -> None:
    defect = DEFECTS[0]
    with TEETH["seeded"](defect) as product:
        made = {
            path.relative_to(product / "sterna"): path.read_text(encoding="utf-8")
            for path in (product / "sterna").rglob("*.py")
        }
    same = {path.relative_to(TEETH["PRODUCT"]): path for path in TEETH["PRODUCT"].rglob("*.py")}
    differ = {name for name in same if made.pop(name) != same[name].read_text(encoding="utf-8")}
    assert (differ, made) == ({Path(defect.file)}, {})


def test_what_is_named_for_a_defect_exists() -> None:
    known = {"case": {case.id for case in catalogue()}, "vector": {vector.id for vector in load()}}
    for defect in DEFECTS:
        for detector in defect.found_by:
            kind, _, what = detector.partition(" ")
            if kind == "test":
                path, _, name = what.partition("::")
                assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), (defect.id, detector)
            else:
                assert kind == "fuzz" or what in known[kind], (defect.id, detector)


def test_the_table_is_current() -> None:
    assert TEETH["TABLE"].read_text(encoding="utf-8") == TEETH["table"](), "run python fuzz/teeth.py --write"
