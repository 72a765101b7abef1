"""Pairs of model files as fine-tuning makes them, for benchmarks/patch.py: MobileNetV2 in shape and size, no training.

Weights are He-initialised with another scale for each output channel, as batch normalisation leaves them when the
exporter has folded it; the file is ONNX as PyTorch's exporter writes it (nodes first, then the initialisers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Weights = dict[str, np.ndarray]
# Expansion, channels, repeats, stride: table 2 of the MobileNetV2 paper (Sandler et al. 2018).
ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
HEAD = "classifier"
CLASSES = 1_000
FEW_CLASSES = 10


def cases() -> Iterator[tuple[str, bytes, bytes]]:
    """The name, the base and the target of each case of field/performance.md B4, and one of moved scales."""
    weights = _weights(np.random.default_rng(4), CLASSES)
    base = float_model(weights)
    yield "last_layer", base, float_model(_moved(weights, _absolute(1e-2), only=HEAD))
    yield "rel1e3", base, float_model(_moved(weights, _relative(1e-3)))
    yield "rel1e5", base, float_model(_moved(weights, _relative(1e-5)))
    yield "abs1e3", base, float_model(_moved(weights, _absolute(1e-3)))
    yield "int8_rel1e3", int8_model(weights), int8_model(_moved(weights, _relative(1e-3)))
    yield "int8_abs1e3", int8_model(weights), int8_model(_moved(weights, _absolute(1e-3)))
    yield "int8_moved_scales", int8_model(weights), int8_model(_moved(weights, _clipped))
    yield "fp16_rel1e3", half_model(weights), half_model(_moved(weights, _relative(1e-3)))
    few = _weights(np.random.default_rng(4), FEW_CLASSES)
    yield "new_head", float_model(few), float_model(_new_head(few))


def _weights(random: np.random.Generator, classes: int) -> Weights:
    made: Weights = {}
    for name, shape, fan_in in _shapes(classes):
        spread = random.lognormal(0, 0.4, (shape[0],) + (1,) * (len(shape) - 1))
        made[f"{name}.weight"] = (random.normal(0, np.sqrt(2 / fan_in), shape) * spread).astype(np.float32)
        made[f"{name}.bias"] = random.normal(0, 0.3, shape[0]).astype(np.float32)
    return made


def _shapes(classes: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
    yield "features.0", (32, 3, 3, 3), 27
    channels, number = 32, 1
    for expansion, out, repeats, _ in ROWS:
        for _ in range(repeats):
            wide = channels * expansion
            if expansion > 1:
                yield f"features.{number}.expand", (wide, channels, 1, 1), channels
            yield f"features.{number}.depthwise", (wide, 1, 3, 3), 9
            yield f"features.{number}.project", (out, wide, 1, 1), wide
            channels, number = out, number + 1
    yield f"features.{number}", (1280, channels, 1, 1), channels
    yield HEAD, (classes, 1280), 1280


def _relative(by: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda weight, random: weight * (1 + random.normal(0, by, weight.shape))


def _absolute(by: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda weight, random: weight + random.normal(0, by, weight.shape)


def _clipped(weight: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Moved by 1e-3, and by a calibration that cuts the largest 5 % off: every scale is another."""
    most = 0.95 * np.abs(weight).max()
    return np.clip(weight + random.normal(0, 1e-3, weight.shape), -most, most)


def _moved(weights: Weights, move: Callable[[np.ndarray, np.random.Generator], np.ndarray], only: str = "") -> Weights:
    random = np.random.default_rng(5)
    return {
        name: move(weight, random).astype(np.float32) if name.startswith(only) else weight
        for name, weight in weights.items()
    }


def _new_head(weights: Weights) -> Weights:
    head = _weights(np.random.default_rng(6), FEW_CLASSES)
    return {name: head[name] if name.startswith(HEAD) else weight for name, weight in weights.items()}


def float_model(weights: Weights) -> bytes:
    return _model(_nodes(list(weights)), [numpy_helper.from_array(weight, name) for name, weight in weights.items()])


def half_model(weights: Weights) -> bytes:
    halves = [numpy_helper.from_array(weight.astype(np.float16), name) for name, weight in weights.items()]
    return _model(_nodes(list(weights)), halves, TensorProto.FLOAT16)


def int8_model(weights: Weights) -> bytes:
    """Static quantisation in QDQ form: one scale for each tensor, 32-bit biases, as ONNX Runtime's quantiser does."""
    random = np.random.default_rng(7)
    tensors, nodes = [], []
    for node in _nodes(list(weights)):
        if len(node.input) < 3 or not node.input[1]:
            nodes.append(node)
            continue
        kernel, bias = node.input[1], node.input[2]
        scale = np.float32(np.abs(weights[kernel]).max() / 127)
        activation = np.float32(random.uniform(0.01, 0.05))
        whole = np.clip(np.rint(weights[kernel] / scale), -127, 127).astype(np.int8)
        tensors += _quantised(kernel, whole, scale)
        tensors += _quantised(bias, np.rint(weights[bias] / (scale * activation)).astype(np.int32), scale * activation)
        tensors += _quantised(node.input[0], None, activation)
        nodes += _dequantised(node)
    return _model(nodes, tensors)


def _quantised(name: str, values: np.ndarray | None, scale: np.float32) -> list[TensorProto]:
    zero = np.zeros((), np.uint8 if values is None else values.dtype)
    made = [] if values is None else [numpy_helper.from_array(values, f"{name}_quantized")]
    made.append(numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}_scale"))
    return [*made, numpy_helper.from_array(zero, f"{name}_zero_point")]


def _dequantised(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    source, inputs = node.input[0], []
    made = [
        helper.make_node(
            "QuantizeLinear", [source, f"{source}_scale", f"{source}_zero_point"], [f"{source}_q"], f"{source}_quant"
        )
    ]
    for name in node.input:
        whole = f"{name}_q" if name == source else f"{name}_quantized"
        given = [whole, f"{name}_scale", f"{name}_zero_point"]
        made.append(helper.make_node("DequantizeLinear", given, [f"{name}_dq"], f"{name}_dequant"))
        inputs.append(f"{name}_dq")
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    del changed.input[:]
    changed.input.extend(inputs)
    return [*made, changed]


def _nodes(names: list[str]) -> list[onnx.NodeProto]:
    """The layers one after the other: enough of a graph for the file to be like a real one."""
    layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    nodes, source = [], "input"
    for layer in layers:
        given = [source, f"{layer}.weight", f"{layer}.bias"]
        if layer == HEAD:
            nodes.append(helper.make_node("GlobalAveragePool", [source], ["pooled"], "pool"))
            nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten", axis=1))
            nodes.append(helper.make_node("Gemm", ["flat", *given[1:]], ["output"], layer, transB=1))
            break
        nodes.append(helper.make_node("Conv", given, [f"{layer}/out"], layer, **_attributes(layer)))
        source = f"{layer}/out"
        if not layer.endswith("project"):
            nodes.append(helper.make_node("Clip", [source, "", ""], [f"{layer}/clip"], f"{layer}.clip"))
            source = f"{layer}/clip"
    return nodes


def _attributes(layer: str) -> dict[str, list[int] | int]:
    if layer.endswith(("expand", "project", ".18")):
        return {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}
    return {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1}


def _model(nodes: list[onnx.NodeProto], tensors: list[TensorProto], kind: int = TensorProto.FLOAT) -> bytes:
    given = helper.make_tensor_value_info("input", kind, ["batch", 3, 224, 224])
    result = helper.make_tensor_value_info("output", kind, ["batch", None])
    graph = helper.make_graph(nodes, "main_graph", [given], [result], tensors)
    model = helper.make_model(graph, producer_name="pytorch", opset_imports=[helper.make_opsetid("", 17)])
    return model.SerializeToString()
