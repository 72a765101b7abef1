"""Steps on boxes: non-max suppression, and back to the original picture. Meaning: `modules.steps.scores`, `.images`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from agent.backends import Array
from modules.steps import NonMaxSuppression, ScaleBoxes

Tensors = dict[str, Array]


class Found(NamedTuple):
    """Of one picture, best first."""

    boxes: Array
    scores: Array
    classes: Array


def suppress(step: NonMaxSuppression, tensors: Tensors) -> None:
    boxes, scores = tensors[step.boxes], tensors[step.scores]
    if step.last:
        scores = scores.transpose(0, 2, 1)
    if boxes.shape[2] != 4 or (len(boxes), boxes.shape[1]) != (len(scores), scores.shape[2]):
        raise ValueError(f"non-max-suppression: got boxes {list(boxes.shape)} and scores {list(scores.shape)}")
    corners = as_corners(boxes, step.format)
    found = [_of_one(step, corners[n], scores[n]) for n in range(len(boxes))]
    kept = step.most if step.fixed else max((len(one.scores) for one in found), default=0)
    tensors[step.to_boxes] = _filled([one.boxes for one in found], (kept, 4), np.float32)
    tensors[step.to_scores] = _filled([one.scores for one in found], (kept,), np.float32)
    tensors[step.to_classes] = _filled([one.classes for one in found], (kept,), np.int64)
    if step.to_count:
        tensors[step.to_count] = np.array([len(one.scores) for one in found], np.int64)


def scale_boxes(step: ScaleBoxes, tensors: Tensors) -> None:
    boxes, geometry = tensors[step.tensor], tensors[step.geometry]
    if boxes.shape[-1] != 4 or len(geometry) != len(boxes):
        raise ValueError(f"scale-boxes: got boxes {list(boxes.shape)} for {len(geometry)} pictures")
    scale, offset, size = (np.tile(geometry[:, at : at + 2], 2)[:, np.newaxis] for at in (0, 2, 4))
    tensors[step.to or step.tensor] = ((boxes - offset) / scale).clip(0, size).astype(np.float32, copy=False)


def as_corners(boxes: Array, form: str) -> Array:
    """(x1, y1, x2, y2) with the smaller ones first."""
    if form == "centre":
        half = boxes[..., 2:] / 2
        first, second = boxes[..., :2] - half, boxes[..., :2] + half
    else:
        first, second = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def _of_one(step: NonMaxSuppression, corners: Array, scores: Array) -> Found:
    classes, indices = np.nonzero(scores > step.score)
    best = scores[classes, indices]
    order = np.argsort(-best, kind="stable")[: step.candidates]
    classes, boxes, best = classes[order], corners[indices[order]], best[order]
    kept = _kept(boxes, np.zeros_like(classes) if step.any_class else classes, step.iou, step.most)
    return Found(boxes[kept], best[kept], classes[kept])


def _kept(boxes: Array, classes: Array, iou: float, most: int) -> list[int]:
    """Greedy: each that stays takes away what overlaps it, of its class."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = np.ones(len(boxes), bool)
    kept: list[int] = []
    for n in range(len(boxes)):
        if not alive[n]:
            continue
        kept.append(n)
        if len(kept) == most:
            break
        rest = slice(n + 1, None)
        sides = np.minimum(boxes[n, 2:], boxes[rest, 2:]) - np.maximum(boxes[n, :2], boxes[rest, :2])
        common = sides.clip(0, None).prod(axis=1)
        union = areas[n] + areas[rest] - common
        alive[rest] &= ~((common > iou * union) & (union > 0) & (classes[rest] == classes[n]))
    return kept


def _filled(parts: list[Array], shape: tuple[int, ...], datatype: type) -> Array:
    whole: Array = np.zeros((len(parts), *shape), datatype)
    for row, part in zip(whole, parts, strict=True):
        row[: len(part)] = part
    return whole
