"""Read the arrays that a publisher sends along (training sample, golden inputs) and turn arrays into tensors.

NumPy's .npz without pickles, keyed by input name, or .csv with a header for a model with one numeric input. Imported
only by the child of `probing`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modules.tensors import NUMPY_CODES, Tensor, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]

_DATATYPES = {np.dtype(code): name for name, code in NUMPY_CODES.items()}
_ZIP_MAGIC = b"PK"


@dataclass(frozen=True)
class Arrays:
    """Arrays by input name, all with the same number of rows; column names where the file had them."""

    arrays: Mapping[str, Array]
    columns: Mapping[str, tuple[str, ...]]
    rows: int

    def head(self, rows: int) -> Arrays:
        return Arrays({name: array[:rows] for name, array in self.arrays.items()}, self.columns, min(rows, self.rows))


def read_arrays(path: Path, inputs: tuple[TensorSpec, ...], recorded: tuple[TensorSpec, ...] = ()) -> Arrays:
    """The arrays for `inputs` (and for the `recorded` outputs), in their datatypes and shapes.

    Raises ValueError with what was expected and found.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == _ZIP_MAGIC
    specs = inputs + recorded
    found, columns = _read_npz(path, specs) if zipped else _read_csv(path, specs)
    arrays = {spec.name: _fit(found.get(spec.name), spec) for spec in specs}
    rows = {len(array) for array in arrays.values()}
    if len(rows) != 1 or rows == {0}:
        raise ValueError(f"expected the same number of rows, at least one, for every input, got {sorted(rows)}")
    return Arrays(arrays, columns, rows.pop())


def to_tensor(name: str, array: Array) -> Tensor:
    """The array's bytes, little-endian and row-major; text and bytes as BYTES."""
    shape = tuple(int(size) for size in array.shape)
    if array.dtype.kind in "OUS":
        parts = (_as_bytes(item) for item in array.reshape(-1).tolist())
        return Tensor(name, "BYTES", shape, b"".join(len(part).to_bytes(4, "little") + part for part in parts))
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if little.dtype not in _DATATYPES:
        raise ValueError(f"{name}: expected one of the Open Inference Protocol's datatypes, got {array.dtype}")
    return Tensor(name, _DATATYPES[little.dtype], shape, np.ascontiguousarray(little).tobytes())


def _as_bytes(item: object) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def _read_npz(path: Path, inputs: tuple[TensorSpec, ...]) -> tuple[dict[str, Array], dict[str, tuple[str, ...]]]:
    wanted = {spec.name for spec in inputs}
    with np.load(path, allow_pickle=False) as archive:
        names = set(archive.files)
        if missing := sorted(wanted - names):
            raise ValueError(f"expected arrays named {sorted(wanted)} in the .npz, got {sorted(names)} (no {missing})")
        return {name: archive[name] for name in wanted}, {}


def _read_csv(path: Path, inputs: tuple[TensorSpec, ...]) -> tuple[dict[str, Array], dict[str, tuple[str, ...]]]:
    if len(inputs) != 1 or inputs[0].datatype == "BYTES":
        raise ValueError("a .csv fits a model with one numeric input only; give an .npz with one array per input")
    name = inputs[0].name
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        try:
            rows = [[float(cell) if cell.strip() else float("nan") for cell in row] for row in reader if row]
        except ValueError as error:
            raise ValueError(f"expected a number in every cell of the .csv: {error}") from error
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"expected {len(header)} cells in every row of the .csv, as in its header")
    return {name: np.array(rows, dtype=np.float64)}, {name: header}


def _fit(array: Array | None, spec: TensorSpec) -> Array:
    """The array in the spec's datatype and shape. A fixed first dimension other than 1 is left to the model to say."""
    if array is None:
        raise ValueError(f"{spec.name}: expected an array, got none")
    if spec.datatype == "BYTES":
        return array.astype(object)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{spec.name}: expected numbers ({spec.datatype}), got {array.dtype}")
    expected = spec.shape[1:]
    got = array.shape[1:]
    if len(got) != len(expected) or any(e not in (-1, g) for e, g in zip(expected, got, strict=True)):
        raise ValueError(f"{spec.name}: expected shape {[-1, *expected]}, got {list(array.shape)}")
    return np.ascontiguousarray(array.astype(NUMPY_CODES[spec.datatype]))
