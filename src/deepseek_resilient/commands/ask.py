"""`deepseek-resilient ask "…"`: one streamed answer, from DeepSeek or, without a key, from the simulated one."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from deepseek_resilient.commands.terminal import CommandError, Terminal, readable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from deepseek_resilient.events import Event

_KEYS: Final = "https://platform.deepseek.com/api_keys"
_BY_STATUS: Final = {
    401: f"the key was not accepted (401): check DEEPSEEK_API_KEY, or make a new key at {_KEYS}",
    402: "the account has no balance left (402): top it up at https://platform.deepseek.com/top_up",
    429: "the account is over its limit of calls at once (429): wait a moment, or start fewer at a time",
    503: "the server is too busy (503), and so it was at every attempt: try again in a minute",
}


def add(commands: Any) -> None:
    """Describe it to argparse."""
    line = commands.add_parser(
        "ask",
        help="stream one answer to standard output",
        description="Streams one answer: from DeepSeek when DEEPSEEK_API_KEY is set (at DEEPSEEK_BASE_URL, if that is "
        "set too), otherwise from a simulated DeepSeek on this machine. DEEPSEEK_RESILIENT_* variables set the policy.",
        epilog="Exit status: 1 when the answer broke off (what came has been printed), 2 when none came.",
    )
    line.add_argument("question", nargs="?", help="what to ask; - or nothing reads it from standard input")
    line.add_argument("--model", default="deepseek-flash", help="(default: %(default)s)")
    line.add_argument("--system", metavar="TEXT", help="a system message to go before the question")
    line.add_argument("--no-thinking", action="store_true", help="ask for an answer without reasoning")
    line.add_argument("--show-reasoning", action="store_true", help="write the reasoning to standard error")
    line.add_argument("--json-events", action="store_true", help="write our events to standard error, as JSON lines")
    line.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask, and print what comes as it comes."""
    question = _question(options.question)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_client(stack, [_tell] if options.json_events else []))
        system = [{"role": "system", "content": options.system}] if options.system else []
        asked = {
            "model": options.model,
            "messages": [*system, {"role": "user", "content": question}],
            "stream": True,
            **({"extra_body": {"thinking": {"type": "disabled"}}} if options.no_thinking else {}),
        }
        return _print_answer(lambda: client.chat.completions.create(**asked), options.show_reasoning)


def _question(given: str | None) -> str:
    if given is None and sys.stdin.isatty():
        raise CommandError('no question: deepseek-resilient ask "Why is the sky blue?", or give it on standard input.')
    question = sys.stdin.buffer.read().decode("utf-8", "replace") if given is None or given == "-" else given
    if not question.strip():
        raise CommandError("the question is empty.")
    return question


def _client(stack: contextlib.ExitStack, listeners: list[Callable[[Event], None]]) -> Any:
    """A client of DeepSeek; or one of a simulated DeepSeek that ends with the stack."""
    import httpx2

    from deepseek_resilient import ConfigError, DeepSeek, Policy
    from deepseek_resilient.commands.checks import key_problem
    from deepseek_resilient.lab import LabProcess, LabProcessError

    if problem := key_problem(os.environ.get("DEEPSEEK_API_KEY", "")):
        raise CommandError(f"DEEPSEEK_API_KEY has {problem}: set it again without them.")
    try:
        policy = Policy.from_env()
        if os.environ.get("DEEPSEEK_API_KEY"):
            return DeepSeek(policy=policy, listeners=listeners)
    except ConfigError as error:
        raise CommandError(f"{error}.") from error
    if os.environ.get("DEEPSEEK_BASE_URL"):
        raise CommandError("DEEPSEEK_BASE_URL is set, but no key for it: set DEEPSEEK_API_KEY as well.")
    print(f"No DEEPSEEK_API_KEY: a simulated DeepSeek answers. Keys: {_KEYS}", file=sys.stderr)
    try:
        lab = stack.enter_context(LabProcess(slots=4, service_time=1.0))
    except (LabProcessError, OSError) as error:
        raise CommandError(str(error)) from error
    # a transport of its own: the environment's proxy is not for this machine
    return DeepSeek(
        api_key="simulated", base_url=lab.base_url, policy=policy, listeners=listeners, transport=httpx2.HTTPTransport()
    )


def _print_answer(start: Callable[[], Any], show_reasoning: bool) -> int:
    import openai

    from deepseek_resilient import ResilienceError

    stream, began, last = None, False, "\n"
    try:
        stream = start()
        for kind, text in _pieces(stream):
            if kind == "answer":
                began = True
                last = text[-1]
                sys.stdout.write(readable(text, sys.stdout))
                sys.stdout.flush()
            elif show_reasoning:
                sys.stderr.write(readable(Terminal(sys.stderr).paint(text, "2"), sys.stderr))
                sys.stderr.flush()
    except (openai.OpenAIError, ResilienceError) as error:
        if not began:
            raise CommandError(_in_words(error)) from error
        _end_line(last)
        print(f"deepseek-resilient: the answer broke off: {_in_words(error)}", file=sys.stderr)
        return 1
    finally:
        if stream is not None:
            stream.close()
    _end_line(last)
    if not began:
        raise CommandError("the answer is empty: the model ended without a word; ask again, or ask otherwise.")
    return 0


def _pieces(stream: Any) -> Iterator[tuple[str, str]]:
    """What the stream brings: ("reasoning", text) and ("answer", text); a line break between the two kinds."""
    reasoned = False
    for chunk in stream:
        for choice in chunk.choices:
            reasoning, text = getattr(choice.delta, "reasoning_content", None), choice.delta.content
            if reasoning:
                reasoned = True
                yield "reasoning", reasoning
            if text:
                if reasoned:
                    yield "reasoning", "\n"
                reasoned = False
                yield "answer", text


def _end_line(last: str) -> None:
    if last != "\n":
        sys.stdout.write("\n")
    sys.stdout.flush()


def _in_words(error: Exception) -> str:
    """One sentence for a person."""
    import openai

    if isinstance(error, openai.APIStatusError):
        refused = error.response.headers.get("x-resilient-refused-by")
        said = error.body.get("message") if isinstance(error.body, dict) else None
        if not refused and error.status_code in _BY_STATUS:
            return f"{_BY_STATUS[error.status_code]}."
        return f"the server answered {error.status_code}: {said or error.message}"
    if isinstance(error, openai.APITimeoutError):
        return f"no answer came in time: {error.__cause__ or error}."
    if isinstance(error, openai.APIConnectionError):
        return f"{_address()} cannot be reached ({error.__cause__ or error}): deepseek-resilient doctor says more."
    return f"{error}."


def _address() -> str:
    from deepseek_resilient import wire

    return os.environ.get("DEEPSEEK_BASE_URL") or wire.BASE_URL


def _tell(event: Event) -> None:
    print(json.dumps({"event": type(event).__name__, **asdict(event)}), file=sys.stderr, flush=True)
