"""`python _bare.py MODEL SOCKET`: one aiohttp handler around session.run, for `serving.py` to compare with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from aiohttp import web

from benchmarks._slots import session


def main() -> None:
    model = session(Path(sys.argv[1]).read_bytes())
    names = [node.name for node in model.get_outputs()]
    kinds = {"float32": "FP32", "int64": "INT64"}

    async def infer(request: web.Request) -> web.Response:
        length = int(request.headers["Inference-Header-Content-Length"])
        body = await request.read()
        tensor = json.loads(body[:length])["inputs"][0]
        x = np.frombuffer(body, np.float32, offset=length).reshape(tensor["shape"])
        arrays = model.run(names, {"x": x})
        outputs = [
            {
                "name": name,
                "datatype": kinds[array.dtype.name],
                "shape": array.shape,
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in zip(names, arrays, strict=True)
        ]
        head = json.dumps({"model_name": "bench", "outputs": outputs}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        answer = b"".join([head, *(array.tobytes() for array in arrays)])
        return web.Response(body=answer, headers=headers, content_type="application/octet-stream")

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v2/models/bench/infer", infer)
    web.run_app(app, path=sys.argv[2], print=None, access_log=None)


if __name__ == "__main__":
    main()
