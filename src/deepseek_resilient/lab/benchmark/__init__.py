"""The storm lab: named scenarios, the clients that go through them, and what is measured, in virtual time.

`scenarios` are data; `contenders` are the clients; `world.run` makes a `Record` of one of them in one scenario, the
same for the same seed; `measures` has the definitions; `runs` and `worker` spread the work over processes, `results`
keeps what is done, and `tables` shows it.
"""
