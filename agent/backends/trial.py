"""One question about one backend, answered in a process of its own: `python -m agent.backends.trial QUESTION...`.

    onnx                the version, and the providers that the installed package was built with
    onnx PROVIDER       a tiny model, loaded and run strictly on that provider: what the record of its nodes says
    tflite [LIBRARY]    the package that makes interpreters here; with a library, whether it loads as a delegate
    import NAME         a package and its version

The answer is the last line; a complaint is a line on standard error and status 1. Started by `agent.doctor_backends`: a
library that does not fit may end the process.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# y = relu(x + x), float32 [1, 8]: nothing that a provider could refuse, nothing that an optimiser takes away.
_MODEL = (
    "080712003a510a110a01780a01781201741a016122034164640a0f0a01741201791a0172220452656c751201745a130a0178120e0a0c080112"
    "080a0208010a02080862130a0179120e0a0c080112080a0208010a02080842040a00100d"
)


def onnx(provider: str = "") -> str:
    """Raises BackendError, and what the import raises."""
    from agent.backends.onnx import OnnxBackend
    from agent.backends.place import Place
    from modules.runtime import Provider, Stage
    from modules.tensors import TensorSpec

    if not provider:
        runtime = importlib.import_module("onnxruntime")
        return f"{runtime.__version__} {' '.join(runtime.get_available_providers())}"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").write_bytes(bytes.fromhex(_MODEL))
        x, y = TensorSpec("x", "FP32", (1, 8)), TensorSpec("y", "FP32", (1, 8))
        stage = Stage("trial", (x,), (y,), model="model.onnx", providers=(Provider(provider),))
        backend = OnnxBackend()
        backend.load(stage, Place(Path(folder), frozenset({"model.onnx"})))
        numpy = importlib.import_module("numpy")
        answer = backend.run({"x": numpy.full((1, 8), 2, numpy.float32)})["y"]
        if not (answer == 4).all():
            raise ValueError(f"expected 4, got {answer.ravel()[0]}")
        return "; ".join(map(str, backend.execution()))


def tflite(library: str = "") -> str:
    """Raises BackendError."""
    from agent.backends.tflite_runtime import open_runtime

    runtime = open_runtime()
    if library:
        runtime.load_delegate(library)
        return f"{library} loads"
    package = runtime.__name__.partition(".")[0]
    return f"{package} {importlib.metadata.version(package.replace('_', '-'))}"


def imported(name: str) -> str:
    importlib.import_module(name)
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name


def main(question: str, *arguments: str) -> int:
    answers: dict[str, Callable[..., str]] = {"onnx": onnx, "tflite": tflite, "import": imported}
    try:
        sys.stdout.write(answers[question](*arguments) + "\n")
    except Exception as error:  # whatever a library raises is the answer
        sys.stderr.write(" ".join(f"{type(error).__name__}: {error}".split())[:500] + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
