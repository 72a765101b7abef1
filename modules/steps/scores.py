"""Steps on what a model gives: probabilities, the best of them, and boxes without doubles. Pure values and checks."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from modules.steps.specs import FREE, REAL, Specs, axis_of, made, read, require
from modules.tensors import TensorSpec

MAX_KEPT = 65_536


class Softmax(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="softmax"):
    """Scores to probabilities along `axis`. Reads `tensor`, writes `to` (empty: in its place)."""

    tensor: str
    to: str = ""
    axis: int = -1

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("softmax", have, self.tensor, REAL)
        axis_of("softmax", spec, self.axis)
        return (made(self.to or self.tensor, spec.datatype, spec.shape, spec.labels),)


class Sigmoid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="sigmoid"):
    """1 / (1 + exp(-x)), each element by itself."""

    tensor: str
    to: str = ""

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("sigmoid", have, self.tensor, REAL)
        return (made(self.to or self.tensor, spec.datatype, spec.shape, spec.labels),)


class ArgMax(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="argmax"):
    """The index of the largest along `axis`, the first of several, as INT64."""

    tensor: str
    to: str = ""
    axis: int = -1

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("argmax", have, self.tensor)
        axis = axis_of("argmax", spec, self.axis)
        return (made(self.to or self.tensor, "INT64", (*spec.shape[:axis], *spec.shape[axis + 1 :])),)


class TopK(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="top-k"):
    """The `k` largest of the last axis, largest first, the first of equals before: `values`, `indices` (INT64) and
    `names` (BYTES, of `labels` or else the tensor's own) are the tensors to write; empty ones are not.
    """

    tensor: str
    k: int
    values: str = ""
    indices: str = ""
    names: str = ""
    labels: tuple[str, ...] = ()

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("top-k", have, self.tensor)
        size = spec.shape[-1] if spec.shape else 0
        fits = 1 <= self.k <= MAX_KEPT and (size == FREE or self.k <= size)
        require("top-k", fits, f"expected k of 1 to {size}, got {self.k}")
        require("top-k", bool(self.values or self.indices or self.names), "expected a tensor to write, got none")
        if self.names:
            labels = self.labels_for(spec)
            require("top-k", len(labels) == size, f"expected {size} labels, got {len(labels)}")
        shape = (*spec.shape[:-1], self.k)
        wanted = ((self.values, spec.datatype), (self.indices, "INT64"), (self.names, "BYTES"))
        return tuple(made(name, datatype, shape) for name, datatype in wanted if name)

    def labels_for(self, spec: TensorSpec) -> tuple[str, ...]:
        return self.labels or spec.labels


class Threshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="threshold"):
    """Whether x >= `at`, as BOOL; with `keep` the numbers themselves, those below 0."""

    tensor: str
    at: float
    to: str = ""
    keep: bool = False

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("threshold", have, self.tensor)
        require("threshold", math.isfinite(self.at), "expected a finite number")
        return (made(self.to or self.tensor, spec.datatype if self.keep else "BOOL", spec.shape, spec.labels),)


class NonMaxSuppression(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="non-max-suppression"
):
    """Of boxes that overlap by more than `iou` the one with the best score, per class (with `any_class` over all).

    Reads `boxes` [n, boxes, 4], corners (x1, y1, x2, y2, in any order) or centre and size (x, y, width, height), and
    `scores` [n, classes, boxes], as ONNX NonMaxSuppression does; with `last` [n, boxes, classes]. Of the scores above
    `score`, the best `candidates` of each picture are looked at. Writes corners, scores, classes (INT64) and how many
    there are (INT64, [n]), best first, at most `most` of each picture; `fixed` fills up to that with zeros, otherwise
    as many are written as the picture with the most has.
    """

    boxes: str
    scores: str
    to_boxes: str
    to_scores: str
    to_classes: str
    to_count: str = ""
    format: Literal["corners", "centre"] = "corners"
    last: bool = False
    iou: float = 0.5
    score: float = 0.25
    most: int = 100
    candidates: int = 1000
    fixed: bool = True
    any_class: bool = False

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        step = "non-max-suppression"
        boxes = read(step, have, self.boxes, ("FP32",), 3)
        scores = read(step, have, self.scores, ("FP32",), 3)
        require(step, boxes.shape[2] in (4, FREE), f"expected boxes of 4 numbers, got {list(boxes.shape)}")
        count = scores.shape[1] if self.last else scores.shape[2]
        agree = FREE in (count, boxes.shape[1]) or count == boxes.shape[1]
        require(step, agree, f"expected scores of {boxes.shape[1]} boxes, got {list(scores.shape)}")
        require(step, 0.0 <= self.iou <= 1.0 and math.isfinite(self.score), "expected iou from 0 to 1, a finite score")
        fits = 1 <= self.most <= self.candidates <= MAX_KEPT
        require(step, fits, f"expected 1 <= most <= candidates <= {MAX_KEPT}")
        n, kept = boxes.shape[0], self.most if self.fixed else FREE
        found = (
            made(self.to_boxes, "FP32", (n, kept, 4)),
            made(self.to_scores, "FP32", (n, kept)),
            made(self.to_classes, "INT64", (n, kept)),
        )
        return (*found, made(self.to_count, "INT64", (n,))) if self.to_count else found
