"""The demo's data and models: scikit-learn's handwritten digits, a small network, a camera that goes bad.

Pure apart from training. 1797 images of 8x8 pixels with values 0 to 16; the order is shuffled once with a fixed seed
and cut into parts that no two acts share, so that nothing is measured on what it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SEED = 7
TRAINING, REFERENCE, CALM, FAULTY = 560, 240, 300, 420  # images; the rest is for the last act
WIDTH = 8
DARK = 0.35  # share of the light that a dim camera still sees
COVERED = 3  # columns of pixels that the dirt on the lens covers
HIDDEN = 64
INPUT = "image"
CLASSES = tuple(str(digit) for digit in range(10))
PIXELS = tuple(f"r{row}c{column}" for row in range(WIDTH) for column in range(WIDTH))


@dataclass(frozen=True)
class Images:
    """Images as float32 [n, 64] and their labels int64 [n]."""

    pixels: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Images:
        return Images(self.pixels[start:stop], self.labels[start:stop])

    def share(self, index: int, of: int) -> Images:
        """Every `of`-th image from `index` on."""
        return Images(self.pixels[index::of], self.labels[index::of])

    def joined(self, other: Images, times: int = 1) -> Images:
        """These and, `times` over, the other's."""
        return Images(
            np.concatenate([self.pixels, np.repeat(other.pixels, times, axis=0)]),
            np.concatenate([self.labels, np.repeat(other.labels, times)]),
        )


@dataclass(frozen=True)
class Parts:
    """The parts of the data set. `reference` is what monitoring compares with: held out, because a model is surer of
    what it was trained on than of anything that it will see.
    """

    training: Images
    reference: Images
    calm: Images
    faulty: Images
    last: Images


def load() -> Parts:
    """scikit-learn's bundled digits, shuffled and cut."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    images = Images(pixels[order].astype(np.float32), labels[order].astype(np.int64))
    ends = [*np.cumsum([0, TRAINING, REFERENCE, CALM, FAULTY]).tolist(), len(images)]
    return Parts(*(images.part(start, stop) for start, stop in pairwise(ends)))


def broken_camera(images: Images) -> Images:
    """What a camera sees with dirt over its left columns and too little light. Values stay whole numbers."""
    pixels = np.round(images.pixels.reshape(-1, WIDTH, WIDTH) * DARK)
    pixels[:, :, :COVERED] = 0
    return Images(pixels.reshape(-1, WIDTH * WIDTH).astype(np.float32), images.labels)


def affected_pixels() -> frozenset[str]:
    """Names of the pixels under the dirt."""
    return frozenset(f"r{row}c{column}" for row in range(WIDTH) for column in range(COVERED))


@dataclass(frozen=True)
class Classifier:
    """A trained classifier: its ONNX bytes, and its answers for checking."""

    onnx: bytes
    pipeline: Any  # scikit-learn ships no types

    def predict(self, images: Images) -> Array:
        """int64 [n], computed by scikit-learn: the offline truth that the devices are held against."""
        answers: Array = self.pipeline.predict(images.pixels)
        return answers.astype(np.int64)


def accuracy(answers: Array, images: Images) -> float:
    return float(np.mean(answers == images.labels))


def train(images: Images) -> Classifier:
    """A scaler and one hidden layer; converted to ONNX with a label and a probability output."""
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((HIDDEN,), max_iter=1000, random_state=SEED)
    pipeline = make_pipeline(StandardScaler(), network).fit(images.pixels, images.labels)
    model = to_onnx(
        pipeline,
        initial_types=[(INPUT, _tensor_type())],
        options={id(pipeline): {"zipmap": False}},
        target_opset=17,
    )
    return Classifier(model.SerializeToString(), pipeline)


def _tensor_type() -> object:
    from skl2onnx.common.data_types import FloatTensorType

    return FloatTensorType([None, WIDTH * WIDTH])
