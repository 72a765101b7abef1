"""A model behind MLServer: `python serve.py MODEL PORT`. In the peer's own environment.

MLServer has no runtime for ONNX; this is the custom one that its users write. One process, as it is quickest, without
its access log.
"""

from __future__ import annotations

import asyncio
import sys

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, request: InferenceRequest) -> InferenceResponse:
        feeds = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in request.inputs}
        outputs = zip(self.session.get_outputs(), self.session.run(None, feeds), strict=True)
        encoded = [NumpyCodec.encode_output(output.name, array) for output, array in outputs]
        return InferenceResponse(model_name=self.name, outputs=encoded)


async def main() -> None:
    settings = Settings(
        host="127.0.0.1", http_port=int(sys.argv[2]), grpc_port=int(sys.argv[2]) + 1, metrics_port=int(sys.argv[2]) + 2,
        metrics_endpoint=None, parallel_workers=0, debug=False, use_structured_logging=False,
    )  # fmt: skip
    await MLServer(settings).start([ModelSettings(name="bench", implementation=Onnx)])


if __name__ == "__main__":
    asyncio.run(main())
