"""The command line itself: help, version, mistakes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import deepseek_resilient

from .command import environment, inside, run

MISTAKES = [
    ["nonsense"],
    ["demo", "--seconds", "1"],
    ["demo", "--rate", "many"],
    ["demo", "--rate", "nan"],
    ["demo", "--only", "naive,nobody"],
    ["demo", "--only", ""],
    ["demo", "--output", "picture.png"],
    ["demo", "--output", "/no/such/folder/picture.svg"],
    ["demo", "--json", "/proc"],
    ["storm", "--scenario", "nonsense"],
    ["storm", "--contender", "nobody"],
    ["storm", "--seeds", "0"],
    ["storm", "--processes", "many"],
    ["storm", "--json", "/no/such/folder/all.json"],
    ["ask", "one", "two"],
    ["ask", ""],
    ["doctor", "--unknown"],
    ["probe"],
    ["probe", "http://127.0.0.1:1", "--requests", "9"],
    ["probe", "http://127.0.0.1:1", "--seconds", "nan"],
    ["local"],
    ["local", "list", "--tokens", "0"],
    ["local", "list", "--tokens", "many"],
    ["local", "pull"],
]


def test_the_version_is_that_of_the_package() -> None:
    """`--version` names the program and its version."""
    assert (0, f"deepseek-resilient {deepseek_resilient.__version__}\n", "") == run("--version")


@pytest.mark.parametrize(
    "command",
    [[], ["demo"], ["storm"], ["ask"], ["doctor"], ["local"], ["local", "list"], ["local", "pull"], ["probe"]],
)
def test_help_fits_a_terminal(command: list[str]) -> None:
    """Each command has a help of lines no longer than 80."""
    status, out, err = inside(*command, "--help", env=environment(COLUMNS="80"))
    assert (0, "") == (status, err)
    assert "usage: deepseek-resilient" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_no_command_is_a_mistake() -> None:
    """Without a command the usage goes to standard error."""
    status, out, err = run()
    assert (2, "") == (status, out)
    assert "usage: deepseek-resilient" in err


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_sentence(arguments: list[str]) -> None:
    """Wrong arguments: exit status 2, the reason in the last line of standard error, nothing on standard output."""
    status, out, err = inside(*arguments, env=environment())
    assert (2, "") == (status, out)
    assert err.splitlines()[-1].startswith("deepseek-resilient")
    assert "Traceback" not in err


def test_importing_the_command_line_is_cheap() -> None:
    """Nothing beyond the standard library is imported before a command runs."""
    code = "import sys; before = set(sys.modules); import deepseek_resilient.cli; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert set() == roots - set(sys.stdlib_module_names) - {"deepseek_resilient"}
