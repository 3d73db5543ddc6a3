"""Do the tests bite? Seeds one defect after the other into a copy of the product, and looks who notices.

    python fuzz/teeth.py                      every defect, by what defects.toml names for it
    python fuzz/teeth.py --only 'runs-*'      some of them
    python fuzz/teeth.py --write              make TEETH.md from defects.toml
    python fuzz/teeth.py --check              whether TEETH.md is current

A detector is a command of ours that ends with 0 where it finds nothing and with 1 where it does:

    vector ID           a test vector, read by the product with the defect
    case ID             a case of the interop kit, played against the endpoints of the product with the defect
    fuzz TARGET ARGS    a fuzz target inside of the product with the defect
    test PATH::NAME     a fast test of ours, which imports the product with the defect

The kit itself is the one without a defect, as it would be for anybody's endpoint. Before anything is
seeded every detector must find nothing. Ends with 0 if every defect was found by everything that is named
for it, 1 if not, 2 if the harness could not work: a text of defects.toml that is gone counts as that.
"""

from __future__ import annotations

import argparse
import compileall
import fnmatch
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = ROOT / "protocol" / "sterna"
LIST = ROOT / "fuzz" / "defects.toml"
TABLE = ROOT / "fuzz" / "TEETH.md"
TIMEOUT_S = 300  # a defect can make the product wait for ever: that is no find, and must not last

CLEAN, FOUND, TROUBLE = 0, 1, 2

STERNA = (sys.executable, "-m", "sterna")


class TeethError(Exception):
    """The harness cannot do what it was asked for."""


@dataclass(frozen=True)
class Defect:
    """A row of defects.toml; `file` is inside of the package."""

    id: str
    what: str
    clause: str
    file: str
    old: str
    new: str
    found_by: tuple[str, ...] = ()

    def text(self) -> str:
        """Of the file, with the defect in it."""
        return (PRODUCT / self.file).read_text(encoding="utf-8").replace(self.old, self.new)


def defects() -> list[Defect]:
    """All of defects.toml.

    Raises:
        TeethError: a text is not there exactly once, or an id comes twice.
    """
    rows = tomllib.loads(LIST.read_text(encoding="utf-8"))["defect"]
    found = [Defect(**row | {"found_by": tuple(row.get("found_by", ()))}) for row in rows]
    counts = {one.id: (PRODUCT / one.file).read_text(encoding="utf-8").count(one.old) for one in found}
    if gone := [f"{name} ({count} times)" for name, count in counts.items() if count != 1]:
        raise TeethError(f"their text does not stand exactly once in their file: {', '.join(gone)}")
    if len({defect.id for defect in found}) < len(found):
        raise TeethError("an id comes twice")
    return found


@contextmanager
def seeded(defect: Defect | None) -> Iterator[Path]:
    """A directory with the package, and the defect in it, if any."""
    with tempfile.TemporaryDirectory(prefix="sterna-teeth-") as name:
        package = Path(name) / "sterna"
        # With what was compiled already, which still fits, but for what somebody is about to write.
        shutil.copytree(PRODUCT, package, ignore=shutil.ignore_patterns("*.pyc.*"))
        if defect is not None:
            path = package / defect.file
            Path(cache_from_source(path)).unlink(missing_ok=True)
            path.write_text(defect.text(), encoding="utf-8")
        yield Path(name)


def seen_by_kit(names: Sequence[str], product: Path) -> set[str]:
    """Those cases and vectors that a product's endpoints fail; the kit is the one without a defect."""
    start = ["/usr/bin/env", f"PYTHONPATH={path_of(product)}", sys.executable]
    shims = {
        word: [*start, "-m", f"sterna_interop.{module}"]
        for word, module in (("command", "shim"), ("codec", "codec"))
    }
    with tempfile.TemporaryDirectory(prefix="sterna-teeth-") as place:
        peers, out = Path(place) / "peers.toml", Path(place) / "report"
        rows = [f"{word} = {json.dumps(line)}\n" for word, line in shims.items()]
        peers.write_text("[peers.seeded]\n" + "".join(rows))
        line = [*STERNA, "interop", "run", "--jobs", "1", "--out", str(out), "--peers", str(peers)]
        if run([*line, *(word for name in names for word in ("--only", name))], ROOT / "protocol") == CLEAN:
            return set()
        results = json.loads((out / "report.json").read_text(encoding="utf-8"))["results"]
    return {one["case"] for one in results if one["verdict"] in {"fail", "crash"}} & set(names)


def seen_by_fuzzer(words: str, product: Path) -> bool:
    """Whether a fuzz target inside of a product fails."""
    return run([*STERNA, "fuzz", *shlex.split(words)], product) == FOUND


def seen_by_tests(names: Sequence[str], product: Path) -> set[str]:
    """Those tests that fail with a product; all at once where none does."""
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if not names or run([*line, *(str(ROOT / name) for name in names)], product) == CLEAN:
        return set()
    return {name for name in names if len(names) == 1 or run([*line, str(ROOT / name)], product) == FOUND}


def path_of(product: Path) -> str:
    """An import path on which `product` comes first."""
    return os.pathsep.join(map(str, (product, ROOT / "interop", ROOT / "fuzz")))


def run(line: Sequence[str], product: Path) -> int:
    """Exit code of a command to which `product` is what is imported; one that does not end has found nothing.

    Raises:
        TeethError: it is another one than those that say what was found.
    """
    env = os.environ | {"PYTHONPATH": path_of(product)}
    try:
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return CLEAN
    if done.returncode not in {CLEAN, FOUND}:
        said = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        raise TeethError(f"{shlex.join(line)}: exit code {done.returncode}\n{said}")
    return done.returncode


def look(detectors: Sequence[str], product: Path) -> list[str]:
    """Those of the detectors that find something in a product.

    Raises:
        TeethError: they could not look, or there is no such kind.
    """
    named = [(detector, *detector.partition(" ")[::2]) for detector in detectors]
    if strange := [one for one, kind, _ in named if kind not in {"vector", "case", "fuzz", "test"}]:
        raise TeethError(f"what is {strange[0]!r}?")
    for_kit = [what for _, kind, what in named if kind in {"vector", "case"}]
    failed = seen_by_kit(for_kit, product) if for_kit else set()
    failed |= seen_by_tests([what for _, kind, what in named if kind == "test"], product)
    return [
        detector
        for detector, kind, what in named
        if (seen_by_fuzzer(what, product) if kind == "fuzz" else what in failed)
    ]


def found(defect: Defect) -> list[str]:
    """Those of the detectors that are named for a defect which find it."""
    with seeded(defect) as product:
        return look(defect.found_by, product)


def check(chosen: Sequence[Defect], jobs: int) -> int:
    """Seed the chosen defects, and let what is named for each look. How many were missed by something."""
    for place in (PRODUCT, ROOT / "interop", ROOT / "fuzz"):
        compileall.compile_dir(place, quiet=1)  # once, and not by each of some hundred processes
    with seeded(None) as product:
        named = sorted({detector for defect in chosen for detector in defect.found_by})
        if wrong := look(named, product):
            raise TeethError(f"finds something where nothing was seeded: {', '.join(wrong)}")
    missed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for defect, by in zip(chosen, pool.map(found, chosen), strict=True):
            lacks = [one for one in defect.found_by if one not in by]
            bad = bool(lacks) or not by
            missed += bad
            print(
                f"{'MISSED' if bad else 'found'} {defect.id}: {', '.join(lacks or by) or 'by nobody'}",
                flush=True,
            )
    return missed


def table() -> str:
    """TEETH.md."""
    rows = [
        f"| `{one.id}` | {one.what} | {one.clause} | {'<br>'.join(f'`{by}`' for by in one.found_by)} |"
        for one in defects()
    ]
    return "\n".join([*HEAD, *rows, ""])


HEAD = (
    "# What the tests would notice",
    "",
    "Each row is a defect that is seeded into the product, alone, and what then finds it: a test vector, a",
    "case of the interop kit, a fuzz target, or a fast test. `python fuzz/teeth.py` seeds them all and looks",
    "whether that is so; `python fuzz/teeth.py --write` has made this table from `defects.toml`.",
    "",
    "| defect | what is wrong | breaks | found by |",
    "|---|---|---|---|",
)


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="*", metavar="GLOB", help="some of the defects")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="defects at a time")
    parser.add_argument("--write", action="store_true", help="make TEETH.md")
    parser.add_argument("--check", action="store_true", help="whether TEETH.md is current")
    wish = parser.parse_args()
    try:
        if wish.write or wish.check:
            return write(only_compare=wish.check)
        chosen = [defect for defect in defects() if fnmatch.fnmatchcase(defect.id, wish.only)]
        missed = check(chosen, wish.jobs)
    except TeethError as error:
        print(f"teeth: {error}", file=sys.stderr)
        return TROUBLE
    print(f"{len(chosen)} defects seeded, {missed} of them missed")
    return int(missed > 0 or not chosen)


def write(*, only_compare: bool) -> int:
    """Make TEETH.md, or say whether it is what would be made."""
    made = table()
    if only_compare:
        current = TABLE.read_text(encoding="utf-8") == made
        if not current:
            print("teeth: TEETH.md is stale; run python fuzz/teeth.py --write", file=sys.stderr)
        return int(not current)
    TABLE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
