"""`deepseek-resilient local bench`: one local model measured, in 16 and in 8 bits where both can be had, as a table."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deepseek_resilient.commands.terminal import CommandError, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deepseek_resilient.commands.measuring import Measured
    from deepseek_resilient.config import LocalPolicy


def add(commands: Any) -> None:
    """Describe it to argparse."""
    line = commands.add_parser(
        "bench",
        help="measure a model here: start, first content, tokens/s, memory, 8 bits",
        description="Starts the model, asks it by itself and through our client in turns, and prints medians: time to "
        "the first token and to the first content, tokens/s, memory. Where the model can be had in 16 (or 32) and in "
        "8 bits, both side by side in one run, and how far their answers agree.",
        epilog="Settings that are no option here are those of the environment (DEEPSEEK_RESILIENT_LOCAL=on, "
        "DEEPSEEK_RESILIENT_LOCAL_THREADS=1 and so on). Progress goes to standard error. Nothing is fetched. "
        "Exit status: 0 when it was measured, 2 when it could not be, 130 when it was interrupted.",
    )
    line.add_argument(
        "model", metavar="MODEL", nargs="?",
        help="a name of `local list`, a GGUF file, or a folder (default: that of the environment, or the one for this "
        "machine)",
    )  # fmt: skip
    line.add_argument("--engine", choices=("auto", "llamacpp", "transformers", "vllm"), help="what runs it")
    line.add_argument(
        "--int8", action=argparse.BooleanOptionalAction, default=None,
        help="16 bits against 8, or not (default: where both can be had)",
    )  # fmt: skip
    line.add_argument("--tokens", type=_positive, default=32, help="tokens of an answer (default: %(default)s)")
    line.add_argument("--rounds", type=_positive, default=5, help="questions each way (default: %(default)s)")
    line.add_argument("--json", action="store_true", help="as JSON, for programs")
    line.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    from deepseek_resilient.commands.measuring import measure, sides
    from deepseek_resilient.errors import ConfigError, LocalModelError

    progress = Terminal(sys.stderr)
    try:
        policy = policy_of(options.model, options.engine, options.tokens)
        found = measure(
            sides(policy, options.int8), tokens=options.tokens, rounds=options.rounds, note=_notes(progress)
        )
    except KeyboardInterrupt:
        progress.line("interrupted: the model was ended")
        return 130
    except (ConfigError, LocalModelError) as error:
        raise CommandError(f"{error}.") from error
    finally:
        if progress.live:
            progress.rewrite("")
    out = Terminal(sys.stdout)
    if options.json:
        out.line(json.dumps(as_data(found), indent=2))
    else:
        for row in table(found):
            out.line(row)
    return 0


def policy_of(model: str | None, engine: str | None, tokens: int) -> LocalPolicy:
    """The environment's local part, or the default one, with what was asked for. Raises ConfigError."""
    from deepseek_resilient.config import LocalPolicy, Policy

    policy = Policy.from_env(os.environ).local or LocalPolicy()
    if model is not None:
        policy = replace(policy, model=model, address=None, discover=False)
    if engine is not None:
        chosen: Any = engine  # argparse has the choices
        policy = replace(policy, engine=chosen)
    return replace(policy, context=max(policy.context, 4 * tokens + 512))


def as_data(found: Sequence[Measured]) -> dict[str, Any]:
    """The figures for programs; `agreement` of the first two, or None."""
    from deepseek_resilient.commands.measuring import agreement

    both = agreement(found[0].answers, found[1].answers) if len(found) > 1 else None
    told = None if both is None else {"equal": both[0], "common_prefix": both[1], "questions": len(found[0].answers)}
    return {"sides": [one.summary() for one in found], "agreement": told}


def table(found: Sequence[Measured]) -> list[str]:
    """The figures as a table of Markdown, one column a side."""
    from deepseek_resilient.commands.measuring import agreement

    rows: list[tuple[str, Callable[[Measured], str]]] = [
        ("model", lambda one: one.model),
        ("engine", lambda one: one.engine or "a server that ran already"),
        ("start to first token", lambda one: _seconds(one.start)),
        ("first content, engine alone", lambda one: _seconds(statistics.median(one.alone))),
        ("first content, through our client", lambda one: _seconds(statistics.median(one.client))),
        ("... times as long", lambda one: f"{one.ratio:.2f}"),
        ("tokens/s", lambda one: f"{statistics.median(one.rates):.1f}" if one.rates else "one token only"),
        ("resident memory", lambda one: f"{one.resident / 1e6:,.0f} MB" if one.resident else "not ours to measure"),
    ]
    if any(one.gpu is not None for one in found):
        rows.append(("memory of the GPU", lambda one: "" if one.gpu is None else f"{one.gpu / 1e6:,.0f} MB"))
    cells = [["", *(one.label for one in found)], *([name, *map(tell, found)] for name, tell in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    if len(found) > 1:
        equal, common = agreement(found[0].answers, found[1].answers)
        lines += ["", f"Greedy answers to {len(found[0].answers)} questions: {equal:.0%} are equal, "
                      f"{common:.0%} of the words stand before the first difference."]  # fmt: skip
    return lines


def _notes(progress: Terminal) -> Callable[[str], None]:
    """One line that is written over on a terminal; lines elsewhere."""
    return progress.rewrite if progress.live else progress.line


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)
