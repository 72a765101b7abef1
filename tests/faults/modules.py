"""The modules that are updated while the power is cut: scripts with a table, so that a worker starts quickly.

What a module answers says which version it is, so that a right answer can be told from one of another version's table.
"""

from __future__ import annotations

import msgspec
import numpy as np

from modules.manifest import Health, Runtime, SamplingPolicy, encode_manifest
from modules.tensors import GoldenCase, GoldenSet, Tensor, encode_golden
from support.built import Built, assemble

NAMES = ("iris", "plum")
HEALTH = Health(golden="golden.msgpack", load_deadline_s=30.0, probation_s=0.05, probation_deadline_s=30.0)
SAMPLING = SamplingPolicy(rate=1.0, window_s=0.2)
FACTOR = 1_000_000
_ROWS = 400  # bytes of the table; some chunks of a file
_SCRIPT = b"""\
import os
import pathlib

def init():
    global table
    table = pathlib.Path(os.environ["AZUREML_MODEL_DIR"], "table.bin").read_bytes()

def predict(inputs):
    rows = inputs["X"]
    return {"label": [table[0] * %d + int(row[0]) for row in rows], "probabilities": [[1, 0, 0] for _ in rows]}
"""


def label(version: int, value: int) -> int:
    """What a module of this version answers to a row that begins with `value`."""
    return version * FACTOR + value


def make(name: str, version: int) -> Built:
    """A module that has golden answers, a file of its own, and a script that it shares with every other version."""
    table = bytes([version]) + (name.encode() + bytes([version])) * (_ROWS // (len(name) + 1))
    files = {"score.py": _SCRIPT % FACTOR, "table.bin": table, "golden.msgpack": _golden(version)}
    runtime = Runtime(backend="script", model="score.py", entry="score.py")
    built = assemble(name, version, files, runtime, health=HEALTH)
    manifest = msgspec.structs.replace(built.manifest, sampling=SAMPLING)
    return Built(manifest, encode_manifest(manifest), built.files)


def _golden(version: int) -> bytes:
    inputs = np.full((1, 4), 7, np.float32)
    answers = np.array([label(version, 7)], np.int64), np.array([[1, 0, 0]], np.float32)
    case = GoldenCase(
        (Tensor("X", "FP32", inputs.shape, inputs.tobytes()),),
        (
            Tensor("label", "INT64", answers[0].shape, answers[0].tobytes()),
            Tensor("probabilities", "FP32", answers[1].shape, answers[1].tobytes()),
        ),
    )
    return encode_golden(GoldenSet((case,)))
