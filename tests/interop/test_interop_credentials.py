"""The certificates of a run fit together, and the stranger's does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.errors import TransportError
from sterna_interop.contract import Role
from sterna_interop.credentials import STRANGER, Credentials


def test_every_side_has_its_files(tmp_path: Path) -> None:
    made = Credentials.make(tmp_path / "pki")
    for role in Role:
        files = made.files(role)
        assert (files.name, files.peer) == (role.value, role.other.value)
        assert all(Path(path).is_file() for path in (files.certificate, files.key, files.authority))
        made.config(role, role.other).context(server=role is Role.DESTINATION)
    made.config(STRANGER, Role.SOURCE).context(server=True)


def test_the_kit_meets_only_whom_it_expects(tmp_path: Path) -> None:
    config = Credentials(tmp_path).config(Role.SOURCE, "destination")
    config.check_peer("destination", b"")
    with pytest.raises(TransportError, match="'stranger', not 'destination'"):
        config.check_peer("stranger", b"")
