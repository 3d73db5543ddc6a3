"""`sterna interop`: run the kit, list its cases, explain one of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from sterna.cli.output import Output, write_text
from sterna.cli.units import Json
from sterna.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sterna_interop.implementations import Implementation
    from sterna_interop.report import CaseInfo, Run

app = App(
    name="interop", help="Test endpoints against the specification.", help_format="markdown", version_flags=()
)

UNEXPECTED: Final = 1
KIT_TROUBLE: Final = 3
NOTHING_RAN: Final = 4

JOBS_MAX: Final = 64

Globs = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]


@app.command
def run(
    *,
    only: Globs = (),
    peer: Globs = (),
    peers: Path | None = None,
    jobs: int = 2,
    seed: int = 1,
    keep: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    out: Path | None = None,
    json: Json = False,
) -> int:
    """Run the cases: with Sterna's endpoints and a second implementation, or with the peers that are given.

    Exit codes: 0 everything as expected, 1 something unexpected (a pass where a failure was announced, too),
    2 wrong usage, 3 trouble of the kit itself, 4 nothing ran.

    Args:
        only: ids of cases, as globs; may be given again.
        peer: an implementation as NAME=COMMAND, where the command is its shim; may be given again.
        peers: TOML file of implementations, with what is known to fail.
        jobs: cases at a time, those not counted that wait for a deadline, up to twice as many.
        seed: of the guest's content and of what the relay draws.
        keep: keep what every case left, not only what went wrong.
        out: directory of the report; a temporary one by default.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    given = _given(peer, peers)
    if not 1 <= jobs <= JOBS_MAX:
        raise ConfigError(f"--jobs {jobs}: from 1 to {JOBS_MAX}")
    directory = _directory(out)
    from sterna_interop.session import RunOptions, play

    options = RunOptions(directory, tuple(only), jobs, seed, keep)
    done = play(given, options, output)
    if not done.results:
        output.say(_why_nothing(only), style="red")
    return _finish(done, directory, output)


@app.command(name="list")
def list_(
    *,
    only: Globs = (),
    vectors: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    json: Json = False,
) -> int:
    """List the cases with the clauses that they are about: a line each, on stdout.

    The second word says what is tested: the endpoint in the role of source or destination, a pair (matrix),
    or a codec (vector).

    Args:
        only: ids of cases, as globs; may be given again.
        vectors: list the vectors, too; there are many.
        json: one JSON object on stdout.
    """
    from dataclasses import asdict

    from sterna_interop import plan
    from sterna_interop.results import Kind

    output = Output(json=json)
    found = [info for info in plan.catalogue(only) if vectors or only or info.kind is not Kind.VECTOR]
    if not json:
        write_text("".join(f"{line}\n" for line in _lines(found)))
    output.result({"cases": [asdict(info) for info in found]})
    if not only and not vectors:
        output.say(f"{len(found)} cases; and the vectors of the specification, with --vectors")
    return 0 if found else NOTHING_RAN


@app.command
def explain(case: str, /, *, json: Json = False) -> None:
    """Explain one case: what happens in it, what is right, and the clauses behind it.

    Args:
        case: its id.
        json: one JSON object on stdout.
    """
    from dataclasses import asdict

    from sterna_interop.explain import explain as lines
    from sterna_interop.explain import find

    info = find(case)
    if info is None:
        raise ConfigError(f"there is no case {case[:60]!r}: `sterna interop list --vectors` has them")
    text = "\n".join(lines(info))
    if not json:
        write_text(f"{text}\n")
    Output(json=json).result({**asdict(info), "text": text})


def _lines(found: Sequence[CaseInfo]) -> Iterator[str]:
    """A line for each case, so that grep finds whole ones."""
    width = max((len(info.id) for info in found), default=0)
    for info in found:
        clauses = f"  [{' '.join(info.clauses)}]" if info.clauses else ""
        yield f"{info.id:{width}}  {info.role or info.kind:11}  {info.title}{clauses}"


def _given(peer: Sequence[str], peers: Path | None) -> list[Implementation]:
    from sterna_interop.implementations import parse_peer, read_peers

    given = [*map(parse_peer, peer), *([] if peers is None else read_peers(peers))]
    names = [one.name for one in given]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"two peers with the name {min(twice)}")
    return given


def _why_nothing(only: Sequence[str]) -> str:
    from sterna_interop import plan

    if not plan.catalogue(only):
        globs = ", ".join(repr(glob[:40]) for glob in only[:3])
        return f"nothing ran: no case's id matches {globs}; `sterna interop list --vectors` has them all"
    return (
        "nothing ran: these cases need what no peer of the run has. Vectors need a `codec`, other cases a "
        "`command` with the right role, in the file for --peers"
    )


def _directory(out: Path | None) -> Path:
    from sterna_interop.report import HTML, JSON
    from sterna_interop.session import CASES, PKI

    if out is None:
        return Path(tempfile.mkdtemp(prefix="sterna-interop-"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in out.iterdir()}
        # `cases` and `pki` are removed: without a report beside them they may be anybody's.
        if others := names - {JSON, HTML, CASES, PKI} or (set() if JSON in names else names):
            raise ConfigError(
                f"{out} has {min(others)[:40]!r} in it: give --out a new directory, or a report's"
            )
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}") from error
    return out.absolute()


def _finish(run: Run, directory: Path, output: Output) -> int:
    from sterna_interop.report_html import write_html
    from sterna_interop.report_text import tables
    from sterna_interop.results import Verdict

    path = run.write_json(directory)
    page = write_html(run, directory)
    summary, musts = run.summary, run.musts
    for title, columns, rows in tables(run):
        output.table(columns, rows, title=title)
    tried = f"{musts.covered} of {musts.total} MUSTs were tried"
    output.say(f"{tried}; {musts.excused} of the others are reserved, or nothing can show them")
    output.result(
        {
            "cases": summary.cases,
            "as_expected": summary.as_expected,
            "unexpected": summary.unexpected,
            "unsupported": summary.unsupported,
            "musts": {"total": musts.total, "covered": musts.covered, "excused": musts.excused},
            "peers": [peer.name for peer in run.peers],
            "report": str(path),
        }
    )
    for reason in dict.fromkeys(one.detail for one in run.results if one.verdict is Verdict.SKIP):
        output.say(f"skipped: {reason}")
    if first := next((one for one in run.results if one.verdict.is_unexpected), None):
        output.say(f"what a case is about: sterna interop explain {first.case}")
    output.say(f"report: {page}")
    if summary.kit_errors:
        return KIT_TROUBLE
    if summary.unexpected:
        return UNEXPECTED
    if not run.has_tried:
        output.say("nothing ran: no case was one that a peer supports")
        return NOTHING_RAN
    return 0
