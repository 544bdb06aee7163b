"""What tenants have spent today: by all workers, those that died too, and by the gateway before it began anew.

A tenant's money is one for all workers. Each of them counts what its own calls cost. The supervisor asks for that once
a second, tells each what was spent elsewhere, and writes the sums to a file where the settings name one. So a day's
limit is exceeded by calls in flight and by what other workers spent in a second; who is killed takes as little along.

    {"day": 20783, "dollars": {"search": 12.5}}        the file; the day is counted from 1970 on, UTC
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from deepseek_resilient.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("deepseek_resilient.gateway")

DAY = 86_400.0
Spent = tuple[int, dict[str, float]]
"""A day, and US dollars by tenant."""


class Spending:
    """The sums of one gateway. For one event loop; `save` is for any thread.

    Args:
        path: the file; None for none. wall: Unix seconds.

    Raises:
        ConfigError: the file cannot be used, or is none of these.
    """

    def __init__(self, path: str | None, wall: Callable[[], float]) -> None:
        self._path = None if path is None else Path(path).expanduser()
        self._wall = wall
        self._lives = itertools.count(1)
        self._of: dict[int, dict[str, float]] = {}
        self._day = 0
        self._saving = Lock()
        self._complained = False
        self._saved: Spent = self._load()
        self.note(0, self._saved)

    def begin(self) -> int:
        """The number of a process that begins to count."""
        return next(self._lives)

    def note(self, life: int, told: Spent) -> None:
        """What that process has spent by now."""
        day, dollars = told
        if day == self._today():
            self._of[life] = dollars

    def elsewhere(self, life: int) -> Spent:
        """What all others have spent."""
        return self._today(), self._sum(but=life)

    def totals(self) -> dict[str, float]:
        """What everybody has spent."""
        self._today()
        return self._sum()

    def save(self) -> None:
        """Write the sums where they have changed. The log tells once of what cannot be written."""
        path = self._path
        now: Spent = self._day, self._sum()
        if path is None or now == self._saved:
            return
        with self._saving:
            try:
                _write(path, now)
            except OSError as error:
                if not self._complained:
                    log.error("what tenants have spent cannot be kept in %s: %s", path, error.strerror)
                self._complained = True
            else:
                self._saved, self._complained = now, False

    def _today(self) -> int:
        day = int(self._wall() // DAY)
        if day != self._day:
            self._day, self._of = day, {}
        return day

    def _sum(self, but: int | None = None) -> dict[str, float]:
        total: dict[str, float] = {}
        for life, dollars in list(self._of.items()):
            if life != but:
                for name, amount in dollars.items():
                    total[name] = total.get(name, 0.0) + amount
        return total

    def _load(self) -> Spent:
        path = self._path
        if path is None:
            return 0, {}
        try:
            spent = _read(path.read_bytes())
        except FileNotFoundError:
            spent = 0, {}
        except OSError as error:
            raise ConfigError("spent_file", str(path), f"a file that can be read ({error.strerror})") from None
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            allowed = "a file that a gateway wrote, or a new one; this one is left as it is"
            raise ConfigError("spent_file", str(path), allowed) from None
        try:
            _write(path, spent)
        except OSError as error:
            raise ConfigError("spent_file", str(path), f"a file that can be written ({error.strerror})") from None
        return spent


def _read(data: bytes) -> Spent:
    said = json.loads(data)
    dollars = {str(name): float(amount) for name, amount in said["dollars"].items()}
    if not all(0 <= amount < math.inf for amount in dollars.values()):
        raise ValueError("no amounts of money")
    return int(said["day"]), dollars


def _write(path: Path, spent: Spent) -> None:
    """As a whole or not at all, and for its owner only."""
    draft = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"day": spent[0], "dollars": spent[1]}, file)
    draft.replace(path)
