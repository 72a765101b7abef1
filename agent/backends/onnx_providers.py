"""Which execution providers a stage gets, in which order, with which options, and why one is missing. No ONNX Runtime.

The module's own list is its wish, else the device profile's. A node that no provider of the list takes makes loading
fail, unless the stage allows a fallback; the CPU is the last resort only where the list or the stage says so. Options
are an allow-list: none names a path or a library, so that a manifest cannot reach beyond its module's folders.
Called by `onnx_session`.
Source: onnxruntime.ai/docs/execution-providers (the names of options).
"""

from __future__ import annotations

import re

from agent.backends import BackendError
from agent.backends.place import Place
from agent.backends.wish import Wish
from modules.runtime import CPU, Provider, Stage

_FLAG, _NUMBER, _BYTES = r"0|1|true|false|True|False", r"\d{1,9}", r"\d{1,15}"
_WORD, _SHAPES = r"[A-Za-z][A-Za-z0-9_]{0,63}", r"[A-Za-z0-9_.,:x/-]{1,500}"
_CUDA = {
    "device_id": _NUMBER, "gpu_mem_limit": _BYTES, "arena_extend_strategy": "kNextPowerOfTwo|kSameAsRequested",
    "cudnn_conv_algo_search": "EXHAUSTIVE|HEURISTIC|DEFAULT", "cudnn_conv_use_max_workspace": _FLAG,
    "cudnn_conv1d_pad_to_nc1d": _FLAG, "do_copy_in_default_stream": _FLAG, "enable_skip_layer_norm_strict_mode": _FLAG,
    "use_tf32": _FLAG, "prefer_nhwc": _FLAG, "use_ep_level_unified_stream": _FLAG, "tunable_op_enable": _FLAG,
    "fuse_conv_bias": _FLAG, "sdpa_kernel": _NUMBER,
}  # fmt: skip
_TENSORRT = {
    "device_id": _NUMBER, "trt_max_workspace_size": _BYTES, "trt_max_partition_iterations": _NUMBER,
    "trt_min_subgraph_size": _NUMBER, "trt_fp16_enable": _FLAG, "trt_bf16_enable": _FLAG, "trt_int8_enable": _FLAG,
    "trt_dla_enable": _FLAG, "trt_dla_core": _NUMBER, "trt_builder_optimization_level": _NUMBER,
    "trt_sparsity_enable": _FLAG, "trt_auxiliary_streams": _NUMBER, "trt_build_heuristics_enable": _FLAG,
    "trt_context_memory_sharing_enable": _FLAG, "trt_layer_norm_fp32_fallback": _FLAG,
    "trt_force_sequential_engine_build": _FLAG, "trt_profile_min_shapes": _SHAPES, "trt_profile_max_shapes": _SHAPES,
    "trt_profile_opt_shapes": _SHAPES,
}  # fmt: skip
_OPENVINO = {
    "device_type": r"(AUTO|HETERO|MULTI):[A-Z0-9.,]{1,60}|(CPU|NPU|AUTO)|GPU(\.\d)?", "precision": "FP32|FP16|ACCURACY",
    "num_of_threads": _NUMBER, "num_streams": _NUMBER, "enable_opencl_throttling": _FLAG,
    "enable_qdq_optimizer": _FLAG, "disable_dynamic_shapes": _FLAG, "model_priority": "LOW|MEDIUM|HIGH|DEFAULT",
}  # fmt: skip
_QNN = {
    "backend_type": "cpu|gpu|htp", "device_id": _NUMBER, "htp_performance_mode": _WORD, "soc_model": _NUMBER,
    "htp_graph_finalization_optimization_mode": "[0-3]", "qnn_context_priority": _WORD, "htp_arch": _NUMBER,
    "enable_htp_fp16_precision": _FLAG, "offload_graph_io_quantization": _FLAG, "vtcm_mb": _NUMBER,
    "rpc_control_latency": _NUMBER,
}  # fmt: skip
# What a module may say to each provider, and how the value looks.
OPTIONS: dict[str, dict[str, str]] = {
    CPU: {"use_arena": _FLAG},
    "CUDAExecutionProvider": _CUDA,
    "TensorrtExecutionProvider": _TENSORRT,
    "OpenVINOExecutionProvider": _OPENVINO,
    "QNNExecutionProvider": _QNN,
    "VitisAIExecutionProvider": {"target": _WORD, "log_level": _WORD},
    "XnnpackExecutionProvider": {"intra_op_num_threads": _NUMBER},
    "CoreMLExecutionProvider": {
        "ModelFormat": "MLProgram|NeuralNetwork", "MLComputeUnits": _WORD, "RequireStaticInputShapes": _FLAG,
        "EnableOnSubgraphs": _FLAG,
    },
}  # fmt: skip
# Of VitisAI: a file of the module, by its path there.
_MODULE_FILES = {"VitisAIExecutionProvider": ("config_file",)}
# Which options say where to keep what was compiled, and which switch that on.
_KEPT_AT = {
    "TensorrtExecutionProvider": ("trt_engine_cache_path", "trt_timing_cache_path"),
    "OpenVINOExecutionProvider": ("cache_dir",),
    "VitisAIExecutionProvider": ("cache_dir",),
    "CoreMLExecutionProvider": ("ModelCacheDirectory",),
}
_KEPT_SWITCH = {"TensorrtExecutionProvider": ("trt_engine_cache_enable", "trt_timing_cache_enable")}
_SUFFIX = "ExecutionProvider"
_SAME_AS_REQUESTED = "kSameAsRequested"  # else the arena doubles, past any cap


class Providers(Wish, frozen=True):
    """Execution providers."""

    def given(self, missing: frozenset[str]) -> tuple[Provider, ...]:
        """Those to hand to the runtime: without what it does not have, with the CPU last where that is allowed."""
        there = tuple(provider for provider in self.asked if provider.name not in missing)
        return (*there, Provider(CPU)) if self.cpu and CPU not in self.names else there


def wish(stage: Stage, place: Place) -> Providers:
    """The module's, or what of the device's profile is a provider (the rest is other runtimes'), else the CPU."""
    if stage.providers:
        named = any(provider.name == CPU for provider in stage.providers)
        return Providers(stage.providers, stage.fallback or named, "the module")
    names = tuple(name for name in place.providers if name.endswith(_SUFFIX)) or (CPU,)
    return Providers(tuple(map(Provider, names)), stage.fallback or CPU in names, "the device's profile")


def options(provider: Provider, stage: Stage, place: Place) -> dict[str, str]:
    """The module's options, checked, and ours: memory cap, threads, where to keep what is compiled.

    Raises BackendError("load-failed").
    """
    given = dict(provider.options)
    for name in _MODULE_FILES.get(provider.name, ()):
        if name in given:
            given[name] = _module_file(provider, name, given[name], place)
    _check(provider, given)
    return _capped(provider.name, given, place) | _kept(provider.name, stage, place)


def _module_file(provider: Provider, name: str, value: str, place: Place) -> str:
    if value not in place.signed:
        text = f"expected the path of a file of the module, got {value[:200]!r}"
        raise BackendError("load-failed", f"{provider.name}, option {name}: {text}")
    return str(place.slot / value)


def _check(provider: Provider, given: dict[str, str]) -> None:
    allowed = OPTIONS.get(provider.name, {})
    for name, value in given.items():
        if name in _MODULE_FILES.get(provider.name, ()):
            continue
        where = f"{provider.name}, option {name[:80]}"
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise BackendError("load-failed", f"{where}: it is not one that a module may set; those are {known}")
        if not re.fullmatch(allowed[name], value):
            raise BackendError("load-failed", f"{where}: expected {allowed[name]}, got {value[:80]!r}")


def _capped(name: str, given: dict[str, str], place: Place) -> dict[str, str]:
    """With the device's bounds, which a module may lower and not raise."""
    cap = place.gpu_memory_mib * 2**20
    if cap and name == "CUDAExecutionProvider":
        limit = min(cap, int(given.get("gpu_mem_limit", cap)))
        return given | {"gpu_mem_limit": str(limit), "arena_extend_strategy": _SAME_AS_REQUESTED}
    if cap and name == "TensorrtExecutionProvider":
        limit = min(cap, int(given.get("trt_max_workspace_size", cap)))
        return given | {"trt_max_workspace_size": str(limit)}
    threads = {"OpenVINOExecutionProvider": "num_of_threads", "XnnpackExecutionProvider": "intra_op_num_threads"}
    if name == "QNNExecutionProvider":
        return {"backend_type": "htp"} | given  # the NPU; without a word the plug-in fails
    if name in threads:
        return {threads[name]: str(place.threads)} | given
    return given


def _kept(name: str, stage: Stage, place: Place) -> dict[str, str]:
    """Where the provider keeps what it compiles: building a TensorRT engine takes minutes. Nowhere without a folder."""
    if place.cache is None or name not in _KEPT_AT:
        return {}
    folder = place.cache / name.removesuffix(_SUFFIX).lower()
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return {}
    kept = dict.fromkeys(_KEPT_AT[name], str(folder)) | dict.fromkeys(_KEPT_SWITCH.get(name, ()), "1")
    return kept | {"cache_key": re.sub(r"\W", "_", stage.model)} if name == "VitisAIExecutionProvider" else kept
