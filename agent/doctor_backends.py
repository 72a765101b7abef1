"""What `mooring-agent doctor` says of the backends: what each would use here, tried for real, and why not the rest.

A library is asked in a short-lived process, as a worker would load it: one that does not fit ends that, not us.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from agent.checks import Check, asked
from agent.probe.accelerators import accelerators
from agent.probe.tree import THIS, Tree
from modules.runtime import CPU

if TYPE_CHECKING:
    from agent.config import AgentConfig

_TRIAL = ("-m", "agent.backends.trial")
ENGINE_TIMEOUT_S = 5.0
_UNIX = "unix://"
# What an accelerator is for: the providers to try where it is there, and what brings one that the package lacks.
_PROVIDERS = {
    "cuda": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "openvino": ("OpenVINOExecutionProvider",),
    "qnn": ("QNNExecutionProvider",),
    "fpga": ("VitisAIExecutionProvider",),
}
_PACKAGES = {
    "TensorrtExecutionProvider": "install onnxruntime-gpu in the place of onnxruntime, and TensorRT",
    "CUDAExecutionProvider": "install onnxruntime-gpu in the place of onnxruntime",
    "OpenVINOExecutionProvider": "install onnxruntime-openvino in the place of onnxruntime",
    "QNNExecutionProvider": "install onnxruntime-qnn beside onnxruntime",
    "VitisAIExecutionProvider": "only AMD's own builds of ONNX Runtime have it",
}
_DELEGATE = "libedgetpu.so.1"


async def backends(config: AgentConfig | None, tree: Tree = THIS) -> list[Check]:
    """`config` is None on a device that is not enrolled: then nothing is wished for but what is found."""
    wished = config.profile.providers if config is not None else ()
    engine = config.containers.engine if config is not None else f"{_UNIX}/var/run/docker.sock"
    kinds = {accelerator.kind for accelerator in accelerators(tree)}
    found = await asyncio.to_thread(lambda: [*_onnx(wished, kinds), *_tflite(kinds), fpga(tree), _script()])
    return [*found, await containers(engine)]


def _onnx(wished: tuple[str, ...], kinds: set[str]) -> Iterator[Check]:
    """The chain in its order; what the profile wishes for and does not get is a warning."""
    there, said = asked((*_TRIAL, "onnx"))
    if not there:
        yield Check("backend onnx", "warn", f"would not work: {said}", "install onnxruntime")
        return
    version, *built_in = said.split()
    fitting = [name for kind, names in _PROVIDERS.items() if kind in kinds for name in names]
    chain = list(dict.fromkeys([*wished, *fitting, CPU]))
    results = {name: _provider(name, built_in) for name in chain}
    used = [name for name in chain if results[name].result == "ok"]
    yield Check(
        "backend onnx", "ok" if used else "warn", f"ONNX Runtime {version} would use {', '.join(used) or 'nothing'}"
    )
    yield from (results[name] for name in chain if results[name].result != "ok")


def _provider(name: str, built_in: list[str]) -> Check:
    title, hint = "backend onnx", _PACKAGES.get(name, "")
    works, said = asked((*_TRIAL, "onnx", name))
    if works:
        return Check(title, "ok", said)
    if name not in built_in:
        return Check(title, "warn", f"not {name}: the installed package has none ({said})", hint)
    return Check(title, "warn", f"not {name}: {said}", "see what it complains of; its libraries must fit the package")


def _tflite(kinds: set[str]) -> Iterator[Check]:
    works, said = asked((*_TRIAL, "tflite"))
    if not works:
        yield Check("backend tflite", "warn", f"would not work: {said}", "install ai-edge-litert")
        return
    yield Check("backend tflite", "ok", f"{said} would use XNNPACK on the CPU")
    if "edgetpu" in kinds:
        works, said = asked((*_TRIAL, "tflite", _DELEGATE))
        hint = "" if works else "install a libedgetpu that was built for this version of the runtime"
        yield Check("backend tflite", "ok" if works else "warn", said if works else f"not the Edge TPU: {said}", hint)


def fpga(tree: Tree) -> Check:
    managers = tree.names("sys/class/fpga_manager")
    if not managers:
        return Check(
            "backend fpga", "ok", "no FPGA here: an emulation answers where the module or this device allows it"
        )
    states = ", ".join(f"{name} {tree.text(f'sys/class/fpga_manager/{name}/state')}" for name in managers)
    if any(tree.has(f"dev/{name}") for name in tree.names("dev") if name.startswith("udmabuf")):
        return Check("backend fpga", "ok", f"{states}; data goes through u-dma-buf")
    works, said = asked((*_TRIAL, "import", "pynq"))
    if works:
        return Check("backend fpga", "ok", f"{states}; data goes through {said}")
    return Check("backend fpga", "warn", f"{states}; nothing moves data: {said}", "load u-dma-buf, or install pynq")


def _script() -> Check:
    works, said = asked((*_TRIAL, "import", "numpy"))
    python = ".".join(map(str, sys.version_info[:3]))
    if not works:
        return Check("backend script", "warn", f"would not work: {said}", "install numpy")
    return Check("backend script", "ok", f"Python {python}, {said}")


async def containers(engine: str) -> Check:
    """Whether there is an engine and it answers; that the SDK is there comes first."""
    title = "containers"
    if not engine:
        return Check(title, "ok", "none on this device: containers.engine is empty")
    works, said = await asyncio.to_thread(asked, (*_TRIAL, "import", "docker"))
    if not works:
        return Check(
            title, "ok", f"none on this device: {said}", "to run modules in containers, install docker (the SDK)"
        )
    if not engine.startswith(_UNIX):
        return Check(title, "ok", f"{engine} (asked when a module needs it)")
    try:
        async with asyncio.timeout(ENGINE_TIMEOUT_S):
            return Check(title, "ok", f"{engine}: API {await _version(engine.removeprefix(_UNIX))}")
    except FileNotFoundError:
        return Check(title, "ok", f"none on this device: no engine at {engine}", "to run them, install an engine")
    except (TimeoutError, OSError, ValueError) as error:
        why = str(error) or f"no answer within {ENGINE_TIMEOUT_S:g} s"
        return Check(title, "warn", f"{engine}: {why}", "is the engine running, and may this user use it?")


async def _version(path: str) -> str:
    """Of the engine's interface, as its answer to a ping says. Raises OSError and ValueError."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(b"HEAD /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
        head = (await reader.read(4096)).decode("latin-1")
    finally:
        writer.close()
    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    version = {name.lower(): value for name, value in lines.items()}.get("api-version")
    if version is None:
        raise ValueError(f"expected a container engine, got {head[:60]!r}")
    return version
