"""How a module that is built shall run: what the request says, and what is found among the files where it says nothing.

Pure; called by `building.model_module`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cloud_hub.building.contents import ENTRY_PATH
from cloud_hub.errors import Unprocessable
from modules.manifest import Runtime


def model_path(sources: Mapping[str, Path]) -> str:
    found = [path for path in sources if path.endswith(".onnx")]
    if len(found) != 1:
        raise Unprocessable("model-missing", f"expected exactly one .onnx file in the model, got {sorted(sources)}")
    return found[0]


def runtime(sources: Mapping[str, Path], has_entry: bool) -> Runtime:
    if has_entry:
        model = next((path for path in sorted(sources) if path.endswith(".onnx")), "")
        return Runtime(backend="script", model=model, entry=ENTRY_PATH)
    return Runtime(backend="onnx", model=model_path(sources))
