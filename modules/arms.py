"""Who gets the candidate: the place of a key in an experiment. Pure; the same on the hub (devices) and on the device
(requests).

A key (a prediction's id, a word that the caller gives, a device's id) has a place in [0, 1) that depends on the
experiment's salt alone, and belongs to the candidate while that is below the share. So a share that grows keeps
everybody who was in it, and another salt draws anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from modules.errors import TargetError
from modules.manifest import Manifest
from modules.tensors import TensorSpec, served

MAX_SALT = 64
_WHOLE = 2.0**64


def place(key: str, salt: str) -> float:
    """In [0, 1), as if drawn, the same wherever it is computed."""
    said = hashlib.blake2b(f"{key}\0arm\0{salt}".encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(said.digest(), "big") / _WHOLE


def chosen(key: str, salt: str, share: float) -> bool:
    """Whether the key belongs to the candidate."""
    return share >= 1.0 or (share > 0.0 and place(key, salt) < share)


def check_share(share: float, salt: str) -> None:
    """Raises TargetError."""
    if not 0.0 <= share <= 1.0:  # NaN, too
        raise TargetError(f"share: expected 0 to 1, got {share}")
    if len(salt) > MAX_SALT:
        raise TargetError(f"salt: expected at most {MAX_SALT} characters, got {len(salt)}")


def why_not_beside(main: Manifest, candidate: Manifest) -> str:
    """What keeps the candidate from running beside the version that serves; empty where nothing does.

    It is fed with that version's inputs, and may answer in its place: so tensors are the same. What can be there once
    only is that version's.
    """
    for manifest in (main, candidate):
        container = manifest.runtime.container
        if manifest.runtime.kind == "agent" or (container is not None and container.serves == "http"):
            return f"version {manifest.version}: expected a module that a worker runs, got an image that serves itself"
    if any(stage.backend == "fpga" for stage in candidate.stages):
        return "expected no FPGA, which has room for one circuit"
    inputs, outputs = _shapes(candidate.inputs), _shapes(candidate.outputs)
    if inputs != _shapes(main.inputs):
        return f"inputs: expected {_words(main.inputs)}, got {_words(candidate.inputs)}"
    if not _shapes(served(main.outputs)) <= outputs:
        return f"outputs: expected {_words(served(main.outputs))}, got {_words(candidate.outputs)}"
    return ""


def _shapes(specs: Sequence[TensorSpec]) -> frozenset[tuple[str, str, tuple[int, ...]]]:
    return frozenset((spec.name, spec.datatype, spec.shape) for spec in specs)


def _words(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs) or "none"
