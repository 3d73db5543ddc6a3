"""How a target is run by Atheris, which is libFuzzer for Python: guided by the coverage of the product.

Atheris is not in the extra: it is large, and not built for every Python. Whatever it is to see must be
imported under `product()`, which has it count the branches of the modules that a peer's bytes reach.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

MISSING: Final = "this needs Atheris: pip install atheris (or run it with pytest, which draws by Hypothesis)"
COUNTED: Final = ("sterna.wire", "sterna.core", "sterna.memory")


def product(name: str) -> AbstractContextManager[object]:
    """Imports under this are counted, if the module of this name is run as a script and Atheris is there."""
    if name != "__main__":
        return contextlib.nullcontext()
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.exit(MISSING)
    counted: AbstractContextManager[object] = atheris.instrument_imports(include=list(COUNTED))
    return counted


def fuzz(one_input: Callable[[bytes], object]) -> None:
    """Run a target, by what the command line says, which is libFuzzer's."""
    atheris = importlib.import_module("atheris")

    def test_one_input(data: bytes) -> None:
        one_input(data)

    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
