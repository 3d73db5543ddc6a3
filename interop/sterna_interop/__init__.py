"""The interop kit, `sterna interop`, and the benchmarks, `sterna bench`."""

COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("interop", "sterna_interop.command:app", "Test endpoints against the specification."),
    ("bench", "sterna_interop.bench:app", "Measure this build on this machine, beside yardsticks."),
)
