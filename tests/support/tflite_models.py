"""TFLite models built by hand from trained weights: a flatbuffer of the format's own schema, no TensorFlow.

An MLP of fully connected layers and a softmax, the same with 8-bit integers, a small convolution net, and a model for
each datatype that gives back what it gets. Source: the schema that ai-edge-litert ships (schema_py_generated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

Array = np.ndarray[Any, Any]
TYPES = {
    "FP32": schema.TensorType.FLOAT32, "FP16": schema.TensorType.FLOAT16, "FP64": schema.TensorType.FLOAT64,
    "INT8": schema.TensorType.INT8, "INT16": schema.TensorType.INT16, "INT32": schema.TensorType.INT32,
    "INT64": schema.TensorType.INT64, "UINT8": schema.TensorType.UINT8, "UINT16": schema.TensorType.UINT16,
    "UINT32": schema.TensorType.UINT32, "UINT64": schema.TensorType.UINT64, "BOOL": schema.TensorType.BOOL,
    "BYTES": schema.TensorType.STRING,
}  # fmt: skip
_DTYPES = {"float32": "FP32", "int32": "INT32", "int8": "INT8", "int64": "INT64"}
_NONE, _RELU = schema.ActivationFunctionType.NONE, schema.ActivationFunctionType.RELU
_Op = schema.BuiltinOperator


@dataclass(frozen=True)
class Scale:
    """real = scale * (stored - zero)."""

    scale: float
    zero: int = 0


@dataclass
class Net:
    """A graph as it grows; each method returns the number of a tensor."""

    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [_buffer(b"")])
    operators: list[Any] = field(default_factory=list)
    codes: list[Any] = field(default_factory=list)

    def tensor(self, name: str, datatype: str, shape: Sequence[int], scale: Scale | None = None) -> int:
        """-1 is a free size: 1 until the interpreter is told otherwise."""
        made = schema.TensorT()
        made.name, made.type, made.buffer = name, TYPES[datatype], 0
        made.shape = [max(1, size) for size in shape]
        made.shapeSignature = list(shape)
        made.hasRank = True
        if scale is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [scale.scale], [scale.zero]
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, name: str, values: Array, scale: Scale | None = None) -> int:
        number = self.tensor(name, _DTYPES[values.dtype.name], values.shape, scale)
        self.buffers.append(_buffer(values.tobytes()))
        self.tensors[number].buffer = len(self.buffers) - 1
        return number

    def add(self, code: int, inputs: list[int], output: int, options: Any = None, kind: int = 0) -> int:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self._code(code), inputs, [output]
        made.builtinOptions, made.builtinOptionsType = options, kind
        self.operators.append(made)
        return output

    def dense(self, source: int, weights: Array, bias: Array, output: int, *, relu: bool) -> int:
        """`weights` as scikit-learn has them: inputs by outputs."""
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = _RELU if relu else _NONE
        name = self.tensors[output].name
        inputs = [source, self.constant(f"{name}/w", _f32(weights.T)), self.constant(f"{name}/b", _f32(bias))]
        return self.add(_Op.FULLY_CONNECTED, inputs, output, options, schema.BuiltinOptions.FullyConnectedOptions)

    def softmax(self, source: int, output: int) -> int:
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self.add(_Op.SOFTMAX, [source], output, options, schema.BuiltinOptions.SoftmaxOptions)

    def model(self, inputs: dict[str, int], outputs: dict[str, int], signature: str = "serving_default") -> bytes:
        """With these names in a signature, as TensorFlow's converter does; without one where that is empty."""
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = "main", self.tensors, self.operators
        graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
        whole = schema.ModelT()
        whole.version, whole.description = 3, "built by hand"
        whole.operatorCodes, whole.subgraphs, whole.buffers = self.codes, [graph], self.buffers
        if signature:
            whole.signatureDefs = [_signature(signature, inputs, outputs)]
        builder = flatbuffers.Builder(1024)
        builder.Finish(whole.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _code(self, code: int) -> int:
        for number, known in enumerate(self.codes):
            if known.builtinCode == code:
                return number
        made = schema.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = code, min(code, 127), 1
        self.codes.append(made)
        return len(self.codes) - 1


def mlp(layers: Sequence[tuple[Array, Array]], signature: str = "serving_default", batch: int = -1) -> bytes:
    """Float32 `x` to the probabilities `y`; scikit-learn's coefs_ and intercepts_ in pairs."""
    net = Net()
    x = source = net.tensor("serving_default_x:0" if signature else "x", "FP32", (batch, len(layers[0][0])))
    for number, (weights, bias) in enumerate(layers):
        last = number == len(layers) - 1
        hidden = net.tensor(f"layer{number}", "FP32", (batch, len(bias)))
        source = net.dense(source, weights, bias, hidden, relu=not last)
    y = net.tensor("StatefulPartitionedCall:0" if signature else "y", "FP32", (batch, len(layers[-1][1])))
    return net.model({"x": x}, {"y": net.softmax(source, y)}, signature)


def mlp_int8(weights: Array, bias: Array, x_scale: Scale, y_scale: Scale) -> bytes:
    """One fully connected layer in 8-bit integers: int8 `x` to int8 `y`."""
    net = Net()
    x = net.tensor("x", "INT8", (-1, len(weights)), x_scale)
    y = net.tensor("y", "INT8", (-1, len(bias)), y_scale)
    step = float(np.abs(weights).max() / 127)
    whole = np.rint(weights.T / step).astype(np.int8)
    inputs = [
        x,
        net.constant("w", whole, Scale(step)),
        net.constant("b", np.rint(bias / (step * x_scale.scale)).astype(np.int32), Scale(step * x_scale.scale)),
    ]
    options = schema.FullyConnectedOptionsT()
    net.add(_Op.FULLY_CONNECTED, inputs, y, options, schema.BuiltinOptions.FullyConnectedOptions)
    for code in net.codes:
        code.version = 4  # the first with signed 8-bit weights
    return net.model({"x": x}, {"y": y}, "")


def conv(kernel: Array, bias: Array, side: int) -> bytes:
    """Float32 pictures `x` [n, side, side, channels] to `y`, one convolution with ReLU; `kernel` is [out, h, w, in]."""
    net = Net()
    x = net.tensor("x", "FP32", (-1, side, side, kernel.shape[3]))
    y = net.tensor("y", "FP32", (-1, side, side, kernel.shape[0]))
    options = schema.Conv2DOptionsT()
    options.padding, options.strideW, options.strideH = schema.Padding.SAME, 1, 1
    options.dilationWFactor = options.dilationHFactor = 1
    options.fusedActivationFunction = _RELU
    inputs = [x, net.constant("k", _f32(kernel)), net.constant("b", _f32(bias))]
    net.add(_Op.CONV_2D, inputs, y, options, schema.BuiltinOptions.Conv2DOptions)
    return net.model({"x": x}, {"y": y}, "")


def echo(datatype: str, free: bool = True) -> bytes:
    """`x` [n, 2] comes back as `y`: a reshape to what it is, which knows every datatype."""
    net = Net()
    rows = -1 if free else 3
    x = net.tensor("x", datatype, (rows, 2))
    y = net.tensor("y", datatype, (rows, 2))
    net.add(_Op.RESHAPE, [x, net.constant("shape", np.array([-1, 2], np.int32))], y)
    return net.model({"x": x}, {"y": y}, "")


def greedy(mib: int) -> bytes:
    """A few hundred bytes that want `mib` MiB of memory: a constant size, filled with zeros and summed up."""
    net = Net()
    x = net.tensor("x", "FP32", (1, 1))
    size = net.constant("size", np.array([mib, 262_144], np.int32))
    zeros = net.tensor("zeros", "FP32", (-1, -1))
    net.add(_Op.BROADCAST_TO, [x, size], zeros)
    y = net.tensor("y", "FP32", (1, 1))
    options = schema.ReducerOptionsT()
    options.keepDims = True
    axes = net.constant("axes", np.array([0, 1], np.int32))
    net.add(_Op.SUM, [zeros, axes], y, options, schema.BuiltinOptions.ReducerOptions)
    for code in net.codes:
        code.version = 2
    return net.model({"x": x}, {"y": y}, "")


def _buffer(data: bytes) -> Any:
    made = schema.BufferT()
    made.data = np.frombuffer(data, np.uint8) if data else None
    return made


def _signature(key: str, inputs: dict[str, int], outputs: dict[str, int]) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey = key
    made.inputs, made.outputs = _named(inputs), _named(outputs)
    return made


def _named(tensors: dict[str, int]) -> list[Any]:
    made = []
    for name, number in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, number
        made.append(entry)
    return made


def _f32(values: Array) -> Array:
    return np.ascontiguousarray(values, np.float32)
