"""The file of tables: one section a benchmark, the latest."""

from __future__ import annotations

import pytest

from sterna.cli.output import Output
from sterna.errors import ConfigError
from sterna_interop.benchmarks_file import HEAD, check_file, with_section, write_section
from sterna_interop.measured import Report
from sterna_interop.measuring import BARE, OURS, Measure, Taken


def report(bench, value, runs=1, section=""):
    measure = Measure(name="m", text="a|b", ways={}, yardstick="")
    return Report(
        bench=bench, section=section, runs=runs, taken=[Taken(measure, {OURS: [value], BARE: [1.0]})]
    )


def test_sections_stand_by_name_and_the_latest_counts(tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    for each in (report("tls", 3.0), report("memory", 2.0), report("tls", 4.0, runs=2)):
        write_section(each, path, Output())
    text = path.read_text()
    assert text.startswith(HEAD)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## memory, 1 run",
        "## tls, 2 runs",
    ]
    assert "| a\\|b | Sterna | 4 s | 4 s |  |  |" in text
    assert "3 s" not in text
    assert text.endswith("turn by turn\n")


def test_a_benchmark_may_have_tables_of_other_names(tmp_path):
    path = tmp_path / "BENCHMARKS.md"
    beside = report("tls", 5.0, section="tls beside QEMU")
    for each in (report("tls", 3.0), beside, report("tls", 4.0, runs=2)):
        write_section(each, path, Output())
    titles = [line for line in path.read_text().splitlines() if line.startswith("## ")]
    assert titles == ["## tls, 2 runs", "## tls beside QEMU, 1 run"]
    assert beside.fields()["bench"] == "tls"


def test_the_rest_stays_as_it_is():
    before = with_section(with_section(HEAD, "b", "## b, 1 run\n\nx\n"), "a", "## a, 1 run\n\ny\n")
    assert with_section(before, "b", "## b, 1 run\n\nx\n") == before
    assert before.index("## a") < before.index("## b")


@pytest.mark.parametrize("text", ["# Something else\n", None])
def test_other_files_are_left_alone(tmp_path, text):
    path = tmp_path / "file"
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)
    with pytest.raises(ConfigError):
        check_file(str, str(path))
    with pytest.raises(ConfigError):
        write_section(report("memory", 1.0), path, Output())
    assert text is None or path.read_text() == text


def test_where_nothing_can_be_written_is_said_before_anything_is_measured(tmp_path):
    check_file(str, None)
    check_file(str, str(tmp_path / "new.md"))
    path = tmp_path / "none" / "new.md"
    with pytest.raises(ConfigError, match="in a directory that is there"):
        check_file(str, str(path))
    with pytest.raises(ConfigError, match="cannot write"):
        write_section(report("memory", 1.0), path, Output())
