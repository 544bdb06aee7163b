"""The command line: `deepseek-resilient demo`, `storm`, `ask`, `doctor`, `local`, `gateway` and `probe`.

Exit status: 0 done, 1 done with something amiss (a partial answer; something to fix), 2 not done, with one sentence on
standard error, 130 interrupted, 141 the reader of the output went away. Heavy imports wait for the subcommand.
"""

from __future__ import annotations

import argparse
import errno
import sys
from typing import TYPE_CHECKING

from deepseek_resilient import __version__
from deepseek_resilient.commands import ask, demo, doctor, gateway, local, probe, storm
from deepseek_resilient.commands.terminal import CommandError, readable, silence_stdout

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "deepseek-resilient"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    line = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Calls to DeepSeek that survive overload, stalls and outages, and never make them worse.",
        epilog=f"Try first: {PROGRAM} demo   (no key and no network needed)",
    )
    line.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = line.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, storm, ask, doctor, local, gateway, probe):
        command.add(commands)
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; `SystemExit` comes only from argparse."""
    try:
        options = parser().parse_args(arguments)
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        silence_stdout()
        return 141
    except OSError as error:
        if error.errno not in _FULL:
            raise
        silence_stdout()
        what = error.filename or "the output"
        print(readable(f"{PROGRAM}: {what} cannot be written: {error.strerror}.", sys.stderr), file=sys.stderr)
        return 2
    except CommandError as error:
        print(readable(f"{PROGRAM}: {error}", sys.stderr), file=sys.stderr)
        return 2
    return status
