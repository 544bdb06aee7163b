"""Drivers run the core's coroutines: they answer its effects by blocking, by awaiting, or in virtual time.

A driver throws what happened, cancellation too, into the coroutine and always closes it, so that every `finally` of the
core runs. It refuses anything awaited that is no effect. Drivers decide nothing.
"""
