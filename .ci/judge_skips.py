"""Judge the skips of a test run: only what this machine lacks may have been skipped.

    python3 judge_skips.py JUNIT.xml

A skip that does not name a missing capability is a test that quietly went away.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def main(arguments: list[str]) -> int:
    """Exit code of the judgement."""
    # The file is our own, written a moment ago.
    cases = list(ET.parse(Path(arguments[0])).iter("testcase"))  # noqa: S314
    skips = [(case, skip.get("message", "")) for case in cases for skip in case.iter("skipped")]
    bad = [(case, message) for case, message in skips if not message.startswith("needs ")]
    for case, message in skips:
        print(f"skipped: {case.get('classname')}::{case.get('name')}: {message}")
    for case, message in bad:
        print(f"a skip without a missing capability: {case.get('name')}: {message}", file=sys.stderr)
    print(f"{len(cases)} tests, {len(skips)} skipped, {len(bad)} of them without a good reason")
    return 1 if bad or not cases else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
