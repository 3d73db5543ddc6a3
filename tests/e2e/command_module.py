"""What the zygote of the end-to-end tests forks: `sterna`, with all imported that a command of it needs.

What runs calls what ``python -m sterna`` calls, and ends as that does. What such a command starts itself, as
`sterna demo` does, and the README's commands, are started from nothing.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

import sterna.cli
from sterna.cli.main import main

__all__ = ["main"]

for each in pkgutil.iter_modules(sterna.cli.__path__, "sterna.cli."):
    import_module(each.name)
