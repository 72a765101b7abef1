"""Opens a session on the providers that were wished for, and finds out what it really runs on.

ONNX Runtime takes the CPU in silence when a provider is missing or cannot load; so the strict switch is set where the
CPU is not allowed, and what counts afterwards is the runtime's own record of which node went where: a list of providers
proves nothing. Called by `onnx`, in the worker.
Source: microsoft/onnxruntime#17801, #23647; onnxruntime.ai, plug-in execution providers.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import TypeAlias

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: the runtime reads it once
import onnxruntime as ort

from agent.backends import BackendError
from agent.backends.onnx_cache import Optimised, find
from agent.backends.onnx_providers import Providers, options, wish
from agent.backends.place import Place
from modules.execution import StageExecution
from modules.runtime import CPU, Provider, Stage

_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "bad allocation", "CUDA out of memory", "out of memory")
_QUIET = 3  # errors only: what matters comes back as an exception
_FATAL = 4
# The library that each provider of the runtime's own packages loads, and the packages that bring one as a plug-in.
_LIBRARIES = {
    "CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt", "OpenVINOExecutionProvider": "openvino",
    "VitisAIExecutionProvider": "vitisai", "QNNExecutionProvider": "qnn", "MIGraphXExecutionProvider": "migraphx",
}  # fmt: skip
_PLUGINS = {"QNNExecutionProvider": "onnxruntime_qnn"}
_CUDA = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})


Settings: TypeAlias = list[tuple[Provider, dict[str, str]]]


class Opened:
    """A session and what is known of where it runs."""

    def __init__(self, session: ort.InferenceSession, execution: StageExecution) -> None:
        self.session = session
        self.execution = execution

    @property
    def on_cpu(self) -> bool:
        """Whether every node runs there, as far as the runtime tells."""
        return set(self.execution.got or self.execution.asked) <= {CPU}


def open_session(stage: Stage, place: Place) -> Opened:
    """Raises BackendError: load-failed, also where a wish is not met; out-of-memory."""
    wanted = wish(stage, place)
    path = place.slot / stage.model
    missing = {name: why for name in wanted.names if (why := _not_there(name))}
    given = wanted.given(frozenset(missing))
    if not given:
        raise _unmet(stage, wanted, missing)
    settings = [(provider, options(provider, stage, place)) for provider in given]
    session = _optimised(path, stage, place) if wanted.names == (CPU,) else None
    session = session or _first_that_opens(path, settings, place.threads, stage, wanted, missing)
    got = _assigned(session)
    reasons = _reasons(wanted, missing, session, got)
    if not wanted.cpu and CPU in got:
        raise _unmet(stage, wanted, missing | {"the session": f"{got[CPU]} nodes run on {CPU}"})
    return Opened(session, StageExecution("onnx", wanted.names, got, "; ".join(reasons)))


def session_options(threads: int, strict: bool = False) -> ort.SessionOptions:
    """For devices whose cores others need, too; measured in the field notes: the memory arena stays on."""
    made = ort.SessionOptions()
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    made.log_severity_level = _FATAL if strict else _QUIET  # a wish that is not met is told once, by us
    # Spinning threads take the core that the application needs, and lose time once somebody else has it.
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    made.add_session_config_entry("session.inter_op.allow_spinning", "0")
    made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if strict:
        made.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return made


def run_options(on_cpu: bool) -> ort.RunOptions:
    """What can end one thread's run. A run that fails tells it by its exception, not in the log as well."""
    options = ort.RunOptions()
    options.log_severity_level = _FATAL
    if on_cpu:  # the runtime asks for this entry at each bound run; where it is absent, that costs more than the run
        options.add_run_config_entry("gpu_graph_id", "-1")
    return options


def _first_that_opens(
    path: Path, settings: Settings, threads: int, stage: Stage, wanted: Providers, missing: dict[str, str]
) -> ort.InferenceSession:
    """A session on what is left of the list once those are out that do not start here: they go to `missing`.

    Raises BackendError.
    """
    while True:
        names = [provider.name for provider, _ in settings]
        try:
            return _session(path, settings, threads, strict=CPU not in names)
        except Exception as error:  # every exception of the runtime's binding is its own, unrelated class
            broken = {name: why for name in names if (why := _library(name))}
            if not broken and CPU in names:
                broken = {name: first_line(error) for name in names if name != CPU}
            missing |= broken
            left = [one for one in settings if one[0].name not in broken]
            if not (broken and left):
                if CPU not in names and (broken or "assigned to the default CPU EP" in str(error)):
                    raise _unmet(stage, wanted, missing) from error
                raise load_error(stage, error) from error
            settings = left


def _session(path: Path, settings: Settings, threads: int, strict: bool) -> ort.InferenceSession:
    """Raises the runtime's own exceptions."""
    made = session_options(threads, strict)
    names = {provider.name for provider, _ in settings}
    if _CUDA & names:
        _preload()
    if not any(_devices(name) for name in names & set(_PLUGINS)):
        listed = [(provider.name, given) for provider, given in settings]
        return ort.InferenceSession(str(path), made, providers=listed, enable_fallback=0)
    for provider, given in settings:
        _add(made, provider.name, given)
    return ort.InferenceSession(str(path), made, enable_fallback=0)


def _optimised(path: Path, stage: Stage, place: Place) -> ort.InferenceSession | None:
    """A session on this device's optimised copy of the model, made now where there is none; None without a cache."""
    kept = find(place, stage, path, ort.__version__)
    if kept is None:
        return None
    session = _from_copy(kept, place.threads)
    if session is None and kept.has_room():
        session = _with_copy(kept, path, place.threads)
    return session


def _from_copy(kept: Optimised, threads: int) -> ort.InferenceSession | None:
    """None where the copy is not there or damaged: it is gone then."""
    checking = kept.open()
    if checking is None:
        return None
    session = None
    with contextlib.suppress(Exception):  # a damaged copy may make the runtime raise anything
        session = ort.InferenceSession(str(kept.model), session_options(threads), providers=[CPU], enable_fallback=0)
    if checking.is_whole() and session is not None:
        return session
    kept.drop()
    return None


def _with_copy(kept: Optimised, path: Path, threads: int) -> ort.InferenceSession | None:
    """Loads the model itself and has the runtime write the copy; None where that failed: the model is to blame, or the
    disk, and loading without tells which.
    """
    made = session_options(threads)
    made.log_severity_level = _FATAL
    try:
        with kept.writing(made):
            return ort.InferenceSession(str(path), made, providers=[CPU], enable_fallback=0)
    except Exception:  # the runtime's own, and OSError: what went wrong is asked again, without the copy
        return None


def _not_there(name: str) -> str:
    """Why this installation has no such provider; empty when it has."""
    if name in ort.get_available_providers():
        return ""
    if name not in _PLUGINS:
        return f"this ONNX Runtime ({ort.__version__}, {ort.get_device()}) was built without it"
    try:
        return _register(name)
    except ImportError:
        return f"this ONNX Runtime ({ort.__version__}) was built without it, and {_PLUGINS[name]} is not installed"


def _register(name: str) -> str:
    """Registers the plug-in of an installed package, never a library that a module names. Why not, or nothing."""
    if _devices(name):
        return ""
    library = importlib.import_module(_PLUGINS[name]).get_library_path()
    try:
        ort.register_execution_provider_library(name, library)
    except Exception as error:
        return f"its library does not load: {first_line(error)}"
    return "" if _devices(name) else f"{Path(library).name} finds no device here"


def _devices(name: str) -> list[ort.OrtEpDevice]:
    """What a plug-in says that it can use; which proves no more than a list of providers does."""
    return [device for device in ort.get_ep_devices() if device.ep_name == name]


def _add(made: ort.SessionOptions, name: str, given: dict[str, str]) -> None:
    devices = _devices(name) if name in _PLUGINS else []
    if devices:
        made.add_provider_for_devices(devices[:1], given)
    elif name != CPU:  # which the runtime adds by itself, last
        made.add_provider(name, given)


def _preload() -> None:
    """Finds CUDA's libraries where they were installed as Python packages."""
    with contextlib.suppress(Exception), contextlib.redirect_stdout(None):
        ort.preload_dlls()


def _assigned(session: ort.InferenceSession) -> dict[str, int]:
    """Nodes by provider, empty where this version does not tell."""
    nodes: Counter[str] = Counter()
    try:
        for part in session.get_provider_graph_assignment_info():
            nodes[part.ep_name] += len(part.get_nodes())
    except (AttributeError, RuntimeError):
        return {}
    return dict(nodes)


def _reasons(
    wanted: Providers, missing: dict[str, str], session: ort.InferenceSession, got: dict[str, int]
) -> list[str]:
    """What kept each wish from being met, and what proves too little."""
    known = set(session.get_providers())
    reasons = [f"{name}: {why}" for name, why in missing.items()]
    for name in wanted.names:
        if name in missing or name == CPU:
            continue
        if name not in known:
            reasons.append(f"{name}: {_library(name) or 'it did not start'}")
        elif got and name not in got:
            reasons.append(f"{name}: it took no node of this model")
    if not got:
        reasons.append("this runtime gives no evidence per node")
    return reasons


def _library(name: str) -> str:
    """Which library a provider misses, in the linker's words; empty when its own can be loaded."""
    word = _LIBRARIES.get(name)
    path = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{word}.so"
    if word is None or not path.is_file():
        return ""
    try:
        ctypes.CDLL(str(path), os.RTLD_LAZY | os.RTLD_LOCAL)
    except OSError as error:
        return f"its library does not load: {str(error)[:200]}"
    return ""


def _unmet(stage: Stage, wanted: Providers, reasons: dict[str, str]) -> BackendError:
    told = "; ".join(f"{name}: {why}" for name, why in reasons.items()) or "they do not take every node of this model"
    return BackendError(
        "load-failed",
        f"{stage.model}: {wanted.whose} asks for {', '.join(wanted.names)} and allows no other, and not every node "
        f"would run there ({told}); set the runtime's fallback, or name {CPU} last, to allow the CPU",
    )


def load_error(stage: Stage, error: Exception) -> BackendError:
    key = "out-of-memory" if is_memory(error) else "load-failed"
    return BackendError(key, f"{stage.model}: {first_line(error)}")


def is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error) for word in _NO_MEMORY)


def first_line(error: Exception) -> str:
    """Without the colours and prefixes of a log."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0][:500]
