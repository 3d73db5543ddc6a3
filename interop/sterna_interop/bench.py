"""`sterna bench`: what this build costs on this machine, beside yardsticks of the same run."""

from __future__ import annotations

from typing import Final

from cyclopts import App

COMMANDS: Final = (
    ("blackout", "How long a writing guest stands still, beside one that writes nothing."),
    (
        "compress",
        "Compressible, slowly changing memory through 1 Gbit/s, beside QEMU's XBZRLE and multifd zstd.",
    ),
    ("dirty", "A guest that writes while it is moved, beside QEMU's: time in all, and blackout."),
    ("faults", "What a guest waits for a page that is still at the source, beside a TLS ping-pong."),
    ("many", "Many sessions into one destination process, beside a single one that moves as much."),
    ("memory", "Random memory over plain TCP, beside bare socket loops, a plain copy and QEMU."),
    ("pages", "Bitmaps, page batches and the digest, beside plain numpy copies."),
    ("scale", "The time that a GiB takes in a large guest, beside that in a small one."),
    ("sparse", "A guest of which nine tenths were never written, beside a bare loop over the rest and QEMU."),
    ("tls", "Random memory over mutual TLS, beside bare `ssl` loops, a plain copy and QEMU."),
    ("transport", "The transports, plain and with mutual TLS, beside bare sockets."),
    ("wire", "Encoding, decoding and collecting, in CPU seconds beside bare struct and a bare system call."),
)

app = App(
    name="bench",
    help="Measure this build on this machine, beside yardsticks of the same run.",
    help_format="markdown",
    version_flags=(),
)
_ELSEWHERE: Final = {"tls": "memory"}
for _name, _text in COMMANDS:
    _module = f"sterna_interop.bench_{_ELSEWHERE.get(_name, _name)}"
    app.command(f"{_module}:{_name}", name=_name, help=_text)
