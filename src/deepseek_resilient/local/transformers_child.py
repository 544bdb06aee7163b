"""The child that hosts `transformers serve`, with what it lacks: a key, a bound on threads, 8 bits on a CPU.

Run by path, so that it needs nothing of this package: `python -P transformers_child.py --model FOLDER ...`. The server
is transformers' own (`transformers.cli.serve.Serve`): its app is wrapped on its way to uvicorn in a check of the key,
which comes by the environment, where `ps` does not show it. Without `--int8` weights keep their type; with it they are
bitsandbytes' on a GPU, and torch's dynamic quantisation of the linear layers on a CPU.
"""

from __future__ import annotations

import argparse
import hmac
import importlib
import json
import os
import sys
from typing import Any

BLOCK, BATCH = 64, 512
KEY = "DEEPSEEK_RESILIENT_LOCAL_KEY"


class KeyCheck:
    """An ASGI app around another: 401 in OpenAI's format for whoever does not have the key."""

    def __init__(self, app: Any, key: str) -> None:
        self._app = app
        self._expected = b"Bearer " + key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or hmac.compare_digest(
            dict(scope["headers"]).get(b"authorization", b""), self._expected
        ):
            await self._app(scope, receive, send)
            return
        error = {"message": "Invalid API key", "type": "authentication_error", "param": None, "code": "invalid_api_key"}
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})


def main() -> None:
    """Load the model and serve it."""
    line = argparse.ArgumentParser(description=__doc__)
    line.add_argument("--model", required=True)
    line.add_argument("--host", default="127.0.0.1")
    line.add_argument("--port", type=int, required=True)
    line.add_argument("--threads", type=int)
    line.add_argument("--context", type=int, default=8192)
    line.add_argument("--parallel", type=int, default=1)
    line.add_argument("--int8", action="store_true")
    options = line.parse_args()
    key = os.environ.pop(KEY, "")

    torch: Any = importlib.import_module("torch")
    uvicorn: Any = importlib.import_module("uvicorn")
    serve: Any = importlib.import_module("transformers.cli.serve")

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    gpu = torch.cuda.is_available()
    if options.int8 and not gpu:
        _quantise_on_load(torch)
    wrapped: list[KeyCheck] = []

    class Config(uvicorn.Config):  # type: ignore[misc]
        def __init__(self, app: Any, **settings: Any) -> None:
            wrapped.append(KeyCheck(app, key))
            super().__init__(wrapped[-1], **settings)

    class Server(uvicorn.Server):  # type: ignore[misc]
        def run(self, sockets: Any = None) -> None:
            if not wrapped:
                sys.exit("this version of transformers starts its server in another way: its key cannot be checked")
            super().run(sockets)

    uvicorn.Config, uvicorn.Server = Config, Server
    blocks = -(-options.context // BLOCK) * options.parallel + 1  # else it takes a share of all memory there is
    serve.Serve(
        force_model=options.model, host=options.host, port=options.port, continuous_batching=options.parallel > 1,
        cb_block_size=BLOCK, cb_num_blocks=blocks, cb_max_batch_tokens=BATCH,
        quantization="bnb-8bit" if options.int8 and gpu else None,
    )  # fmt: skip


def _quantise_on_load(torch: Any) -> None:
    if not hasattr(getattr(torch, "ao", None), "quantization"):
        sys.exit("this version of torch has no dynamic quantisation: leave int8 off, or install torch 2.13")
    manager: Any = importlib.import_module("transformers.cli.serving.model_manager").ModelManager
    load = manager._load_model

    def load_in_8_bits(self: Any, *arguments: Any, **named: Any) -> Any:
        model = load(self, *arguments, **named)
        model = model.float()  # it quantises weights of 32 bits only, and most models have 16
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)

    manager._load_model = load_in_8_bits


if __name__ == "__main__":
    main()
