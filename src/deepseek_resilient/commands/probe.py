"""`deepseek-resilient probe URL`: how much your own server takes, and the `Policy` for it."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from deepseek_resilient.commands.terminal import CommandError, Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepseek_resilient.probe.advice import Figures, Setting
    from deepseek_resilient.probe.bounds import Bounds
    from deepseek_resilient.probe.run import Progress, Report

KEY: Final = "DEEPSEEK_API_KEY"


def add(commands: Any) -> None:
    """Describe it to argparse."""
    line = commands.add_parser(
        "probe",
        help="measure a server of your own, and print the Policy for it",
        description="Asks a server of yours 1, 2, 4, ... things at once, a few times each, until more at once no "
        "longer pays or it refuses, and prints what it can do and the Policy to use with it. It tells before what it "
        "will spend at most, and asks. Servers that many share are refused.",
        epilog="Exit status: 0 when the capacity was found, 1 when it was not reached, 2 when nothing could be "
        "measured, 130 when it was interrupted (what is known by then is printed).",
    )
    line.add_argument("url", metavar="URL", help="as OpenAI's clients take it (without a path /v1 is added)")
    line.add_argument("--requests", type=_whole(10), default=600, help="send no more than this (default: %(default)s)")
    line.add_argument("--seconds", type=_seconds, default=120.0, help="take no longer than this (default: %(default)g)")
    line.add_argument("--max-tokens", type=_whole(1), default=16, help="tokens of an answer (default: %(default)s)")
    line.add_argument("--concurrency", type=_whole(1), default=256, help="at once, at most (default: %(default)s)")
    line.add_argument("--timeout", type=_seconds, default=60.0, help="seconds for one answer (default: %(default)g)")
    line.add_argument("--model", default="", help="(default: the first that the server names)")
    line.add_argument("--stream", action="store_true", help="ask for streams, and measure their first content")
    line.add_argument("--key-env", metavar="NAME", help=f"the variable that has its key (default: {KEY})")
    line.add_argument("--no-key", action="store_true", help="send no key")
    line.add_argument("--yes", action="store_true", help="do not ask")
    line.add_argument("--i-own-this-server", action="store_true", help="for a public host, with --host")
    line.add_argument("--host", metavar="HOST", help="the public host once more, as you type it")
    line.add_argument("--json", action="store_true", help="as JSON, for programs")
    line.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Say what it will cost, measure, print."""
    import asyncio

    from deepseek_resilient.probe.bounds import Bounds
    from deepseek_resilient.probe.questions import ProbeError, Server
    from deepseek_resilient.probe.run import Run

    url = _address(options.url)
    _check_owner(url, options.i_own_this_server, options.host)
    key, name = _key(options)
    bounds = Bounds(
        requests=options.requests, seconds=options.seconds, max_tokens=options.max_tokens,
        concurrency=options.concurrency, timeout=options.timeout,
    )  # fmt: skip
    told = Terminal(sys.stderr)
    _announce(told, url, bounds, name if key else "")
    if not options.yes:
        _ask(told)
    display = Display(told)
    made: list[Run] = []

    async def measure() -> None:
        async with Server(
            url, key=key, key_name=name, model=options.model, stream=options.stream, bounds=bounds
        ) as server:
            made.append(Run(server, bounds, display.show))
            await made[0].measure()

    status = None
    try:
        asyncio.run(measure())
    except KeyboardInterrupt:
        status = 130
    except ProbeError as error:
        text = str(error)
        raise CommandError(text if text.endswith("?") else f"{text}.") from error
    finally:
        display.clear()
    return _conclude(made[0].report if made else None, bounds, options.json, status)


class Display:
    """The running step: one line that is written over on a terminal, a line a step elsewhere."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def show(self, progress: Progress) -> None:
        """Where the run is."""
        text = f"{progress.concurrency} at once: {progress.done} of {progress.wanted} requests"
        if progress.resting:
            text = f"refused at {progress.concurrency} at once: the server gets a rest of {progress.resting:.1f} s"
        if self._terminal.live:
            self._terminal.rewrite(text)
        elif progress.resting:
            self._terminal.line(text)
        elif progress.done == 0:
            self._terminal.line(f"{progress.concurrency} at once: {progress.wanted} requests")

    def clear(self) -> None:
        """Nothing runs any more."""
        if self._terminal.live:
            self._terminal.rewrite("")


def _conclude(report: Report | None, bounds: Bounds, as_json: bool, status: int | None) -> int:
    from deepseek_resilient.probe import advice

    found = None if report is None else advice.figures(report)
    out = Terminal(sys.stdout)
    if report is not None and as_json:
        out.line(json.dumps(advice.as_data(report, bounds, found), indent=2))
    elif report is None or found is None:
        Terminal(sys.stderr).paragraph(advice.nothing(report))
    else:
        _print(out, report, found, advice.settings(found))
    if status is not None:
        return status
    return 0 if report is not None and report.end == "found" and found is not None and not found.unsteady else 1


def _print(out: Terminal, report: Report, found: Figures, wanted: Sequence[Setting]) -> None:
    from deepseek_resilient.probe import advice

    for row in table(report):
        out.line(row)
    out.line()
    tokens = report.prompt_tokens + report.answer_tokens
    spent = f"{report.sent} requests, {report.seconds:.1f} s" + (f", {tokens:,} tokens" if tokens else "")
    out.line(f"Model {report.model}; spent: {spent}")
    out.line()
    for sentence in advice.sentences(report, found):
        out.paragraph(sentence)
    if doubt := advice.doubt(report):
        out.paragraph(doubt, "warning")
    out.line()
    if not wanted:
        out.paragraph("The measurement gives no reason to change a default: Policy().")
        return
    out.line("from deepseek_resilient import ConcurrencyPolicy, Policy\n")
    out.line(advice.as_python(list(wanted)))
    out.line("\nThe same for the gateway:\n")
    out.line(advice.as_toml(list(wanted)))
    out.line()
    out.paragraph(
        "This is for one process that has the server to itself: several processes divide these numbers by how many "
        "they are. Answers longer than those of the probe take longer; then give --max-tokens as many as yours have."
    )


def table(report: Report) -> list[str]:
    """The steps, a row each, in the order in which they were taken."""
    from deepseek_resilient.probe import advice

    stream = any(step.first_content is not None for step in report.steps)
    best = max((step.power for step in report.steps if not step.broken_off), default=0.0) or 1.0
    rows = [["at once", "answered", "answers/s", "latency", *(["first content"] if stream else []), "power", ""]]
    for step in report.steps:
        failed = len(step.answers) - len(step.good) - len(step.refusals)
        reasons = sorted({one.reason for one in step.refusals})
        notes = [f"{len(step.refusals)} refused ({', '.join(reasons)})"] if step.refused else []
        notes += [f"{failed} failed"] if failed else []
        first = [advice.time(step.first_content)] if stream else []
        measured = not step.broken_off
        rows.append(
            [
                str(step.concurrency), str(len(step.good)), f"{step.throughput:.1f}" if measured else "",
                advice.time(step.latency), *first, f"{step.power / best:.0%}" if measured else "", "; ".join(notes),
            ]
        )  # fmt: skip
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        *cells, note = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(("  ".join(cells) + "  " + note.strip()).rstrip())
    return lines


def _address(text: str) -> str:
    from deepseek_resilient.local.probe import base_url
    from deepseek_resilient.probe.hosts import host_of

    try:
        host = host_of(text)
    except ValueError:
        host = ""
    parts = urlsplit(text) if host else urlsplit("")
    if parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise CommandError("URL must be an address such as http://127.0.0.1:8000/v1.")
    if "@" in parts.netloc:
        raise CommandError("URL must not carry a password: give the key in a variable, --key-env names it.")
    return base_url(text)


def _check_owner(url: str, owned: bool, typed: str | None) -> None:
    from deepseek_resilient.probe.hosts import host_of, is_public

    host = host_of(url)
    if not is_public(host):
        return
    if not owned or typed is None:
        raise CommandError(
            f"{host} is a public API that many share: a load on it slows others down, costs money, may break its "
            f"terms, and measures your account's limit at best. If it is yours to load, say so twice: "
            f"--i-own-this-server --host {host}"
        )
    if typed.lower().rstrip(".") != host:
        raise CommandError(f"--host {typed} is not the host of URL, which is {host}.")


def _key(options: argparse.Namespace) -> tuple[str | None, str]:
    from deepseek_resilient.commands.checks import key_problem

    name = options.key_env or KEY
    if options.no_key:
        return None, name
    key = os.environ.get(name, "")
    if options.key_env and not key:
        raise CommandError(f"{name} is not set: --key-env names the variable that has the server's key.")
    if problem := key_problem(key):
        raise CommandError(f"{name} has {problem}: set it again without them.")
    return key or None, name


def _announce(told: Terminal, url: str, bounds: Bounds, key_name: str) -> None:
    told.paragraph(
        f"This puts load on {url}: at most {bounds.requests} requests, {bounds.seconds:g} s, and about "
        f"{bounds.answer_tokens:,} tokens of answers and {bounds.prompt_tokens:,} of prompts. It stops at the first "
        f"signs that more is too much. Ctrl-C ends it at once."
    )
    told.paragraph(f"The key in {key_name} is sent (--no-key: none)." if key_name else "No key is sent.")
    from deepseek_resilient.gateway.loopback import is_loopback

    if key_name and url.startswith("http://") and not is_loopback(urlsplit(url).hostname or ""):
        told.paragraph("http:// sends the key in the clear.", "warning")


def _ask(told: Terminal) -> None:
    if not sys.stdin.isatty():
        raise CommandError("nobody can be asked here whether that is all right: --yes says so.")
    told.line("Go on? [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was sent.")


def _whole(least: int) -> Any:
    def whole(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {text!r}")
        return int(text)

    return whole


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"must be seconds above 0 and at most 86400, not {text!r}")
    return value
