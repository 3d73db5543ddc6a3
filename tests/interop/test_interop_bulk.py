"""What is asked for is there, or it is said before anything is measured."""

from __future__ import annotations

import pytest

from sterna.cli.main import main


@pytest.mark.parametrize("name", ["memory", "sparse", "tls"])
def test_against_a_qemu_that_is_not_there(name, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["bench", name, "--against", "qemu"]) == 2
    assert "apt-get install" in capsys.readouterr().err
