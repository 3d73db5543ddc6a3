"""Where the test vectors of the specification are: in an installed package, or in the tree."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sterna.errors import ConfigError

_PACKAGE: Final = Path(__file__).parents[1] / "vectors"  # a wheel has them here
_TREE: Final = Path(__file__).parents[3] / "spec" / "vectors"


def vectors_directory() -> Path:
    """The directory of their JSON files; spec/vectors/README.md says what is in them.

    Raises:
        ConfigError: this installation lacks them.
    """
    for directory in (_PACKAGE, _TREE):
        if (directory / "schema.json").is_file():
            return directory
    raise ConfigError(f"{_PACKAGE} is missing: install sterna again")
