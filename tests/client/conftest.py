"""The worker's own fixtures, and modules that are quick to build."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.manifest import Manifest, Runtime
from modules.tensors import TensorSpec
from worker.conftest import digits, digits_module, reference, worker
from worker.driver import write_module

__all__ = ["digits", "digits_module", "echo_module", "reference", "worker"]

# Says what it was given, and how long it is to take: the waits of the tests are the module's.
ECHO = b"""
import os, time

def init():
    pass

def predict(inputs):
    rows = inputs["x"]
    word = inputs["word"][0].decode()
    if word.startswith("wait "):
        time.sleep(float(word[5:]))
    if word == "die":
        os._exit(3)
    return {"twice": rows * 2, "said": [item + b"!" for item in inputs["word"]]}
"""


@pytest.fixture
def echo_module(tmp_path: Path) -> Manifest:
    return make_echo(tmp_path / "slot")


def make_echo(slot: Path, **fields: object) -> Manifest:
    return write_module(
        slot, {"entry.py": ECHO}, inputs=(TensorSpec("x", "FP32", (-1, 2)), TensorSpec("word", "BYTES", (-1,))),
        outputs=(TensorSpec("twice", "FP32", (-1, 2)), TensorSpec("said", "BYTES", (-1,))),
        runtime=Runtime(backend="script", model="", entry="entry.py"), **fields,
    )  # fmt: skip
