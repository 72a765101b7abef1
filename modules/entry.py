"""The contract of an entry script: the Python file that a module runs in place of, or around, its model.

A script defines `init()`, called once, and one of two forms of answering:

    def run(data: str) -> object                    # the form of Azure ML: JSON text in, JSON-serialisable out
    def predict(inputs: dict) -> dict               # arrays by input name in, arrays by output name out
    def predict(x: np.ndarray) -> np.ndarray        # the same, each input a parameter of its name

`AZUREML_MODEL_DIR` in the environment is the folder of the module's files, `MOORING_CONFIG` the JSON object that the
assignment gives this device's module (`{}` when it gives none); both are there before the import. The text given to
`run` is an object with one nested list per input under its name and, when there is one input, the same list under
"data". What `run` returns is an object with one entry per output or, when there is one output, its value alone; JSON
text is read as JSON.

Pure: names and shapes only. The worker calls scripts (`agent.backends.script`), the hub checks their source when it
builds a module.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from modules.errors import MALFORMED, ModuleError

MODEL_DIR = "AZUREML_MODEL_DIR"
CONFIG = "MOORING_CONFIG"
INIT, RUN, PREDICT = "init", "run", "predict"
THREAD_SAFE = "THREAD_SAFE"  # a script that sets it to True may be called by several threads at once
ONLY_INPUT = "data"
MAX_SOURCE = 4 * 1024 * 1024


class EntryError(ModuleError):
    """The script, or what it returned, is not of the contract's form."""

    key = "entry-invalid"


def check_source(source: str, path: str) -> None:
    """Whether the text is Python and defines `init` and `run` or `predict`. Raises EntryError. Runs nothing."""
    body = _parsed(source, path)
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    imported = {alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
    check_names(defined | imported, path)


def says_thread_safe(source: str, path: str) -> bool:
    """Whether the text sets THREAD_SAFE = True for the whole file. Raises EntryError. Runs nothing."""
    return any(
        isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == THREAD_SAFE for target in node.targets)
        and isinstance(node.value, ast.Constant)
        and node.value.value is True
        for node in _parsed(source, path)
    )


def _parsed(source: str, path: str) -> list[ast.stmt]:
    """Deep nesting ends the parser's memory or its stack of calls, both as an exception."""
    if len(source) > MAX_SOURCE:
        raise EntryError(f"{path}: expected at most {MAX_SOURCE} characters, got {len(source)}")
    try:
        return ast.parse(source, path).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise EntryError(f"{path}: expected Python, got {str(error) or type(error).__name__}") from error


def check_names(names: set[str], path: str) -> None:
    """Raises EntryError when the functions of the contract are missing."""
    if INIT not in names or not names & {RUN, PREDICT}:
        found = ", ".join(sorted(names & {INIT, RUN, PREDICT})) or "none of them"
        raise EntryError(f"{path}: expected functions init and run (or predict), got {found}")


def typed_parameters(predict: Callable[..., object], inputs: Sequence[str], path: str) -> bool:
    """Whether `predict` takes each input as a parameter: they are annotated as arrays. Raises EntryError when they are
    and their names are not the inputs'.
    """
    parameters = list(inspect.signature(predict).parameters.values())
    if not parameters or not all("ndarray" in str(p.annotation).lower() for p in parameters):
        return False
    names = [parameter.name for parameter in parameters]
    if set(names) != set(inputs):
        raise EntryError(f"{path}: expected predict({', '.join(inputs)}), got predict({', '.join(names)})")
    return True


def run_text(inputs: Mapping[str, Sequence[Any]]) -> str:
    """The text for `run`, from nested lists by input name."""
    whole: dict[str, Any] = dict(inputs)
    if len(inputs) == 1:
        whole.setdefault(ONLY_INPUT, next(iter(inputs.values())))
    return msgspec.json.encode(whole).decode()


def run_result(result: object, outputs: Sequence[str]) -> dict[str, Any]:
    """Values by output name, from what `run` or `predict` returned. Raises EntryError."""
    if isinstance(result, str | bytes):
        try:
            result = msgspec.json.decode(result)
        except MALFORMED as error:
            raise EntryError(f"entry script: expected JSON text, got {error}") from error
    if isinstance(result, Mapping) and set(outputs) <= set(result):
        return {name: result[name] for name in outputs}
    if len(outputs) == 1 and not isinstance(result, Mapping):
        return {outputs[0]: result}
    got = ", ".join(map(str, result))[:200] if isinstance(result, Mapping) else type(result).__name__
    raise EntryError(f"entry script: expected {', '.join(outputs)}, got {got}")
