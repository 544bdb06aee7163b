"""A library under test as the storm lab may meet it: it prints, it starts a process, its interpreter is a script."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LIBRARY = """
import os, subprocess, sys
import openai

print('{"calls"')
os.write(1, b"\\xff a banner ")
subprocess.Popen([sys.executable, "-c", "print('ready'); import time; time.sleep(60)"])

class Router:
    def __init__(self, model_list, timeout):
        print("made", sys.stdin.readline())
        server = model_list[0]["litellm_params"]["api_base"]
        self._client = openai.AsyncOpenAI(api_key="sk-lab", base_url=server, timeout=timeout)

    async def acompletion(self, model, messages, **options):
        print("asked", flush=True)
        if TROUBLE and messages[0]["content"] != "warm up":
            raise LookupError("not even an API error")
        return await self._client.chat.completions.create(model=model, messages=messages, **options)
"""


def launcher(folder: Path, *, trouble: bool = False) -> str:
    """A script around our interpreter, which finds there such a library by the name of LiteLLM; with `trouble` it
    fails in a way that its adapter does not know."""
    (folder / "litellm.py").write_text(f"TROUBLE = {trouble}\n{LIBRARY}")
    path = folder / "python"
    command = f'PYTHONPATH={folder}:$PYTHONPATH "{sys.executable}" "$@"'
    path.write_text(f"#!/bin/sh\necho activated\nprintf 'and no end of the line '\n{command}\nexit $?\n")
    path.chmod(0o755)
    return str(path)
