"""What the README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_embedding_example_prints_what_the_readme_says() -> None:
    [example] = blocks("python")
    shown = README.split(example)[1].split("```\n")[2]
    command = [sys.executable, "-W", "error", "-c", example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (shown, "")


def test_two_commands_do_all_the_setting_up() -> None:
    first, second = blocks("sh")[:2]
    assert first.startswith("python3 -m venv .venv && ")
    assert first.rstrip().endswith("sterna demo")
    assert second.startswith("python3 -m venv .venv && ")
    assert second.rstrip().endswith("pytest -n 3")
