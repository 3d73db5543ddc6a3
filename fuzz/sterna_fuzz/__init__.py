"""Fuzzers of the protocol: `sterna fuzz`."""

COMMANDS: tuple[tuple[str, str, str], ...] = ()
