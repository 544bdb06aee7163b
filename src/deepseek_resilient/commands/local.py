"""`deepseek-resilient local list` and `pull`: the models that fit here, and fetching one. Only `pull` fetches.

`local bench` is in a module of its own."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_resilient.commands import local_bench
from deepseek_resilient.commands.terminal import CommandError, Terminal

if TYPE_CHECKING:
    from deepseek_resilient.local.catalog import Choice, Model
    from deepseek_resilient.local.hardware import Hardware


def add(commands: Any) -> None:
    """Describe both to argparse."""
    line = commands.add_parser(
        "local",
        help="local models: which fit this machine, fetching one, measuring one",
        description="Models that can answer on this machine when DeepSeek does not.",
        epilog="Nothing is ever fetched but by `local pull`.",
    )
    inner = line.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_list(inner)
    _add_pull(inner)
    local_bench.add(inner)


def _add_list(commands: Any) -> None:
    line = commands.add_parser(
        "list",
        help="the catalog: what fits here, what is here already",
        description="Shows the models of the catalog, which of them fit this machine now, and which are here already. "
        "The one that would be chosen is marked.",
        epilog="Exit status: 0, also where none fits; 2 for a wrong option.",
    )
    line.add_argument(
        "--tokens", type=_positive, default=25_000,
        help="room for so many tokens of all requests at once (default: %(default)s)",
    )  # fmt: skip
    line.add_argument("--json", action="store_true", help="as JSON, for programs")
    line.set_defaults(run=run_list)


def _add_pull(commands: Any) -> None:
    line = commands.add_parser(
        "pull",
        help="fetch the files of a model",
        description="Fetches a model of the catalog, or by their hub names a repository of safetensors or one of GGUF "
        "files. Stopped, it goes on where it was when it is run again. Checksums are checked.",
        epilog="Exit status: 0 when it is here, 2 when it could not be fetched, 130 when it was interrupted; what came "
        "stays. HF_TOKEN, if set, goes to https://huggingface.co only. Proxies of the environment are used.",
    )
    line.add_argument("name", metavar="NAME", help="a name of `local list`, organisation/name, or "
                      "organisation/name:file.gguf")  # fmt: skip
    line.add_argument("--to", type=Path, metavar="DIR", help="the folder (default: $DEEPSEEK_RESILIENT_MODELS, or "
                      "~/.cache/deepseek-resilient/models)")  # fmt: skip
    line.add_argument("--url", type=_address, metavar="BASE", help="a mirror of the hub (default: $HF_ENDPOINT, or "
                      "https://huggingface.co)")  # fmt: skip
    line.set_defaults(run=run_pull)


def run_list(options: argparse.Namespace) -> int:
    """Show the catalog against this machine."""
    from deepseek_resilient.errors import LocalModelError
    from deepseek_resilient.local import catalog, hardware
    from deepseek_resilient.local.files import present

    here = hardware.detect()
    chosen: Choice | None = None
    why = ""
    try:
        chosen = catalog.choose(here, tokens=options.tokens)
    except LocalModelError as error:
        why = str(error)
    out = Terminal(sys.stdout)
    rows = []
    for model in catalog.CATALOG:
        places = [found.why for found in catalog.places(model, here, options.tokens)]
        fits = places[0] if places else catalog.why_not(model, here, options.tokens)
        rows.append((model, bool(places), fits, present(model)))
    if options.json:
        models = [
            {
                "name": model.name, "chosen": chosen is not None and model == chosen.model, "fits": does, "why": text,
                "path": str(path) if path else None, "weights": model.weights, "licence": model.licence,
                "notes": model.notes,
            }
            for model, does, text, path in rows
        ]  # fmt: skip
        out.line(json.dumps({"models": models}, indent=2))
        return 0
    out.paragraph(f"Here: {describe(here)}.")
    out.line()
    for model, does, text, path in rows:
        _show(out, model, does, text, path, chosen is not None and model == chosen.model)
    if chosen is None:
        out.paragraph(f"{why}.", "warning")
    return 0


def _show(out: Terminal, model: Model, fits: bool, text: str, path: Path | None, chosen: bool) -> None:
    mark = out.mark("ok") if fits else " "
    told = f"{mark} {model.name:<28} {model.weights / 1e9:5.1f} GB  {'chosen here' if chosen else ''}"
    out.line(told.rstrip())
    notes = [text, f"{model.licence}; {model.notes}", *([f"here: {path}"] if path else [])]
    for note in notes:
        filled = textwrap.fill(note, max(min(out.width, 100), 60), initial_indent="    ", subsequent_indent="    ",
                               break_long_words=False, break_on_hyphens=False)  # fmt: skip
        out.line(out.paint(filled, "2"))


def describe(here: Hardware) -> str:
    """The hardware in one line."""
    gpus = [f"{gpu.name} ({gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free)" for gpu in here.gpus]
    gpu = ", ".join(gpus) or f"no GPU ({'; '.join(here.notes) or 'none found'})"
    features = f" ({', '.join(here.features)})" if here.features else ""
    return (
        f"{gpu}; {here.cores} cores{features}, {here.available / 1e9:.1f} of {here.memory / 1e9:.1f} GB of memory free"
    )


def run_pull(options: argparse.Namespace) -> int:
    """Fetch it, file by file."""
    import httpx2

    from deepseek_resilient.commands.progress import Bar
    from deepseek_resilient.errors import LocalModelError
    from deepseek_resilient.local import hub
    from deepseek_resilient.local.files import models_directory, packaged
    from deepseek_resilient.local.models import CATALOG
    from deepseek_resilient.local.pull import pull

    directory: Path = options.to or models_directory()
    base = options.url or os.environ.get("HF_ENDPOINT") or hub.HUB
    bar = Bar(Terminal(sys.stderr))
    try:
        for model in CATALOG:
            if options.name == model.name and (inside := packaged(model)):
                Terminal(sys.stdout).line(str(inside))
                return 0
        base = _address(base)
        with hub.make_client() as client:
            remotes = hub.remotes(options.name, directory.expanduser(), base, client, os.environ)
            for remote in remotes:
                pull(remote, client, os.environ, bar)
    except KeyboardInterrupt:
        bar.end()
        bar.note("interrupted: what came is kept; the same command goes on from there")
        return 130
    except (argparse.ArgumentTypeError, LocalModelError) as error:
        bar.end()
        raise CommandError(f"{error}.") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        bar.end()
        raise CommandError(
            f"{base} cannot be used: {str(error) or type(error).__name__}: check the network and HTTPS_PROXY, or give "
            "another source by --url."
        ) from error
    path = remotes[0].target
    Terminal(sys.stdout).line(str(path if path.suffix == ".gguf" else path.parent))
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return int(text)


def _address(text: str) -> str:
    import httpx2

    try:
        address = httpx2.URL(text)
        good = address.scheme in ("http", "https") and bool(address.host)
    except httpx2.InvalidURL:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as https://huggingface.co")
    return text.rstrip("/")
