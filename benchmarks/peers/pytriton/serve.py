"""A model behind PyTriton: `python serve.py MODEL PORT`. In the peer's own environment, on Debian's Python 3.11.2:
its embedded interpreter does not match later ones.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    inputs = [Tensor(name=i.name, dtype=np.float32, shape=_rest(i)) for i in session.get_inputs()]
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    outputs = [Tensor(name=o.name, dtype=kinds[o.type], shape=_rest(o)) for o in session.get_outputs()]

    @batch
    def infer(**feeds: Any) -> Any:
        return [array.reshape(len(array), -1) for array in session.run(None, feeds)]

    port = int(sys.argv[2])
    settings = TritonConfig(http_address="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2)
    with Triton(config=settings) as triton:
        triton.bind("bench", infer, inputs, outputs, config=ModelConfig(max_batch_size=64))
        triton.serve()


def _rest(node: Any) -> tuple[int, ...]:
    """Without the batch; a tensor of nothing but the batch is a column to Triton."""
    return tuple(size if isinstance(size, int) else -1 for size in node.shape[1:]) or (1,)


if __name__ == "__main__":
    main()
