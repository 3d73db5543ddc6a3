"""`sterna bench`: what this build costs on this machine, beside yardsticks of the same run."""

from __future__ import annotations

from typing import Final

from cyclopts import App

COMMANDS: Final = (
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
