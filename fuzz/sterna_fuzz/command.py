"""`sterna fuzz`: run a target, tell what was reached, and how to see a failure again.

Hypothesis is imported late: without it there is help, and an error that says what to install.
"""

from __future__ import annotations

import os
import secrets
import shlex
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter
from cyclopts.validators import Number

from sterna.cli.exits import Exit
from sterna.cli.output import Output
from sterna.cli.units import Duration, Json, format_duration
from sterna.core.words import count_text
from sterna.errors import ConfigError

if TYPE_CHECKING:
    from sterna_fuzz.running import Failure, Report, Wish
    from sterna_fuzz.target import Property, Target

app = App(
    name="fuzz",
    help="Try the protocol with hostile bytes, histories and links. "
    "A failure prints the command that shows it again.",
    help_format="markdown",
    version_flags=(),
)

# Where nothing else is said. As long as somebody watches.
TIME_S: Final = 60.0
JOBS_MAX: Final = 256
_WORDS_SHOWN: Final = 12

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What every target takes.

    Attributes:
        seed: where all examples follow from; without it, one is chosen and told.
        time: stop so long after the first example; a minute, if there is no number of examples either.
        examples: stop after so many examples. The same seed and number give the same examples.
        jobs: processes, each with a seed of its own that follows from the seed.
        only: run this property, or use this mutator; may be given several times.
        shrink: make a failing example as small as possible.
        replay: check the one example that a failure has printed.
        list: tell which properties and mutators there are.
        json: one JSON object on stdout.
    """

    seed: Annotated[int | None, Parameter(validator=Number(gte=0, lt=1 << 64), show_default=False)] = None
    time: Annotated[Duration | None, Parameter(show_default=False)] = None
    examples: Annotated[int | None, Parameter(validator=Number(gte=1), show_default=False)] = None
    jobs: Annotated[int, Parameter(validator=Number(gte=1, lte=JOBS_MAX))] = 1
    only: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()
    shrink: Annotated[bool, Parameter(negative="--no-shrink", show_default=False)] = True
    replay: Annotated[str | None, Parameter(show_default=False)] = None
    list: Flag = False
    json: Json = False


NO_OPTIONS: Final = Options()


@app.command
def frames(options: Options = NO_OPTIONS) -> int:
    """Bytes, records, and machines that hear what nobody should say."""
    return _command("frames", options)


@app.command
def state(options: Options = NO_OPTIONS) -> int:
    """Histories of two machines: what happens, in any order, and where the guest is then."""
    return _command("state", options)


@app.command
def converge(options: Options = NO_OPTIONS) -> int:
    """Workloads, links and policies in virtual time: whether rounds end, and how well that is foreseen."""
    return _command("converge", options)


# Imported when they are called, so what the list of commands says of them stands here.
app.command(
    "sterna_fuzz.world_command:world",
    name="world",
    help="Migrations between two hosts on which everything fails: links, endpoints, holders, records, store.",
)
app.command(
    "sterna_fuzz.handover_command:handover",
    name="handover",
    help="Every interleaving of a handover, from LOADED or the first round on, with up to so many faults.",
)


def _command(name: str, options: Options) -> int:
    output = Output(json=options.json)
    with tempfile.TemporaryDirectory(prefix="sterna-fuzz-") as directory:
        # Hypothesis keeps tables of characters somewhere: not where the user happens to stand.
        os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", directory)
        target = _target(name)
        try:
            properties = target.properties(options.only)
        except ValueError as error:
            raise ConfigError(f"--only {error}") from error
        if options.list:
            return _list(target, properties, output)
        report, wish = _report(target, properties, options, output)
    _tell(target, options.only, wish, report, output)
    return Exit.FAILED if report.failures else Exit.OK


def _report(
    target: Target, properties: Sequence[Property], options: Options, output: Output
) -> tuple[Report, Wish]:
    from sterna_fuzz.jobs import run_jobs
    from sterna_fuzz.running import Wish

    seconds = TIME_S if options.examples is None and options.time is None else options.time
    seed = secrets.randbits(32) if options.seed is None else options.seed
    wish = Wish(seed, options.examples, seconds, shrink=options.shrink)
    if options.replay is not None:
        return _replay(target, properties, options.replay, wish), wish
    names = ", ".join(each.name for each in properties)
    output.say(f"{target.name}: {names}; seed {seed}, {_bound(wish)}")
    return run_jobs(target.name, options.only, wish, options.jobs, output.say), wish


def _target(name: str) -> Target:
    try:
        import hypothesis  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ConfigError("sterna fuzz needs Hypothesis: pip install '.[fuzz]' in Sterna's source") from error
    from sterna_fuzz.targets import TARGETS

    return TARGETS[name]()


def _bound(wish: Wish) -> str:
    words = []
    if wish.examples is not None:
        words.append(count_text(wish.examples, "example"))
    if wish.seconds is not None:
        words.append(f"at most {format_duration(wish.seconds)}" if words else format_duration(wish.seconds))
    return ", ".join(words)


def _replay(target: Target, properties: Sequence[Property], text: str, wish: Wish) -> Report:
    from sterna_fuzz.running import replay

    name, version, blob = (*text.split(":", 2), "", "")[:3]
    found = next((each for each in properties if each.name == name), None)
    if found is None or not blob:
        raise ConfigError(f"--replay: {text[:40]!r} is not what a failure of {target.name} prints")
    try:
        return replay(found, blob, version, wish)
    except ValueError as error:
        raise ConfigError(f"--replay: {error}") from error


def _list(target: Target, properties: Sequence[Property], output: Output) -> int:
    rows = [(each.name, each.invariant, each.text) for each in properties]
    output.table(("property", "invariant", "for every example"), rows)
    if target.mutators:
        columns = ("mutator", "what it does, and which invariant it attacks")
        output.table(columns, list(target.mutators.items()))
    output.result(
        {
            "target": target.name,
            "properties": [
                {"name": each.name, "invariant": each.invariant, "text": each.text} for each in properties
            ],
            "mutators": [{"name": name, "text": text} for name, text in target.mutators.items()],
        }
    )
    return Exit.OK


def _tell(target: Target, only: Sequence[str], wish: Wish, report: Report, output: Output) -> None:
    rows = [
        (name, str(report.examples[name]), _words(report.reached.get(name, {})))
        for name in sorted(report.examples)
    ]
    output.table(("property", "examples", "how they ended"), rows)
    for failure in report.failures if not output.json else ():
        output.say(f"{failure.name} ({failure.invariant}) does not hold: {failure.error}", style="red")
        for line in (*failure.where, *failure.example.splitlines()):
            output.say(f"  {line}")
        output.say(f"See it again: {again(target.name, only, failure, wish)}")
    total, seconds = report.examples.total(), max(report.seconds, 1e-9)
    failures = len(report.failures)
    output.say(
        f"{count_text(total, 'example')} in {seconds:.1f} s ({total / seconds:.0f}/s), failures: {failures}"
    )
    output.result(
        {
            "target": target.name,
            "seed": wish.seed,
            "examples": total,
            "failures": failures,
            "seconds": round(report.seconds, 3),
            "properties": {
                name: {"examples": count, "ends": dict(report.reached.get(name, Counter()).most_common())}
                for name, count in sorted(report.examples.items())
            },
            "failed": [
                {
                    "property": failure.name,
                    "invariant": failure.invariant,
                    "error": failure.error,
                    "example": failure.example,
                    "where": failure.where,
                    "replay": again(target.name, only, failure, wish),
                }
                for failure in report.failures
            ],
        }
    )


def _words(reached: Mapping[str, int]) -> str:
    """The most frequent ends, with how often; how many others there were."""
    ordered = sorted(reached.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{word} {count}" for word, count in ordered[:_WORDS_SHOWN])
    rest = len(ordered) - _WORDS_SHOWN
    return f"{shown}, {rest} more" if rest > 0 else shown


def again(target: str, only: Sequence[str], failure: Failure, wish: Wish) -> str:
    """The command that shows a failure again: its example alone, or the run if there is no word for it."""
    command = ["sterna", "fuzz", target]
    for name in only:
        command += ["--only", name]
    if failure.blob:
        return shlex.join([*command, "--replay", f"{failure.name}:{failure.version}:{failure.blob}"])
    command += ["--seed", str(wish.seed)]
    if wish.examples is not None:
        command += ["--examples", str(wish.examples)]
    if wish.seconds is not None:
        command += ["--time", format_duration(wish.seconds)]
    return shlex.join(command)
