"""How the tensors of a module reach its stages and its outputs: the check of a whole runtime, and the wiring.

Pure. The hub's build calls `check_runtime` before anything is signed, the worker again before it loads; both get the
same words. Names are read as in a program: a name means the tensor that was written last under it, by the module's
inputs, the steps before, or a stage; `stage.output` means that stage's own. Stages run in the order in which they
stand.
"""

from __future__ import annotations

from collections.abc import Sequence

from modules.runtime import Runtime, Stage
from modules.sources import check_sources
from modules.steps import flow
from modules.steps.specs import Specs, StepError, agree, in_words
from modules.tensors import TensorSpec

DEFAULT_MIB = 1024  # where the module names no limit of memory
SHARE = 4  # no single tensor of a step may take more than one of so many parts of the memory

Tensors = tuple[TensorSpec, ...]
Wiring = tuple[tuple[str, str], ...]  # (the stage's input, the tensor that it is)


def largest_bytes(memory_mib: int) -> int:
    """Of a tensor that a step makes, in a module with this limit (0: none)."""
    return (memory_mib or DEFAULT_MIB) * 1024 * 1024 // SHARE


def check_runtime(
    runtime: Runtime, stages: Sequence[Stage], inputs: Tensors, outputs: Tensors, memory_mib: int
) -> None:
    """Whether sources, steps and stages fit together and give the outputs. Raises StepError, SourceError.

    `stages` are the manifest's, which makes one where the runtime names none.
    """
    limit = largest_bytes(memory_mib)
    check_sources(runtime.sources, inputs, runtime.answers_by_script)
    tensors: Specs = flow(runtime.before, {spec.name: spec for spec in inputs}, limit)
    tensors = after_stages(stages, tensors)
    tensors = flow(runtime.after, tensors, limit)
    for want in outputs:
        have = tensors.get(want.name)
        if have is None:
            raise StepError(f"output {want.name}: expected one of {', '.join(tensors)}")
        if not agree(want, have):
            raise StepError(f"output {want.name}: expected {in_words(want)}, got {in_words(have)}")


def after_stages(stages: Sequence[Stage], have: Specs) -> dict[str, TensorSpec]:
    """The tensors once all stages have run, by name and by `stage.output`. Raises StepError."""
    tensors = dict(have)
    for number, stage in enumerate(stages):
        if not stage.name or ("." in stage.name and len(stages) > 1):
            raise StepError(f"stage {number + 1}: expected a name without a point, got {stage.name[:80]!r}")
        later = {other.name: other for other in stages[number:]}
        for name, source in wiring(stage):
            want = next(spec for spec in stage.inputs if spec.name == name)
            given = tensors.get(source)
            if given is None:
                raise StepError(_unknown(stage, name, source, tensors, later))
            if not agree(want, given):
                where = f"stage {stage.name}, input {name}"
                raise StepError(f"{where}: expected {in_words(want)}, got {source} as {in_words(given)}")
        for spec in stage.outputs:
            tensors[spec.name] = tensors[f"{stage.name}.{spec.name}"] = spec
    return tensors


def wiring(stage: Stage) -> Wiring:
    """Which tensor each input of the stage is. Raises StepError for a feed of what is no input."""
    names = [spec.name for spec in stage.inputs]
    for name in stage.feeds:
        if name not in names:
            raise StepError(f"stage {stage.name}: expected feeds of {', '.join(names)}, got {name!r}")
    return tuple((name, stage.feeds.get(name, name)) for name in names)


def _unknown(stage: Stage, name: str, source: str, tensors: Specs, later: dict[str, Stage]) -> str:
    where = f"stage {stage.name}, input {name}"
    other = source.partition(".")[0]
    if other == stage.name:
        return f"{where}: expected a tensor from before, got its own output {source}: that is a cycle"
    if other in later:
        needs = {fed.partition(".")[0] for _, fed in wiring(later[other])}
        why = "that is a cycle" if stage.name in needs else f"put {other} before {stage.name}"
        return f"{where}: expected a tensor from before, got {source} of a later stage: {why}"
    return f"{where}: expected one of {', '.join(tensors)}, got {source!r}"
