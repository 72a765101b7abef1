"""The models that the benchmarks serve: an MLP, two convolution nets of MobileNetV2's shape, and boosted trees.

Random weights, the same on every machine: what they are does not change how long they take. Inputs are `x` with a
free first dimension. Called by the benchmarks of serving, of GPUs and of workers.
Source: table 2 of the MobileNetV2 paper (Sandler et al. 2018).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES, CLASSES = 20, 3  # of the MLP and the trees
OPSET, IR_VERSION = 17, 8
# Expansion, channels, repeats, stride.
_ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_LAST_CHANNELS = 1280


def mlp() -> bytes:
    """20-64-3 with softmax: float32 `x` [n, 20] to `y` [n, 3], 6 KB."""
    graph = _Graph()
    hidden = graph.add("Relu", [graph.dense("x", FEATURES, 64)])
    graph.add("Softmax", [graph.dense(hidden, 64, CLASSES)], output="y", axis=1)
    return graph.model("mlp", ["n", FEATURES], ["n", CLASSES])


def conv224() -> bytes:
    """MobileNetV2 1.0: float32 `x` [n, 3, 224, 224] to `y` [n, 1000], 14 MB."""
    return _mobilenet(side=224, width=1.0, classes=1000)


def conv96() -> bytes:
    """MobileNetV2 0.35: float32 `x` [n, 3, 96, 96] to `y` [n, 10], 1.6 MB."""
    return _mobilenet(side=96, width=0.35, classes=10)


def trees() -> bytes:
    """Gradient boosting, 100 rounds of 3 trees: float32 `x` [n, 20] to `label` [n] and `probabilities` [n, 3]."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier

    random = np.random.default_rng(0)
    rows = random.normal(size=(1000, FEATURES)).astype(np.float32)
    classes = np.digitize(rows[:, 0] + rows[:, 1] * rows[:, 2], [-0.5, 0.5])
    fitted = GradientBoostingClassifier(n_estimators=100, random_state=0).fit(rows, classes)
    made = to_onnx(fitted, rows[:1], options={id(fitted): {"zipmap": False}}, target_opset=OPSET)
    made.graph.input[0].name = _renamed(made, made.graph.input[0].name, "x")
    return bytes(made.SerializeToString())


def _renamed(model: onnx.ModelProto, old: str, new: str) -> str:
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
    return new


def _mobilenet(side: int, width: float, classes: int) -> bytes:
    graph = _Graph()
    channels = _whole(32 * width)
    source = graph.conv("x", 3, channels, kernel=3, stride=2)
    for expansion, wanted, repeats, stride in _ROWS:
        for number in range(repeats):
            out = _whole(wanted * width)
            source = graph.bottleneck(source, channels, out, expansion, stride if number == 0 else 1)
            channels = out
    source = graph.conv(source, channels, _LAST_CHANNELS)
    pooled = graph.add("Flatten", [graph.add("GlobalAveragePool", [source])], axis=1)
    graph.dense(pooled, _LAST_CHANNELS, classes, output="y")
    return graph.model("mobilenet_v2", ["n", 3, side, side], ["n", classes])


def _whole(channels: float) -> int:
    """The nearest multiple of 8 that takes away no more than a tenth, as the paper's own code does."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class _Graph:
    """A graph as it grows, node by node. Each method returns the name of what it computes."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        name = output or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], f"{kind}_{len(self._nodes)}", **attributes))
        return name

    def dense(self, source: str, size: int, out: int, output: str = "") -> str:
        return self.add("Gemm", [source, *self._layer((size, out), size, out)], output)

    def conv(
        self, source: str, size: int, out: int, *, kernel: int = 1, stride: int = 1, group: int = 1, act: bool = True
    ) -> str:
        shape = (out, size // group, kernel, kernel)
        weights = self._layer(shape, kernel * kernel * size // group, out)
        made = self.add("Conv", [source, *weights], **_window(kernel, stride), group=group)
        return self.add("Clip", [made, self._constant(0.0), self._constant(6.0)]) if act else made

    def bottleneck(self, source: str, size: int, out: int, expansion: int, stride: int) -> str:
        wide = size * expansion
        inner = self.conv(source, size, wide) if expansion > 1 else source
        inner = self.conv(inner, wide, wide, kernel=3, stride=stride, group=wide)
        inner = self.conv(inner, wide, out, act=False)
        return self.add("Add", [source, inner]) if stride == 1 and size == out else inner

    def model(self, name: str, takes: list[str | int], gives: list[str | int]) -> bytes:
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, takes)
        result = helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)
        graph = helper.make_graph(self._nodes, name, [given], [result], self._weights)
        opsets = [helper.make_opsetid("", OPSET)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())

    def _layer(self, shape: tuple[int, ...], fan_in: int, out: int) -> list[str]:
        weights = self._random.normal(0, np.sqrt(2 / fan_in), shape)
        return [self._tensor(weights), self._tensor(self._random.normal(0, 0.1, out))]

    def _constant(self, value: float) -> str:
        name = f"c{value:g}"
        if all(tensor.name != name for tensor in self._weights):
            self._weights.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def _tensor(self, values: np.ndarray) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name


def _window(kernel: int, stride: int) -> dict[str, list[int]]:
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
