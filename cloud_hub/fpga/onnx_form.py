"""An ONNX model in the form that hls4ml reads: one input, one output, one row, products and sums, names of our own.

hls4ml writes the names of a model's nodes into C++ sources, so none of the publisher's gets there. What no circuit
can be made from is refused by the node's own name. Called by the child.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from cloud_hub.fpga.request import FpgaError
from cloud_hub.probe_data import Array

MAX_MODEL_BYTES = 256 * 1024 * 1024
# Of 32-bit numbers to 32-bit numbers, and of training: nothing happens there.
_NOTHING = frozenset({"Identity", "Dropout", "Cast"})
# hls4ml reads these only in QONNX's form, where channels come last.
_CHANNELS_FIRST = frozenset({
    "Conv", "AveragePool", "MaxPool", "GlobalMaxPool", "GlobalAveragePool", "Resize", "Pad", "ConvTranspose",
})  # fmt: skip
_SUMS = frozenset({"Add", "Sub", "Mul", "Div"})


class Prepared:
    """`model` is for hls4ml; the names and shapes (with -1 for rows) are the publisher's."""

    def __init__(
        self, model: ModelProto, inputs: tuple[str, tuple[int, ...]], output: tuple[str, tuple[int, ...]]
    ) -> None:
        self.model = model
        self.input_name, self.input_shape = inputs
        self.output_name, self.output_shape = output


def prepare(path: Path, output: str, supported: Iterable[str]) -> Prepared:
    """`output` may be empty where the model has one of floating point. Raises FpgaError."""
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise FpgaError("fpga-model", f"{path.name}: expected at most {MAX_MODEL_BYTES} bytes")
    try:
        onnx.checker.check_model(str(path))
        model = onnx.load(str(path))
        graph = _flattened(onnx.shape_inference.infer_shapes(model).graph)
    except (ValueError, OSError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise FpgaError("fpga-model", f"{path.name} is not a valid ONNX model: {str(error)[:500]}") from error
    except Exception as error:  # protobuf's own, which shares no base with the others
        raise FpgaError("fpga-model", f"{path.name} is not an ONNX model: {type(error).__name__}") from error
    return _prepared(graph, model, _chosen(graph, output), frozenset(supported) | {"Gemm"})


# The output's name, the tensor that it is, and what is known of it.
_Output = tuple[str, str, ValueInfoProto]


class _Graph:
    """The nodes that do something, the constants by name, and what stands at the edges."""

    def __init__(
        self, nodes: list[NodeProto], constants: dict[str, Array], inputs: list[ValueInfoProto], outputs: list[_Output]
    ) -> None:
        self.nodes, self.constants, self.inputs, self.outputs = nodes, constants, inputs, outputs


def _flattened(graph: GraphProto) -> _Graph:
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    same: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type in _NOTHING and not _changes(node, known):
            same[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    outputs = [(one.name, same.get(one.name, one.name), one) for one in graph.output]  # behind an Identity: before it
    return _Graph(nodes, constants, [one for one in graph.input if one.name not in constants], outputs)


def _changes(node: NodeProto, known: dict[str, int]) -> bool:
    if node.op_type != "Cast":
        return False
    to = next(attribute.i for attribute in node.attribute if attribute.name == "to")
    return not (to == TensorProto.FLOAT == known.get(node.input[0], TensorProto.FLOAT))


def _chosen(graph: _Graph, wanted: str) -> _Output:
    floats = [one for one in graph.outputs if one[2].type.tensor_type.elem_type == TensorProto.FLOAT]
    found = [one for one in (floats if not wanted else graph.outputs) if wanted in ("", one[0])]
    if len(found) != 1:
        names = ", ".join(one[0] for one in graph.outputs)
        text = f"expected an output named {wanted}" if wanted else "expected one output of FP32; choose one by name"
        raise FpgaError("fpga-model", f"{text}, the model has {names}")
    return found[0]


def _prepared(graph: _Graph, model: ModelProto, chosen: _Output, supported: frozenset[str]) -> Prepared:
    name, tensor, value = chosen
    nodes = _needed(graph.nodes, tensor)
    _refuse(nodes, supported)
    used = {one for node in nodes for one in node.input}
    inputs = [one for one in graph.inputs if one.name in used]
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs) or "none"
        raise FpgaError("fpga-unsupported", f"expected one input, got {names}: hls4ml's stream carries one tensor")
    given = inputs[0]
    if given.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise FpgaError("fpga-unsupported", f"input {given.name}: expected FP32, got another datatype")
    shape = _sizes(given)
    written = _Writer(graph.constants, given.name).write(nodes, tensor, shape)
    written.opset_import.extend(model.opset_import)
    written.ir_version = min(model.ir_version, 10)
    return Prepared(_inferred(written), (given.name, (-1, *shape)), (name, (-1, *_sizes(value, free=True))))


def _needed(nodes: list[NodeProto], tensor: str) -> list[NodeProto]:
    wanted, kept = {tensor}, []
    for node in reversed(nodes):  # in ONNX a node stands after those it needs
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _refuse(nodes: list[NodeProto], supported: frozenset[str]) -> None:
    for node in nodes:
        called = f"{node.op_type} (node {(node.name or node.output[0])[:80]!r})"
        if node.op_type in _CHANNELS_FIRST:
            text = "hls4ml reads convolutions and pooling of ONNX only with channels last; build from the Keras model"
            raise FpgaError("fpga-unsupported", f"{called}: {text}")
        if node.op_type not in supported:
            text = f"hls4ml makes no circuit of this operation; it knows {', '.join(sorted(supported))}"
            raise FpgaError("fpga-unsupported", f"{called}: {text}")


def _sizes(value: ValueInfoProto, free: bool = False) -> tuple[int, ...]:
    sizes = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim][1:]
    if not sizes or min(sizes) < 1:
        kind = "output" if free else "input"
        raise FpgaError("fpga-unsupported", f"{kind} {value.name}: expected fixed sizes after the first, got {sizes}")
    return tuple(sizes)


class _Writer:
    """The same computation in products and sums, under names of our own."""

    def __init__(self, constants: dict[str, Array], given: str) -> None:
        self._constants = constants
        self._names = {given: "x"}
        self._kept: dict[str, Array] = {}
        self._nodes: list[NodeProto] = []

    def write(self, nodes: list[NodeProto], tensor: str, shape: tuple[int, ...]) -> ModelProto:
        for node in nodes:
            if node.op_type == "Gemm":
                self._gemm(node)
            else:
                self._plain(node)
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape])]
        outputs = [helper.make_tensor_value_info(self._name(tensor), TensorProto.FLOAT, None)]
        weights = [numpy_helper.from_array(array, name) for name, array in self._kept.items()]
        return helper.make_model(helper.make_graph(self._nodes, "overlay", inputs, outputs, weights), opset_imports=[])

    def _plain(self, node: NodeProto) -> None:
        inputs = [self._input(name, node.op_type in _SUMS) for name in node.input if name]
        made = helper.make_node(node.op_type, inputs, [self._name(node.output[0])], name=self._label(node.op_type))
        made.attribute.extend(node.attribute)
        self._nodes.append(made)

    def _gemm(self, node: NodeProto) -> None:
        """A general product: alpha * A @ B + beta * C."""
        said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if said.get("transA") or any(name not in self._constants for name in node.input[1:]):
            raise FpgaError(
                "fpga-unsupported", f"Gemm (node {node.name[:80]!r}): expected fixed weights, not transposed"
            )
        weight = self._constants[node.input[1]]
        weight = (weight.T if said.get("transB") else weight) * said.get("alpha", 1.0)
        product = self._name(node.output[0]) + ("p" if len(node.input) > 2 else "")
        operands = [self._input(node.input[0], False), self._keep(weight)]
        self._nodes.append(helper.make_node("MatMul", operands, [product], name=self._label("matmul")))
        if len(node.input) > 2:
            added = np.broadcast_to(self._constants[node.input[2]].reshape(-1), weight.shape[1])
            bias = self._keep(added * said.get("beta", 1.0))
            out = self._name(node.output[0])
            self._nodes.append(helper.make_node("Add", [product, bias], [out], name=self._label("add")))

    def _input(self, name: str, summed: bool) -> str:
        if name not in self._constants:
            return self._name(name)
        array = self._constants[name]
        while summed and array.ndim > 1 and array.shape[0] == 1:  # hls4ml adds rows, not tables of one row
            array = array[0]
        return self._keep(array)

    def _keep(self, array: Array) -> str:
        name = f"c{len(self._kept)}"
        self._kept[name] = array.astype(np.float32) if array.dtype.kind == "f" else array.copy()
        return name

    def _name(self, tensor: str) -> str:
        return self._names.setdefault(tensor, f"t{len(self._names)}")

    def _label(self, operation: str) -> str:
        return f"n{len(self._nodes)}_{operation.lower()}"


def _inferred(model: ModelProto) -> ModelProto:
    """With the shape of every tensor, constants too: hls4ml asks for them."""
    result = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for name, type_, shape in _described(result):
        result.graph.value_info.append(helper.make_tensor_value_info(name, type_, shape))
    return result


def _described(model: ModelProto) -> Iterator[tuple[str, int, list[int]]]:
    for one in model.graph.initializer:
        yield one.name, one.data_type, list(one.dims)
