from importlib.metadata import version

from sterna.cli.version import version_line, versions
from sterna.registry import ALPN


def test_both_versions_are_told() -> None:
    assert versions() == {"version": version("sterna"), "protocol": ALPN}
    assert version_line() == f"sterna {version('sterna')}, protocol {ALPN}"
