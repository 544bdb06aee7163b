"""The child that hosts llama.cpp: xllamacpp's server with a key, on loopback, until it is told to end.

Run by path, so that it needs nothing of this package: `python -P llamacpp_child.py --model FILE ...`. The key comes by
the environment, where `ps` does not show it. What llama.cpp says goes to standard error; a model that cannot be loaded
ends the child with status 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from typing import Any

KEY = "DEEPSEEK_RESILIENT_LOCAL_KEY"
PROMPT_CACHE_MIB = 256
BATCH = 128
"""Tokens of a prompt that processors read in one go: between two llama.cpp sees that a caller is gone. A GPU keeps
llama.cpp's own 2048: it reads them fast, and fewer might cost it speed (not measured)."""


def main() -> int:
    """Load the model, serve it, wait for a signal."""
    line = argparse.ArgumentParser(description=__doc__)
    line.add_argument("--model", required=True)
    line.add_argument("--name", required=True)
    line.add_argument("--host", default="127.0.0.1")
    line.add_argument("--port", type=int, default=0)
    line.add_argument("--context", type=int, default=8192)
    line.add_argument("--parallel", type=int, default=1)
    line.add_argument("--threads", type=int)
    options = line.parse_args()
    key = os.environ.pop(KEY, "")

    xllamacpp: Any = importlib.import_module("xllamacpp")
    wanted = xllamacpp.CommonParams()
    wanted.model.path = options.model
    wanted.model_alias = {options.name}
    wanted.hostnames = [options.host]
    wanted.port = options.port
    wanted.reuse_port = False  # else a second server would share the port in silence
    wanted.api_keys = [key] if key else []
    wanted.n_ctx = options.context * options.parallel  # all slots together
    wanted.n_parallel = options.parallel
    wanted.kv_unified = False
    wanted.cache_ram_mib = PROMPT_CACHE_MIB  # 8 GiB unless told otherwise
    wanted.use_jinja = True
    wanted.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_DEEPSEEK
    if all(device["name"] == "CPU" for device in xllamacpp.get_device_info()):
        wanted.n_batch = wanted.n_ubatch = BATCH
    wanted.warmup = False  # the owner asks for a token before it says that we are ready
    wanted.ui = False
    if options.threads is not None:
        wanted.cpuparams.n_threads = options.threads
        wanted.cpuparams_batch.n_threads = options.threads
    try:
        server = xllamacpp.Server(wanted)
    except RuntimeError as error:  # llama.cpp has said above what is wrong
        print(f"llama.cpp did not start: {error}", file=sys.stderr, flush=True)
        return 1
    print(f"listening on {server.listening_address}", file=sys.stderr, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
