"""Fuzzers of the protocol: `sterna fuzz`. Needs the extra `fuzz`."""

COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("fuzz", "sterna_fuzz.command:app", "Try the protocol with hostile bytes, histories and links."),
)
