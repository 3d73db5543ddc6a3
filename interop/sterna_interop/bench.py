"""`sterna bench`: what this build costs on this machine, beside yardsticks of the same run."""

from __future__ import annotations

from typing import Final

from cyclopts import App

COMMANDS: Final = (
    ("faults", "What a guest waits for a page that is still at the source, beside a TLS ping-pong."),
    ("goodput", "A whole migration over loopback, beside a bare socket loop."),
    ("memory", "Bitmaps, page batches and the digest, beside plain numpy copies."),
    ("transport", "The transports, plain and with mutual TLS, beside bare sockets."),
    ("wire", "Encoding, decoding and collecting, in CPU seconds beside bare struct and a bare system call."),
)

app = App(
    name="bench",
    help="Measure this build on this machine, beside yardsticks of the same run.",
    help_format="markdown",
    version_flags=(),
)
for _name, _text in COMMANDS:
    app.command(f"sterna_interop.bench_{_name}:{_name}", name=_name, help=_text)
