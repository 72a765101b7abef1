"""A model behind LitServe: `python serve.py MODEL PORT`. In the peer's own environment."""

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Bench(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def decode_request(self, request):  # noqa: ANN001, ANN201 - annotated by text, LitServe takes it for a query
        return np.asarray(request["x"], np.float32)

    def predict(self, x: Any) -> Any:
        return self.session.run(None, {self.name: x})

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"outputs": [array.tolist() for array in output]}


if __name__ == "__main__":
    server = litserve.LitServer(Bench(), accelerator="cpu", workers_per_device=1, disable_openapi_url=True)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error", access_log=False)
