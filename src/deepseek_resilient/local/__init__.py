"""A local model: what hardware is here, which model fits it, how its files are had, and the server that runs it.

What may enter: whatever concerns a model on this machine. What may not: what an upstream is, or when a call goes to the
local one (that is the core's), and any import of torch, vLLM, llama.cpp or NVML at the head of a module. An engine runs
in a process of its own; NVML is looked up when `hardware.detect` is called.

Nothing here opens a connection to the outside but `pull`, and that only runs where a person or a program asks for it.
"""
