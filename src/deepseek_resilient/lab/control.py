"""The control endpoints under `/__lab__/`: how a test, a demo or a person at a shell changes and watches the lab."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from .answers import dump
from .faults import Fault, Window

if TYPE_CHECKING:
    from .deepseek import SimulatedDeepSeek
    from .exchange import Exchange, LabRequest

PREFIX: Final = "/__lab__/"


def control(brain: SimulatedDeepSeek, request: LabRequest, exchange: Exchange) -> None:
    """Answer a control request: `POST script`, `GET statistics`, `POST reset`; 400 says what was wrong."""
    match request.method, request.path.partition("?")[0][len(PREFIX) :]:
        case "POST", "script":
            try:
                apply_script(brain, json.loads(request.body))
            except (ValueError, RecursionError) as error:
                _answer(exchange, 400, {"error": str(error)})
            else:
                _answer(exchange, 200, {"ok": True})
        case "GET", "statistics":
            _answer(exchange, 200, brain.statistics())
        case "POST", "reset":
            brain.reset()
            _answer(exchange, 200, {"ok": True})
        case _:
            _answer(exchange, 404, {"error": "known are POST script, GET statistics and POST reset"})


def apply_script(brain: SimulatedDeepSeek, script: object) -> None:
    """Replace what the script names: `next` (faults), `windows`, `settings`. Nothing changes on a ValueError."""
    if not isinstance(script, dict):
        raise ValueError("a script is an object with 'next', 'windows' and 'settings', each of them optional")
    if unknown := script.keys() - {"next", "windows", "settings"}:
        raise ValueError(f"a script has no {sorted(map(str, unknown))[0]!r}; it has next, windows and settings")
    faults, windows, settings = (script.get(name) for name in ("next", "windows", "settings"))
    if settings is not None and not isinstance(settings, dict):
        raise ValueError("settings must be an object")
    brain.set_script(
        next=None if faults is None else [Fault.from_json(item) for item in _list("next", faults)],
        windows=None if windows is None else [Window.from_json(item) for item in _list("windows", windows)],
        settings=settings,
    )


def _list(name: str, data: object) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError(f"{name} must be a list")
    return data


def _answer(exchange: Exchange, status: int, data: object) -> None:
    exchange.reply(status, [("content-type", "application/json")], dump(data))
