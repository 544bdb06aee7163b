"""`ask`: one streamed answer, and every way in which it may not come."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from .command import C_LOCALE, alive, descendants, environment, inside, run, start, until

if TYPE_CHECKING:
    from deepseek_resilient.lab import LabProcess

REFUSALS = [
    ("status;status=401", "DEEPSEEK_API_KEY"),
    ("balance_402", "balance"),
    ("throttle_429", "limit of calls"),
    ("outage_503", "too busy"),
    ("status;status=400;message=so not", "400: so not"),
    ("html_502", "502"),
    ("blank_200", "without an answer"),
    ("empty_content", "without a word"),
    ("refuse", "cannot be reached"),
]


def test_an_answer_is_streamed_to_standard_output(keyed: dict[str, str]) -> None:
    """With a key the server of DEEPSEEK_BASE_URL is asked; nothing is said on standard error."""
    assert (0, "Simulated answer to: Why?\n", "") == run("ask", "Why?", env=keyed)


@pytest.mark.parametrize("arguments", [["ask"], ["ask", "-"]])
def test_the_question_may_be_piped(arguments: list[str], keyed: dict[str, str]) -> None:
    """`-`, or no question, reads standard input."""
    assert (0, "Simulated answer to: Who is there?\n", "") == run(*arguments, env=keyed, text="Who is there?")


def test_without_a_key_a_simulated_deepseek_answers() -> None:
    """One line on standard error says so; proxies of the environment and answers of others do not matter."""
    env = environment(HTTP_PROXY="http://127.0.0.1:1", http_proxy="http://127.0.0.1:1")
    status, out, err = run("ask", "Why?", env=env)
    assert (0, "Simulated answer to: Why?\n") == (status, out)
    assert 1 == len(err.splitlines())
    assert "simulated" in err


def test_an_address_without_a_key_is_a_mistake(lab: LabProcess) -> None:
    """The address was meant: answering from elsewhere would mislead."""
    status, out, err = inside("ask", "Why?", env=environment(DEEPSEEK_BASE_URL=lab.base_url))
    assert (2, "") == (status, out)
    assert "DEEPSEEK_API_KEY" in err


def test_a_bad_key_is_refused_and_never_shown(keyed: dict[str, str]) -> None:
    """401: what to check, in one sentence, without the key."""
    status, out, err = inside("ask", "Why?", env={**keyed, "DEEPSEEK_API_KEY": "sk-invalid-0123456789"})
    assert (2, "", 1) == (status, out, len(err.splitlines()))
    assert "DEEPSEEK_API_KEY" in err
    assert "0123" not in err


@pytest.mark.parametrize("key", ["sk-01234\n56789", "sk-schlüssel"])
def test_a_key_that_no_header_can_carry_is_never_shown(key: str, keyed: dict[str, str]) -> None:
    """HTTP libraries show it in their error: it is refused before."""
    status, out, err = inside("ask", "Why?", env={**keyed, "DEEPSEEK_API_KEY": key})
    assert (2, "", 1) == (status, out, len(err.splitlines()))
    assert not any(part in err for part in ("0123", "567", "schl"))


@pytest.mark.parametrize(("fault", "words"), REFUSALS)
def test_no_answer_is_one_sentence(fault: str, words: str, lab: LabProcess, keyed: dict[str, str]) -> None:
    """Whatever the server does instead of answering: exit status 2 and one line that says what."""
    lab.script(windows=[{"fault": fault}])
    status, out, err = inside("ask", "Why?", env=keyed)
    assert (2, "", 1) == (status, out, len(err.splitlines()))
    assert words in err


def test_no_answer_in_time_is_one_sentence(lab: LabProcess, keyed: dict[str, str]) -> None:
    """A deadline that passes says which one."""
    lab.script(windows=[{"fault": "hang"}])
    status, out, err = inside("ask", "Why?", env={**keyed, "DEEPSEEK_RESILIENT_DEADLINE": "0.3"})
    assert (2, "", 1) == (status, out, len(err.splitlines()))
    assert "deadline" in err


def test_a_wrong_setting_is_one_sentence(keyed: dict[str, str]) -> None:
    """A ConfigError names the variable."""
    status, out, err = inside("ask", "Why?", env={**keyed, "DEEPSEEK_RESILIENT_DEADLINE": "soon"})
    assert (2, "", 1) == (status, out, len(err.splitlines()))
    assert "DEEPSEEK_RESILIENT_DEADLINE" in err


def test_a_cut_answer_is_printed_as_far_as_it_came(lab: LabProcess, keyed: dict[str, str]) -> None:
    """Exit status 1, what came on standard output, the reason on standard error."""
    lab.script(next=["cut;after=14"])
    status, out, err = inside("ask", "Why oh why is it so?", env=keyed)
    assert 1 == status
    assert out.startswith("Simulated")
    assert out.endswith("\n")
    assert "so?" not in out
    assert "broke off" in err


def test_reasoning_is_shown_on_request(keyed: dict[str, str]) -> None:
    """`--show-reasoning` writes it to standard error; `--no-thinking` makes that there is none."""
    assert (0, "Simulated answer to: Why?\n", "The user says: Why? I shall answer.\n") == inside(
        "ask", "--show-reasoning", "Why?", env=keyed
    )
    assert (0, "Simulated answer to: Why?\n", "") == inside(
        "ask", "--show-reasoning", "--no-thinking", "Why?", env=keyed
    )


def test_events_are_json_lines_without_the_question(lab: LabProcess, keyed: dict[str, str]) -> None:
    """`--json-events`: one object per line, a retry among them, no key and no text."""
    lab.script(next=["outage_503"])
    env = {**keyed, "DEEPSEEK_RESILIENT_RETRY_ATTEMPTS": "4"}
    status, out, err = inside("ask", "--json-events", "--system", "Be brief.", "Whyever?", env=env)
    assert (0, "Simulated answer to: Whyever?\n") == (status, out)
    events: list[dict[str, Any]] = [json.loads(line) for line in err.splitlines()]
    told = ["CallStarted", "AttemptStarted", "AttemptEnded", "AttemptCharged", "RetryScheduled"]
    assert told == [e["event"] for e in events[:5]]
    assert not any(word in err for word in ("Whyever", "brief", "0123456789"))


def test_a_reader_that_goes_away_ends_it_quietly(lab: LabProcess, keyed: dict[str, str]) -> None:
    """`ask … | head -1`: no traceback, the status of a broken pipe."""
    lab.script(settings={"answer_tokens": 4000, "service_time": 2.0})
    process = start("ask", "Why?", env=keyed)
    assert b"S" == process.stdout.read(1)
    process.stdout.close()
    assert (141, b"") == (process.wait(30), process.stderr.read())
    process.stdin.close()
    process.stderr.close()


def test_ctrl_c_ends_it_quietly() -> None:
    """Status 130, no traceback, and the simulated DeepSeek is gone."""
    process = start("ask", "Why?", env=environment())
    lab = until(lambda: descendants(process.pid))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (130, b"") == (process.returncode, out)
    assert b"Traceback" not in err
    until(lambda: not alive(lab))


def test_a_terminal_of_ascii_gets_ascii(keyed: dict[str, str]) -> None:
    """LANG=C: what cannot be shown is a question mark, not an error."""
    status, out, err = run("ask", "-", env={**keyed, **C_LOCALE}, text="天")
    assert (0, "Simulated answer to: ?\n", "") == (status, out, err)
