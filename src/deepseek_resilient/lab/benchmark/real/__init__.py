"""The storm lab over real HTTP: the same scenarios and callers, real clients, processes and clocks.

One run is a process with the scenario's servers (`server`) and processes with its clients (`runner`), which `run`
starts, hears and ends; a `Record` comes of it as from virtual time. `contenders` says which client is made by what:
each module of `clients` is an adapter of a few lines. The runner and the adapters of other people's libraries import
nothing of this package, so that they work under an interpreter that has only those libraries.
"""
