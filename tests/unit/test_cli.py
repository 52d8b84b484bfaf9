"""The command line as a whole: help that shows how, and a reader that goes away."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from monitor import cli


@pytest.mark.parametrize("name", ["serve", *cli._COMMANDS, *cli._ENGINES, *cli._REMOTE])
def test_every_command_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, *(["verify"] if name == "audit" else []), "--help"])
    assert ended.value.code == 0
    assert f"example: probewatch {name} " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("import", "f", "-o", "o", "--layers", "3,x"), "'3,x' is no list of whole numbers; give e.g. 3,5"),
        (("collect", "--model", "m", "--data", "d", "-o", "o", "--layers", "1.5"), "'1.5' is no list"),
        (("train", "-o", "o", "--layers", "3+"), "'3+' is no list of whole numbers"),
        (("train", "-o", "o", "--regularisation", "no"), "'no' is no list of numbers; give e.g. 0.03,1"),
    ],
)
def test_a_list_that_is_none_is_told_by_example(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_reader_that_has_had_enough_gets_no_traceback() -> None:
    """As ``probewatch paths | head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "monitor.cli", "paths"], stdout=pipe, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"")
