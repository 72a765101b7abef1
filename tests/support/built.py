"""Real modules for the agent's tests: a classifier trained on iris, converted to ONNX, with golden answers.

What the hub's packaging makes, in a few lines, so that tests of the device need no hub. `build` gives a good module;
`build_script` one whose entry script does what a test tells it to.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from agent.slots import Slot, Slots
from firmware_profiles.profile import Requirements
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Health, Lineage, Manifest, Runtime, SamplingPolicy, encode_manifest
from modules.tensors import GoldenCase, GoldenSet, Tensor, TensorSpec, encode_golden

PROFILE = "generic-x86_64"
CHUNK = 256  # small, so that even a small model has many
QUICK = Health(golden="golden.msgpack", load_deadline_s=30.0, probation_s=0.3, probation_deadline_s=30.0)
INPUTS = (TensorSpec("X", "FP32", (-1, 4)),)
ANYTHING = Requirements()
OUTPUTS = (TensorSpec("label", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 3)))


@dataclass(frozen=True)
class Built:
    """A module as it is shipped."""

    manifest: Manifest
    manifest_bytes: bytes
    files: Mapping[str, bytes]

    @property
    def sha256(self) -> str:
        return sha256_hex(self.manifest_bytes)

    @property
    def blobs(self) -> dict[str, bytes]:
        """Everything a device may ask for, by digest: manifest, files, and what the files are cut into."""
        return {sha256_hex(data): data for data in (self.manifest_bytes, *self.files.values())}


@functools.cache
def iris(seed: int) -> bytes:
    """An MLP 4-64-3 as ONNX; another seed is another model."""
    features, labels = load_iris(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = MLPClassifier((64,), max_iter=60, random_state=seed).fit(features.astype(np.float32), labels)
    converted = to_onnx(model, features[:1].astype(np.float32), options={id(model): {"zipmap": False}})
    data: bytes = converted.SerializeToString()
    return data


def rows(count: int = 3) -> np.ndarray:
    features: np.ndarray = load_iris(return_X_y=True)[0][:count].astype(np.float32)
    return features


def golden(model: bytes, spoil: bool = False) -> bytes:
    inputs = rows()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"X": inputs})
    if spoil:
        probabilities = 1.0 - probabilities
    return encode_golden(
        GoldenSet(
            (
                GoldenCase(
                    (Tensor("X", "FP32", inputs.shape, inputs.tobytes()),),
                    (
                        Tensor("label", "INT64", label.shape, label.tobytes()),
                        Tensor(
                            "probabilities", "FP32", probabilities.shape, probabilities.astype(np.float32).tobytes()
                        ),
                    ),
                ),
            )
        )
    )


def entry(path: str, data: bytes) -> FileEntry:
    parts = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
    chunks = tuple(Chunk(sha256_hex(part), len(part)) for part in parts)
    return FileEntry(path, len(data), sha256_hex(data), chunks)


def assemble(name: str, version: int, files: Mapping[str, bytes], runtime: Runtime, **fields: object) -> Built:
    manifest = Manifest(
        name=name,
        version=version,
        profile=PROFILE,
        lineage=Lineage(name, version),
        inputs=INPUTS,
        outputs=OUTPUTS,
        files=tuple(entry(path, data) for path, data in files.items()),
        runtime=runtime,
        sampling=SamplingPolicy(rate=0.0, window_s=3600.0),
        **fields,  # type: ignore[arg-type]
    )
    return Built(manifest, encode_manifest(manifest), dict(files))


def build(
    name: str = "iris",
    version: int = 1,
    *,
    spoil_golden: bool = False,
    health: Health = QUICK,
    requires: Requirements = ANYTHING,
) -> Built:
    """A module of the ONNX backend; every version is a model of its own."""
    model = iris(version)
    files = {"model.onnx": model, "golden.msgpack": golden(model, spoil_golden)}
    return assemble(name, version, files, Runtime(), health=health, requires=requires)


def build_script(source: str, name: str = "iris", version: int = 1, health: Health = QUICK) -> Built:
    """A module whose answers come from `source`. It has no golden answers."""
    health = msgspec.structs.replace(health, golden="")
    runtime = Runtime(backend="script", model="score.py", entry="score.py")
    return assemble(name, version, {"score.py": source.encode()}, runtime, health=health)


def install(slots: Slots, module: Built, staging: Path) -> Slot:
    """Puts a module into its slot, as a finished update would."""
    staging.mkdir(parents=True, exist_ok=True)
    for data in module.files.values():
        (staging / sha256_hex(data)).write_bytes(data)
    return slots.make(module.manifest_bytes, module.manifest, lambda file: staging / file.sha256)
