"""The lab: a simulated DeepSeek, over real HTTP and in virtual time, that can do to a client what the real one does.

`LabProcess` runs it as a child process; `SimulatedDeepSeek` is its model without a socket, for any `Scheduler`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capacity import Capacity, CapacitySettings
    from .deepseek import SimulatedDeepSeek
    from .exchange import Exchange, LabRequest, RecordingExchange
    from .faults import Fault, FaultScript, Window
    from .process import LabProcess, LabProcessError
    from .settings import LabSettings

_HOMES = {
    "Capacity": "capacity",
    "CapacitySettings": "capacity",
    "SimulatedDeepSeek": "deepseek",
    "Exchange": "exchange",
    "LabRequest": "exchange",
    "RecordingExchange": "exchange",
    "Fault": "faults",
    "FaultScript": "faults",
    "Window": "faults",
    "LabProcess": "process",
    "LabProcessError": "process",
    "LabSettings": "settings",
}

__all__ = [  # noqa: RUF022 -- in the order of their homes
    "Capacity",
    "CapacitySettings",
    "SimulatedDeepSeek",
    "Exchange",
    "LabRequest",
    "RecordingExchange",
    "Fault",
    "FaultScript",
    "Window",
    "LabProcess",
    "LabProcessError",
    "LabSettings",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
