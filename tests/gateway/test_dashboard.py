"""The dashboard in a real browser, before a real gateway, before a simulated DeepSeek with faults."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from deepseek_resilient.gateway.tenants import make_key

from .browser import chromium, complaints
from .running import CHAT, GatewayProcess, tenant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deepseek_resilient.lab import LabProcess

ELEMENT = "<img src=x onerror=alert(1)>"
POLICY = """
[policy.retry]
attempts = 2
[policy.breaker]
minimum_throughput = 4
break_duration = 30.0
max_break_duration = 60.0
"""
SECONDS = 1000.0
WAIT = 15 * SECONDS
VOICE = "document.querySelector('#spoken').textContent"


class Shop:
    """A gateway with two tenants and their keys."""

    def __init__(self, folder: Path, lab: LabProcess) -> None:
        self.search, digest = make_key()
        self.night, other = make_key()
        tenants = tenant("search", digest) + tenant("night-batch", other, requests_per_minute=60, burst=1)
        self.process = GatewayProcess(folder, lab.base_url, tenants + POLICY)

    def ask(self, key: str, **fields: Any) -> int:
        """One call; its status."""
        answered = httpx.post(
            f"{self.process.url}/chat/completions",
            json={**CHAT, **fields},
            headers={"authorization": f"Bearer {key}"},
            timeout=30,
        )
        return answered.status_code

    def stay(self) -> None:
        """From now on the same ports, also after a restart."""
        path, process = self.process.path, self.process
        text = path.read_text()
        for name, url in (("listen", process.url.removesuffix("/v1")), ("admin", process.pages)):
            text = re.sub(rf'^{name} = ".*"$', f'{name} = "{url.removeprefix("http://")}"', text, flags=re.M)
        path.write_text(text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def shop(tmp_path: Path, lab: LabProcess) -> Iterator[Shop]:
    made = Shop(tmp_path, lab)
    with made.process:
        yield made


@pytest.fixture
def open_page(browser: Any, shop: Shop) -> Iterator[Any]:
    """Opens the dashboard; what goes wrong in it fails the test."""
    contexts, wrong = [], []

    def opened(**settings: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(shop.process.pages + "/")
        until(page, "document.querySelector('#connection').textContent === 'live'")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def until(page: Any, holds: str) -> None:
    """Wait for a condition in the page."""
    # not wait_for_function: it calls eval() in the page, which the page's policy forbids
    page.evaluate(
        f"""() => new Promise((resolve, reject) => {{
            const end = performance.now() + {WAIT};
            (function look() {{
                if ({holds}) resolve();
                else if (performance.now() > end) reject(new Error("never: " + {json.dumps(holds)}));
                else setTimeout(look, 50);
            }})();
        }})"""
    )


def text_of(page: Any, selector: str) -> str:
    """As a reader sees it."""
    told: str = page.locator(selector).inner_text()
    return told


def row(page: Any, table: str, name: str) -> dict[str, str]:
    """A row of a table by the names of its columns."""
    found: dict[str, str] = page.evaluate(
        """([table, name]) => {
            const { tHead, tBodies } = document.getElementById(table);
            const heads = [...tHead.rows[0].cells].map((head) => head.textContent);
            const row = [...tBodies[0].rows].find((each) => each.cells[0].textContent.includes(name));
            const data = (cell) => cell.querySelector(".data").textContent;
            return Object.fromEntries([...row.cells].map((cell, i) => [heads[i], data(cell)]));
        }""",
        [table, name],
    )
    return found


def break_circuit(shop: Shop, lab: LabProcess) -> None:
    """The server is out, until the circuit is open."""
    lab.script(windows=["outage_503"])
    for _ in range(4):
        shop.ask(shop.search)
    assert shop.ask(shop.search) == 503


def test_before_the_first_call_it_says_how_to_send_one(shop: Shop, open_page: Any) -> None:
    page = open_page()
    until(page, "!document.querySelector('#empty').hidden")
    assert f"curl {shop.process.url}/chat/completions" in text_of(page, "#example")
    assert text_of(page, "#workers") == "1 of 1"
    assert shop.ask(shop.search) == 200
    until(page, "document.querySelector('#empty').hidden")
    assert row(page, "tenants", "search")["Requests"] == "1"
    until(page, "/^[$]0[.]0*[1-9]/.test(document.querySelector('#spent').textContent)")


def test_what_is_in_flight_and_what_was_refused(shop: Shop, lab: LabProcess, open_page: Any) -> None:
    page = open_page()
    lab.script(next=["slow_first_token;delay=20", "slow_first_token;delay=20"])
    gone = threading.Event()

    def hold(max_tokens: int) -> None:  # each another, for identical calls would share one answer
        headers = {"authorization": f"Bearer {shop.search}"}
        url, body = f"{shop.process.url}/chat/completions", {**CHAT, "stream": True, "max_tokens": max_tokens}
        with httpx.stream("POST", url, json=body, headers=headers, timeout=30):
            gone.wait(30)

    with ThreadPoolExecutor(2) as callers:
        for most in (100, 200):
            callers.submit(hold, most)
        try:
            until(page, "document.querySelector('#flight').textContent === '2'")
            until(page, "document.querySelector('#targets tbody td .data')?.textContent.startsWith('2 / ')")
            assert row(page, "tenants", "search")["In flight"] == "2"
        finally:
            gone.set()
    assert [shop.ask(shop.night) for _ in range(3)] == [200, 429, 429]
    until(page, "document.querySelector('#refusals').textContent.includes('tenant: its own limit')")
    until(page, "document.querySelector('#refusals').textContent.includes('repeated too early')")
    assert text_of(page, "#refused-note") == "2 since the start"
    assert row(page, "refusals", "repeated too early")["Refused"] == "1"
    assert row(page, "tenants", "night-batch")["Amplification"] == "1.50×"
    assert "refused" in page.get_by_role("img").first.get_attribute("aria-label")


def test_an_open_circuit_is_shown_said_and_explained(shop: Shop, lab: LabProcess, open_page: Any) -> None:
    assert shop.ask(shop.search) == 200
    page = open_page()
    until(page, "document.querySelector('#targets .data')")
    break_circuit(shop, lab)
    until(page, f"{VOICE}.includes('Circuit opened')")
    assert row(page, "targets", "deepseek-flash")["Circuit"] == "open"
    assert "circuit went from closed to open" in text_of(page, "#decisions")
    until(page, "document.querySelector('#refusals').textContent.includes('breaker: circuit open')")
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"


def test_it_speaks_of_changes_and_not_of_ticks(shop: Shop, open_page: Any) -> None:
    page = open_page()
    page.evaluate(
        "window.said = 0; new MutationObserver(() => { window.said += 1; })"
        ".observe(document.querySelector('#spoken'), {childList: true, characterData: true, subtree: true})"
    )
    for number in range(1, 4):
        assert shop.ask(shop.search) == 200
        until(page, f"document.querySelector('#attempts-note').textContent === '{number} for {number} calls'")
    assert page.evaluate("window.said") == 0


def test_what_callers_and_servers_name_stays_text(shop: Shop, lab: LabProcess, open_page: Any) -> None:
    page = open_page()
    lab.script(next=["ok", f"other_model;model={ELEMENT}"], settings={"models": ["deepseek-flash", ELEMENT]})
    shop.ask(shop.search, model=ELEMENT)
    shop.ask(shop.search)
    until(page, "[...document.querySelectorAll('#targets tbody td:last-child .data')]"
                ".some((cell) => cell.textContent.includes('onerror'))")  # fmt: skip
    assert ELEMENT in row(page, "targets", "img src")["Target"]
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(shop: Shop, lab: LabProcess, open_page: Any, scheme: str) -> None:
    shop.ask(shop.search, model="m" * 120)
    break_circuit(shop, lab)
    page = open_page(viewport={"width": 360, "height": 740}, color_scheme=scheme, is_mobile=True)
    until(page, "document.querySelector('#decisions li')")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = "[...document.querySelectorAll('main *')].filter((node) => node.getBoundingClientRect().right > 361"
    assert page.evaluate(wide + " && !node.closest('thead')).map((node) => node.outerHTML)") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_accessible(shop: Shop, lab: LabProcess, open_page: Any, scheme: str, width: int) -> None:
    shop.ask(shop.search)
    break_circuit(shop, lab)
    page = open_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    until(page, "document.querySelector('#decisions li') && document.querySelector('#tenants tbody tr')")
    assert complaints(page) == []
    for name in ("Targets", "Tenants", "Refusals by step", "Money", "Last decisions"):
        assert page.get_by_role("region", name=name).count() == 1
    columns = page.locator("#tenants").get_by_role("columnheader")
    assert columns.count() == 9
    assert page.locator("#tenants").get_by_role("rowheader", name="search").count() == 1


def test_the_two_themes_differ_and_motion_is_reduced(open_page: Any) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_page(color_scheme=scheme, reduced_motion="reduce") for scheme in ("light", "dark"))
    assert light.evaluate(back) != dark.evaluate(back)
    moving = "document.getAnimations().length"
    assert light.evaluate(moving) == 0
    rule = "const bar = document.body.appendChild(document.createElement('div')); bar.className = 'bar';"
    rule += "const inner = bar.appendChild(document.createElement('div'));"
    rule += "return getComputedStyle(inner).transitionDuration"
    assert light.evaluate(f"() => {{ {rule} }}") == "0s"
    assert open_page(reduced_motion="no-preference").evaluate(f"() => {{ {rule} }}") == "0.3s"


def test_the_keyboard_goes_to_all_controls_in_order(shop: Shop, open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pause"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#connection').textContent === 'paused'")
    assert page.locator("#pause").get_attribute("aria-pressed") == "true"
    assert shop.ask(shop.search) == 200
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#attempts-note').textContent === '1 for 1 calls'")


def test_it_says_when_it_is_stale_and_comes_back_by_itself(shop: Shop, open_page: Any) -> None:
    shop.stay()
    page = open_page()
    shop.ask(shop.search)
    until(page, "document.querySelector('#attempts-note').textContent === '1 for 1 calls'")
    shop.process.__exit__()
    until(page, f"!document.querySelector('#banner').hidden && {VOICE}.includes('stale')")
    assert text_of(page, "#connection").endswith("stale")
    shop.process.__enter__()
    until(page, "document.querySelector('#connection').textContent === 'live'")
    assert page.locator("#banner").is_hidden()
    until(page, "document.querySelector('#attempts-note').textContent === '0 for 0 calls'")
    until(page, f"!{VOICE}.includes('stale')")
