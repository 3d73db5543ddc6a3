"""`sterna pki`: a small certificate authority for hosts that have none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from sterna.cli.output import Output
from sterna.cli.units import Json

if TYPE_CHECKING:
    from sterna.host.pki import Issued

app = App(name="pki", help="Make certificates for hosts.", help_format="markdown", version_flags=())


@app.command
def init(directory: Path, /, *, name: str = "sterna", json: Json = False) -> None:
    """Make a certificate authority: ca.pem and ca.key. Existing files are never replaced.

    Args:
        directory: where its files go; made if it does not exist. Whoever reads ca.key can be any host.
        name: name of the authority, for people.
        json: one JSON object on stdout.
    """
    from sterna.host.pki import init_ca

    issued = init_ca(directory, name=name)
    output = Output(json=json)
    output.say(f"Certificate of the authority: {issued.certificate} (give it to every host)")
    output.say(f"Its key: {issued.key} (keep it to yourself)")
    output.result(_fields(issued))


@app.command
def issue(
    directory: Path,
    name: str,
    /,
    *,
    host: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Issue a certificate for a host: NAME.pem and NAME.key.

    Args:
        directory: where `sterna pki init` made the authority.
        name: the host's identity, which peer lists name.
        host: DNS name or address under which others reach it; may be given several times.
        out: directory of the new files; by default the authority's.
        json: one JSON object on stdout.
    """
    from sterna.host.pki import issue as issue_certificate

    issued = issue_certificate(directory, name, hosts=host, out=out)
    output = Output(json=json)
    output.say(f"Certificate of {issued.name}: {issued.certificate}")
    output.say(f"Its key: {issued.key}")
    output.result(_fields(issued))


def _fields(issued: Issued) -> dict[str, object]:
    return {
        "name": issued.name,
        "certificate": str(issued.certificate),
        "key": str(issued.key),
        "authority": str(issued.authority),
        "fingerprint_sha256": issued.fingerprint.hex(),
        "expires": issued.expires.isoformat(),
    }
