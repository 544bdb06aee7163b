"""What tenants have spent today: by all workers, those that died too, and by the gateway before it began anew.

A tenant's money is one for all workers. Each of them counts what its own calls cost; once a second it is told what was
spent elsewhere, and tells what was spent there. The sums are written to a file where the settings name one. So what one
worker spends, the others know two seconds later, and who is killed takes along what was spent in the last second.

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
    from collections.abc import Callable, Iterable

log = logging.getLogger("deepseek_resilient.gateway")

DAY = 86_400.0
Spent = tuple[int, dict[str, float]]
"""A day, and US dollars by tenant."""
_ENDED = 0
"""The life that has what was spent by processes that are no more."""


class Spending:
    """The sums of one gateway. For one event loop; `save` is for any thread.

    Args:
        path: the file; None for none. wall: Unix seconds.

    Raises:
        ConfigError: the file cannot be used, or is none of these.
    """

    def __init__(self, path: str | None, wall: Callable[[], float]) -> None:
        self._path = None if path is None else Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111 -- raises
        self._wall = wall
        self._lives = itertools.count(_ENDED + 1)
        self._book: tuple[int, dict[int, dict[str, float]]] = (0, {})
        self._saving = Lock()
        self._complained = False
        self._saved: Spent = self._load()
        self.note(_ENDED, self._saved)

    def begin(self) -> int:
        """The number of a process that begins to count."""
        return next(self._lives)

    def note(self, life: int, told: Spent) -> None:
        """What that process has spent by now."""
        day, dollars = told
        today, lives = self._today()
        if day == today:
            lives[life] = dollars

    def end(self, life: int) -> None:
        """That process tells no more."""
        _, lives = self._today()
        lives[_ENDED] = _sum((lives.get(_ENDED, {}), lives.pop(life, {})))

    def elsewhere(self, life: int) -> Spent:
        """What all others have spent."""
        today, lives = self._today()
        return today, _sum(dollars for each, dollars in lives.items() if each != life)

    def totals(self) -> dict[str, float]:
        """What everybody has spent."""
        return _sum(self._today()[1].values())

    def save(self) -> None:
        """Write the sums where they have changed. The log tells once of what cannot be written."""
        if self._path is None:
            return
        with self._saving:
            day, lives = self._book
            now = day, _sum([*lives.values()])
            if now == self._saved:
                return
            try:
                _write(self._path, now)
            except OSError as error:
                if not self._complained:
                    log.error("what tenants have spent cannot be kept in %s: %s", self._path, error.strerror)
                self._complained = True
            else:
                self._saved, self._complained = now, False

    def _today(self) -> tuple[int, dict[int, dict[str, float]]]:
        today = int(self._wall() // DAY)
        if today != self._book[0]:
            self._book = today, {}
        return self._book

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
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            allowed = "a file that a gateway wrote, or a new one; this one is left as it is"
            raise ConfigError("spent_file", str(path), allowed) from None
        try:
            _write(path, spent)
        except OSError as error:
            raise ConfigError("spent_file", str(path), f"a file that can be written ({error.strerror})") from None
        return spent


def _sum(lives: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for dollars in lives:
        for name, amount in dollars.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _read(data: bytes) -> Spent:
    said = json.loads(data)
    dollars = {str(name): float(amount) for name, amount in said["dollars"].items()}
    if not all(0 <= amount < math.inf for amount in dollars.values()):
        raise ValueError("no amounts of money")
    return int(said["day"]), dollars


def _write(path: Path, spent: Spent) -> None:
    """As a whole or not at all, and for its owner only."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"day": spent[0], "dollars": spent[1]}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
