"""target.py: when a local model can be hoped for, who is told, and which one is chosen."""

import dataclasses
import gc

import pytest

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local import hardware
from deepseek_resilient.local.catalog import choose
from deepseek_resilient.local.target import LocalModel, find

from .conftest import policy
from .watching import eventually


def test_closing_is_hopeless_from_its_beginning(models, llamacpp):
    """Who waits is told at once; a call in flight ends."""
    model = LocalModel(policy(models / "tiny.gguf"))
    model.wait_ready(60)
    lease = model.try_acquire()
    assert (True, False) == (model.ready, model.hopeless)
    model.end_soon()
    assert (False, True, None) == (model.ready, model.hopeless, model.try_acquire())
    assert model.listen().rung
    lease.release()
    model.close()


def test_a_listener_that_fails_keeps_nobody_waiting(models, llamacpp):
    """The bell rings all the same; one that nobody holds is forgotten."""

    def broken(event):
        raise RuntimeError("trouble")

    model = LocalModel(policy(models / "tiny.gguf"), listener=broken)
    try:
        bell = model.listen()
        model.listen()
        gc.collect()
        assert 1 == len(model._bells)
        model.wake()
        assert eventually(lambda: bell.rung and model.ready, 60)
    finally:
        model.close()


def test_one_that_is_here_comes_first(tmp_path, monkeypatch):
    """Of several that fit; only where none is here one is named that can be had."""
    monkeypatch.setenv("DEEPSEEK_RESILIENT_MODELS", str(tmp_path))
    here = dataclasses.replace(hardware.detect(), available=5 * 10**9, cores=8, gpus=())
    small = choose(here, tokens=512).model
    rich = dataclasses.replace(here, available=64 * 10**9)
    monkeypatch.setattr(hardware, "detect", lambda: rich)
    with pytest.raises(LocalModelError, match="nothing is fetched unasked"):
        find(policy(None, engine="llamacpp"))
    (tmp_path / small.files[0]).write_bytes(b"GGUF" + bytes(100))
    assert str(tmp_path / small.files[0]) == find(policy(None, engine="llamacpp"))
    with pytest.raises(LocalModelError, match="the catalog has no model for the engine transformers"):
        find(policy(None, engine="transformers"))
