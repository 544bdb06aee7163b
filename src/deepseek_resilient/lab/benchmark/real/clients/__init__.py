"""The adapters: how each library is used, with the defaults that its documents name.

Each module has `make(around, **options)`, which gives a client: `await ask(text, headers, tenant)` is one call and true
where a whole answer came, `await close()` lets go of its connections. `around` says `front` (the address for who does
not choose a server), `servers`, `attempt_timeout`, `patience` (after that the caller is gone) and `stream`.
"""
