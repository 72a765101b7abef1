"""What is asked of the process that looks at a model, and what it says. Pure values."""

from __future__ import annotations

import msgspec

from modules.tensors import TensorSpec


class ProbeRequest(msgspec.Struct, frozen=True):
    """What the child reads: paths of local files, empty where there is none, and labels by tensor name.

    Without a model (entry scripts), `inputs` and `outputs` are as declared and the answers stand in the files.
    """

    model: str
    training: str
    golden: str
    output_folder: str
    labels: dict[str, tuple[str, ...]] = {}
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class ProbeResult(msgspec.Struct, frozen=True):
    """What the model takes and gives. `golden` and `reference` say whether those files were written, `plain` whether
    every agent can read the reference.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: bool
    reference: bool
    golden_cases: int = 0
    reference_rows: int = 0
    plain: bool = True
