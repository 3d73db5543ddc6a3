"""The table of spec/security.md says what this folder does: each class has its file, each file its class."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SECURITY = FOLDER.parents[1] / "spec" / "security.md"
CVE = re.compile(r"CVE-\d{4}-\d{4,6}")
# What looks at the folder itself.
ABOUT = {"test_withstand_judge.py", "test_withstand_index.py"}
JUDGES = {"judge", "judge_any", "judge_accepted", "move.check", "siege.ended"}


def rows() -> dict[str, list[str]]:
    """The cells of each row, by the file that its last one names."""
    section = SECURITY.read_text().split("## What is withstood")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line] for line in lines]
    found = {row[-1].split("](")[0].strip("["): row for row in cells}
    assert len(found) == len(cells), "a file twice"
    return found


ROWS = rows()
FILES = {path.name for path in FOLDER.glob("test_*.py")} - ABOUT
named = pytest.mark.parametrize("name", sorted(ROWS))


def parsed(name: str) -> ast.Module:
    return ast.parse((FOLDER / name).read_text())


def test_every_file_is_in_the_table_and_exists() -> None:
    assert set(ROWS) == FILES


@named
def test_a_row_leads_to_its_file(name: str) -> None:
    what, _, link = ROWS[name]
    assert what
    assert link == f"[{name}](../tests/withstand/{name})"


@named
def test_a_class_has_tests_that_judge(name: str) -> None:
    """More than one, and what they do is looked at by the judge of this folder or by one of their own."""
    tree = parsed(name)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert sum(function.name.startswith("test_") for function in functions) >= 2
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called & JUDGES


@named
def test_table_and_docstring_name_the_same_published_bugs(name: str) -> None:
    text = ast.get_docstring(parsed(name))
    assert text is not None
    assert "Published bugs of this class" in text
    assert set(CVE.findall(text)) == set(CVE.findall(ROWS[name][1]))
