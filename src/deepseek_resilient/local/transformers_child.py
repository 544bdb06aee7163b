"""The child that hosts `transformers serve`, with what it lacks: a key, a bound on threads, 8 bits on a CPU.

Run by path, so that it needs nothing of this package: `python -P transformers_child.py --model FOLDER ...`. The server
is transformers' own (`transformers.cli.serve.Serve`): its app is wrapped on its way to uvicorn in a check of the key,
which comes by the environment, where `ps` does not show it. Without `--int8` weights keep their type; with it they are
bitsandbytes' on a GPU. On a CPU the weights of linear layers have 8 bits, with a scale for each row, and all else is
bfloat16: torch's dynamic quantisation has 8 bits for activations too, whose outliers leave too little of the rest
(T. Dettmers et al., "LLM.int8()", 2022).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hmac
import importlib
import json
import os
import sys
from typing import Any

BLOCK, BATCH = 64, 512
_PACK = 32
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
    manager: Any = importlib.import_module("transformers.cli.serving.model_manager").ModelManager
    load = manager._load_model

    def load_in_8_bits(self: Any, *arguments: Any, **named: Any) -> Any:
        return quantised(torch, load(self, *arguments, **named))

    manager._load_model = load_in_8_bits


def quantised(torch: Any, model: Any) -> Any:
    """The model in bfloat16, the weights of its linear layers in 8 bits."""
    layer = _eight_bit_layer(torch)
    model = model.to(torch.bfloat16)
    for module in list(model.modules()):
        for name, inner in list(module.named_children()):
            if type(inner) is torch.nn.Linear:
                setattr(module, name, layer(inner))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # one that lies in the mapped file keeps all of it in memory
    with contextlib.suppress(AttributeError, OSError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
    return model


def _eight_bit_layer(torch: Any) -> Any:
    multiply: Any = getattr(torch, "_weight_int8pack_mm", None)

    class EightBitLinear(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, whole: Any) -> None:
            super().__init__()
            weight = whole.weight.detach().float()
            scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
            self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
            self.register_buffer("scale", scale.to(torch.bfloat16))
            self.bias = whole.bias
            # the kernel reads beyond the end of other shapes; without it weights are unpacked for each call: slower
            self.packed = multiply is not None and not any(length % _PACK for length in weight.shape)

        def forward(self, given: Any) -> Any:
            rows = given.to(torch.bfloat16).reshape(-1, given.shape[-1])
            if self.packed:
                found = multiply(rows, self.weight, self.scale)
            else:
                found = (rows @ self.weight.to(rows.dtype).T) * self.scale
            found = found if self.bias is None else found + self.bias
            return found.reshape(*given.shape[:-1], -1)

    return EightBitLinear


if __name__ == "__main__":
    main()
