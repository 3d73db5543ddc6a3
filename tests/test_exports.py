"""The house rules that a program can check, each with the reason for it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import sterna

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "protocol" / "sterna"
TESTS = ROOT / "tests"
# Each package, and the folder that mirrors it.
MIRRORS = {
    PACKAGE: TESTS,
    ROOT / "interop" / "sterna_interop": TESTS / "interop",
    ROOT / "fuzz" / "sterna_fuzz": TESTS / "fuzz",
}

# Modules without a test file of their own, and why.
WITHOUT_TESTS = {
    "registry.py": "generated; compared with its source below",
    "net/source.py": "test_net_endpoint*.py let both endpoints move guests",
    "net/destination.py": "test_net_endpoint*.py let both endpoints move guests",
}
# Folders of tests that are about the whole.
NO_MIRRORS = {"e2e", "withstand"}
# Tests of no single module.
WITHOUT_MODULE = {
    "test_clauses.py",
    "test_conftest.py",
    "test_core_conversation.py",
    "test_exports.py",
    "test_readme.py",
    "test_spec.py",
    "test_teeth.py",
    "test_vectors.py",
}


def modules() -> Iterator[Path]:
    """Every module of the packages but the `__init__` files, which only re-export."""
    found = (path for package in MIRRORS for path in sorted(package.rglob("*.py")))
    return (path for path in found if path.name != "__init__.py")


def inside(module: Path) -> Path:
    """A module's path in its package."""
    return module.relative_to(next(package for package in MIRRORS if package in module.parents))


def counterpart(module: Path) -> Path:
    """protocol/sterna/a/b.py -> tests/a/test_a_b.py; fuzz/sterna_fuzz/c.py -> tests/fuzz/test_fuzz_c.py"""
    package = next(package for package in MIRRORS if package in module.parents)
    folder = MIRRORS[package]
    parts = module.relative_to(package).with_suffix("").parts
    names = [*folder.relative_to(TESTS).parts, *(part.strip("_") for part in parts)]
    return folder.joinpath(*parts[:-1], f"test_{'_'.join(names)}.py")


def test_every_module_has_its_test_file() -> None:
    """websockets' maxi_cov rule: what a module does is shown in one place, and that place can be found."""
    missing = [
        f"{name}: {counterpart(path).relative_to(ROOT)}"
        for path in modules()
        if (name := str(inside(path))) not in WITHOUT_TESTS and not counterpart(path).exists()
    ]
    assert not missing, "modules without their test file:\n" + "\n".join(missing)


def test_every_test_file_has_its_module() -> None:
    """A module may have more than one: test_guest_workload_spec.py belongs to guest/workload.py."""
    stems = {(counterpart(path).parent, counterpart(path).stem) for path in modules()}
    strays = [
        str(path.relative_to(ROOT))
        for path in sorted(TESTS.rglob("test_*.py"))
        if path.name not in WITHOUT_MODULE
        and not NO_MIRRORS & set(path.parts)
        and not any(path.parent == folder and path.stem.startswith(stem) for folder, stem in stems)
    ]
    assert not strays, f"test files without a module: {strays}"


def test_the_exceptions_are_still_needed() -> None:
    untested = {str(inside(path)) for path in modules() if not counterpart(path).exists()}
    assert WITHOUT_TESTS.keys() <= untested


def test_test_files_have_unique_names() -> None:
    """pytest imports them by name alone."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_generated_files_are_current() -> None:
    build = [sys.executable, str(ROOT / "spec" / "build.py"), "--check"]
    done = subprocess.run(build, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_imports_point_one_way() -> None:
    """In a process of its own: import-linter switches off the loggers that there are."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_are_short() -> None:
    """Who opens a module should see what it is for within a minute."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}
    del lengths["protocol/sterna/registry.py"]  # a generated table
    assert not {name: lines for name, lines in lengths.items() if lines > 600}


def test_peer_bytes_are_never_parsed_by_compiled_construct() -> None:
    """`Construct.compile()` drops length checks: it accepts truncated bodies without an error."""
    for path in sorted((PACKAGE / "wire").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "compile":
                assert isinstance(node.value, ast.Name), f"{path}:{node.lineno}"
                assert node.value.id == "re", f"{path}:{node.lineno}"


def test_nothing_is_left_open() -> None:
    pattern = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in modules()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_the_public_names_exist() -> None:
    for name in getattr(sterna, "__all__", ()):
        assert hasattr(sterna, name)
