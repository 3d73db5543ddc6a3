"""What `sterna migrate` says to wishes that cannot be fulfilled; how it sends is in test_cli_sending.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import only_object

from sterna.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--to", "host"], "write host:port"),
        (["--to", "host:0"], "a port is a number"),
        (["--to", "host:1", "--peer", "../x"], "no host name"),
        (["--to", "host:1", "--insecure", "--patience", "1ms"], "--patience"),
        (["--to", "host:1", "--insecure", "--bandwidth", "1B/s"], "'1B/s' is slower"),
        (["--to", "host:1", "--insecure", "--downtime", "300"], "has no unit"),
        (["--to", "host:1", "--insecure", "--downtime", "0s"], "it is from 1ms to 60min"),
        (["--to", "host:1", "--insecure", "--max-rounds", "many"], "many"),
        (["--to", "host:1", "--insecure", "--max-rounds", "0"], "Must be >= 1"),
        (["--to", "host:1", "--insecure", "--evidence", "/proc/nothing"], "cannot make the directory"),
        (["--to", "host:1", "--insecure", "--follow"], "exclude each other"),
        (["--to", "host:1"], "either --pki DIR"),
        ([], "--to"),
    ],
)
def test_wrong_wishes_are_usage_errors(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", "--holder", str(tmp_path / "a"), *arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    error = only_object(out)["error"]
    assert error["code"] == "usage"
    assert complaint in error["text"]
    assert "Traceback" not in err
