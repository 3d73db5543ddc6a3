"""What the zygote of the end-to-end tests forks: `sterna`, with all imported that a command of it needs.

What runs calls what ``python -m sterna`` calls, and ends as that does. What such a command starts itself, as
`sterna demo` does, and the README's commands, are started from nothing.
"""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module

import sterna.cli
from sterna.cli import main as cli

for each in pkgutil.iter_modules(sterna.cli.__path__, "sterna.cli."):
    import_module(each.name)


def main(arguments: list[str]) -> int:
    """A `sterna` command; its exit code."""
    sys.argv = ["sterna", *arguments]
    return cli.main()
