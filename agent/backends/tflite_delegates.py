"""Which delegates a TFLite model gets, from the module's wish or the device's, and what they took.

XNNPACK is LiteRT's own for the CPU, on unless it is not wanted. Others are libraries that the device has installed; one
that does not fit the runtime ends the process in a segmentation fault instead of an exception (google-coral/edgetpu
#812), so each is tried in a process of its own first, before the worker is confined. Called by `tflite` and `choice`.
"""

from __future__ import annotations

import ctypes.util
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agent.backends import BackendError
from agent.backends.place import Place
from agent.backends.wish import Wish
from modules.runtime import CPU, Provider, Stage

XNNPACK, KERNELS, EDGETPU, GPU = "XNNPACK", "CPU", "EdgeTPU", "GPU"
TRIAL_DEADLINE_S = 20.0
# What a device's profile calls them, beside their own names.
_ALSO = {"XnnpackExecutionProvider": XNNPACK, CPU: KERNELS, "EdgeTpuDelegate": EDGETPU, "GpuDelegate": GPU}
_LIBRARIES = {EDGETPU: "libedgetpu.so.1", GPU: "libtensorflowlite_gpu_delegate.so"}
# What a module may say to each delegate, and how the value looks.
_OPTIONS = {
    EDGETPU: {"device": r"(usb|pci)?(:\d{1,2})?"},
    GPU: {"precision_loss_allowed": "0|1", "inference_preference": "[0-2]", "enable_quantized_inference": "0|1"},
}
_TRIAL = "import sys; from importlib import import_module as i; i(sys.argv[1]).load_delegate(sys.argv[2])"
_DELEGATE = "DELEGATE"


class Delegates(Wish, frozen=True):
    """Delegates of LiteRT."""

    @property
    def plain(self) -> bool:
        """Whether only the plain kernels are wanted, without XNNPACK."""
        return self.names == (KERNELS,)

    @property
    def libraries(self) -> tuple[Provider, ...]:
        return tuple(provider for provider in self.asked if provider.name in _LIBRARIES)


def wish(stage: Stage, place: Place) -> Delegates:
    """The module's, or of the device's profile what is a delegate, then XNNPACK and the CPU. Raises BackendError."""
    if not stage.providers:
        known = dict.fromkeys(_ALSO.get(name, name) for name in place.providers)
        asked = [name for name in known if name in _LIBRARIES] + [XNNPACK, KERNELS]
        return Delegates(tuple(map(Provider, asked)), True, "the device's profile")
    asked_for = tuple(msgspec.structs.replace(one, name=_ALSO.get(one.name, one.name)) for one in stage.providers)
    for provider in asked_for:
        _check(provider)
    names = {provider.name for provider in asked_for}
    return Delegates(asked_for, stage.fallback or KERNELS in names, "the module")


def try_libraries(names: Iterable[str], package: str) -> dict[str, str]:
    """Of each delegate that is a library: why it cannot be loaded here, or nothing. Starts processes: to be called
    before the worker is confined.
    """
    return {name: _tried(_LIBRARIES[name], package) for name in names if name in _LIBRARIES}


def installed() -> tuple[str, ...]:
    """The delegates whose libraries this device has. Starts the linker's tools: before confinement."""
    stems = {name: library.removeprefix("lib").partition(".")[0] for name, library in _LIBRARIES.items()}
    return tuple(name for name, stem in stems.items() if ctypes.util.find_library(stem))


def took(before: list[dict[str, Any]], after: list[dict[str, Any]], libraries: tuple[str, ...]) -> dict[str, int]:
    """Nodes by what runs them. `before` is the graph with the libraries' delegates only, `after` with XNNPACK, too.

    A delegate stands in the graph as one node more: its are all nodes between its outputs and its inputs.
    """
    theirs = _delegated(before)
    xnnpack = _delegated(after) - theirs
    total = sum(node["op_name"] != _DELEGATE for node in after)
    counts = {libraries[0] if libraries else KERNELS: len(theirs), XNNPACK: len(xnnpack)}
    counts[KERNELS] = counts.get(KERNELS, 0) + total - len(theirs) - len(xnnpack)
    return {name: count for name, count in counts.items() if count}


def unmet(wanted: Delegates, got: Mapping[str, int], reasons: Mapping[str, str]) -> str:
    """What of the wish was not met, empty where all was or the CPU may take the rest."""
    stray = {name: count for name, count in got.items() if name not in wanted.names}
    if wanted.cpu or not stray:
        return ""
    where = ", ".join(f"{count} nodes run on {name}" for name, count in sorted(stray.items()))
    told = "; ".join([where, *(f"{name}: {why}" for name, why in reasons.items())])
    return (
        f"{wanted.whose} asks for {', '.join(wanted.names)} and allows no other ({told}); set the runtime's fallback, "
        f"or name {KERNELS} last, to allow the CPU"
    )


def _check(provider: Provider) -> None:
    known = (XNNPACK, KERNELS, *_LIBRARIES)
    if provider.name not in known:
        text = f"expected delegates among {', '.join(known)}, got {provider.name[:80]!r}"
        raise BackendError("load-failed", f"the module's providers: {text}")
    allowed = _OPTIONS.get(provider.name, {})
    for name, value in provider.options.items():
        if name not in allowed or not re.fullmatch(allowed[name], value):
            text = f"expected {', '.join(sorted(allowed)) or 'no options'}, got {name[:80]}={value[:80]!r}"
            raise BackendError("load-failed", f"{provider.name}: {text}")


def load(runtime: Any, provider: Provider) -> Any:  # noqa: ANN401 - neither package has types
    """Raises ValueError, OSError."""
    return runtime.load_delegate(_LIBRARIES[provider.name], dict(provider.options))


def _tried(library: str, package: str) -> str:
    try:
        trial = subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL, package, library],
            capture_output=True, text=True, timeout=TRIAL_DEADLINE_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{library} does not answer within {TRIAL_DEADLINE_S:g} s"
    except OSError as error:
        return f"{library} cannot be tried: {error}"
    if trial.returncode < 0:
        return f"{library} does not fit this runtime: it ends in {signal.Signals(-trial.returncode).name}"
    lines = [line for line in trial.stderr.strip().splitlines() if line.strip()]
    return f"{library}: {lines[-1][:200] if lines else 'it failed'}" if trial.returncode else ""


def _delegated(nodes: list[dict[str, Any]]) -> set[int]:
    """The nodes that some delegate runs."""
    made_by = {int(out): node for node in nodes if node["op_name"] != _DELEGATE for out in node["outputs"]}
    found: set[int] = set()
    for delegate in (node for node in nodes if node["op_name"] == _DELEGATE):
        border = set(map(int, delegate["inputs"]))
        open_ends = [int(tensor) for tensor in delegate["outputs"]]
        while open_ends:
            node = made_by.get(open_ends.pop())
            if node is not None and node["index"] not in found:
                found.add(node["index"])
                open_ends += [int(tensor) for tensor in node["inputs"] if int(tensor) not in border]
    return found
