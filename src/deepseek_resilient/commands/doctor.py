"""`deepseek-resilient doctor`: what it sees on this machine, and what to do about each thing."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from deepseek_resilient.commands.terminal import Terminal

if TYPE_CHECKING:
    import argparse


def add(commands: Any) -> None:
    """Describe it to argparse."""
    line = commands.add_parser(
        "doctor",
        help="look at versions, settings, the way to the server, and this machine",
        description="Shows what deepseek-resilient sees, and what to do about what is wrong. The key is never shown, "
        "and is sent nowhere but to GET /models of the address in force. A local model is not started: only what can "
        "be told without that is looked at.",
        epilog="Exit status: 1 when something must be put right, 0 otherwise (warnings included).",
    )
    line.add_argument("--json", action="store_true", help="as JSON, for programs")
    line.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make every check and print the findings."""
    from deepseek_resilient.commands.checks import policy_lines, run_checks

    findings = run_checks(os.environ)
    worst = 1 if any(finding.level == "problem" for finding in findings) else 0
    out = Terminal(sys.stdout)
    if options.json:
        out.line(json.dumps({"ok": not worst, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return worst
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        out.line(f"{out.mark(finding.level)} {finding.name:<{width}}  {finding.text}")
        if finding.advice:
            out.line(f"  {'':<{width}}  {out.paint(finding.advice, '2')}")
    lines = policy_lines(os.environ)
    if lines:
        out.line("\nThe path of a call:")
        for line in lines:
            out.line(textwrap.fill(line, max(out.width, 60), initial_indent="  ", subsequent_indent=" " * 15))
    return worst
