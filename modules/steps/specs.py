"""What every step's check needs: its error, the tensor that it reads, and how large what it gives may be. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from modules.errors import ModuleError
from modules.tensors import ITEM_SIZE, TensorSpec

Specs = Mapping[str, TensorSpec]
NUMBERS = tuple(ITEM_SIZE)
REAL = ("FP16", "FP32", "FP64")
FREE = -1
MAX_SIDE = 16_384  # pixels, of an image's side
TEXT_BYTES = 64  # what an element of BYTES is counted as


class StepError(ModuleError):
    """A step does not fit the tensors it is done to, or would make one that is too large."""

    key = "step-invalid"


def read(step: str, have: Specs, name: str, datatypes: tuple[str, ...] = NUMBERS, rank: int = 0) -> TensorSpec:
    """The tensor `name`, of one of these datatypes and with `rank` dimensions (0: any). Raises StepError."""
    spec = have.get(name)
    if spec is None:
        raise StepError(f"step {step}: expected one of {', '.join(have) or 'no tensors'}, got {name!r}")
    if spec.datatype not in datatypes:
        raise StepError(f"step {step}: expected {name} as {' or '.join(datatypes)}, got {spec.datatype}")
    if rank and len(spec.shape) != rank:
        raise StepError(f"step {step}: expected {name} with {rank} dimensions, got {list(spec.shape)}")
    return spec


def made(name: str, datatype: str, shape: tuple[int, ...], labels: tuple[str, ...] = ()) -> TensorSpec:
    return TensorSpec(name, datatype, shape, labels)


def axis_of(step: str, spec: TensorSpec, axis: int) -> int:
    """Counted from the front. Raises StepError."""
    if not -len(spec.shape) <= axis < len(spec.shape):
        raise StepError(f"step {step}: expected an axis of {list(spec.shape)}, got {axis}")
    return axis % len(spec.shape)


def require(step: str, condition: bool, text: str) -> None:
    if not condition:
        raise StepError(f"step {step}: {text}")


def row_bytes(spec: TensorSpec) -> int:
    """Bytes of one row of the batch; sizes that are free otherwise count as 1."""
    sizes = spec.shape[1:] if spec.shape[:1] == (FREE,) else spec.shape
    return math.prod(map(abs, sizes)) * ITEM_SIZE.get(spec.datatype, TEXT_BYTES)


def agree(want: TensorSpec, have: TensorSpec) -> bool:
    """Whether `have` can be given where `want` is asked for; free sizes are looked at when it runs."""
    return (
        want.datatype == have.datatype
        and len(want.shape) == len(have.shape)
        and all(FREE in (a, b) or a == b for a, b in zip(want.shape, have.shape, strict=True))
    )


def in_words(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"
