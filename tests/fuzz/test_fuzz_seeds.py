"""Corpus and dictionary come from the vectors and the registry."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from sterna.registry import FrameType
from sterna_fuzz.raw import one_body, one_stream
from sterna_fuzz.seeds import dictionary, inputs, main, write

FUZZ = Path(__file__).parents[2] / "fuzz"


def test_the_dictionary_is_current():
    assert (FUZZ / "sterna.dict").read_text() == dictionary()


def test_the_dictionary_is_one():
    lines = [line for line in dictionary().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'\w+="(\\x[0-9a-f]{2})+"', line) for line in lines)
    assert len(lines) > len(FrameType) + 50


def test_every_vector_is_an_input():
    found = list(inputs())
    kinds = Counter(kind for kind, _ in found)
    assert kinds["streams"] > kinds["bodies"] > 1000


def test_inputs_are_good_ones():
    for kind, data in list(inputs())[::60]:
        (one_stream if kind == "streams" else one_body)(data)


@pytest.mark.slow
def test_a_corpus_is_written_once(tmp_path, capsys):
    assert main([str(tmp_path / "corpus")]) == 0
    count = sum(1 for path in (tmp_path / "corpus").rglob("*") if path.is_file())
    assert count == write(tmp_path / "corpus")
    assert capsys.readouterr().err.startswith(f"{count} inputs in ")


def test_usage(capsys):
    assert main([]) == main(["--nonsense"]) == 2
    assert "usage:" in capsys.readouterr().err
    assert main(["--dict"]) == 0
    assert capsys.readouterr().out == dictionary()
