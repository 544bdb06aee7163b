"""Everything that decides, written once and free of clock, socket and thread.

What may enter: pure state machines and plain `async`/`await` that awaits `Effect`s only (`effects.py`).
What may not: `time`, `random`, `asyncio`, `threading`, `socket`, or any HTTP library; `tests/unit/test_house.py` and
the linter's banned-api list hold this.
"""
