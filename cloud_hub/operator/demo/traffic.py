"""An application on a device: sends images to the local endpoint and keeps the answers.

Plain HTTP and the Open Inference Protocol v2, as any program in any language would do it; nothing of Mooring is used.
Blocking, so callers run it in a thread.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cloud_hub.operator.demo.digits import INPUT, Array, Images

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Answers:
    """The devices' labels, int64 [n], in the order of the images, and the prediction ids they were given."""

    labels: Array
    ids: tuple[str, ...]


class RequestFailed(Exception):
    """The endpoint did not answer a prediction."""


def send(endpoint: str, model: str, images: Images, prefix: str) -> Answers:
    """One request for each image, one after the other over one connection. Raises RequestFailed."""
    address = urlsplit(endpoint)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=TIMEOUT_S)
    ids = tuple(f"{prefix}-{index}" for index in range(len(images)))
    try:
        labels = [_predict(connection, model, id_, row) for id_, row in zip(ids, images.pixels, strict=True)]
    finally:
        connection.close()
    return Answers(np.array(labels, dtype=np.int64), ids)


def _predict(connection: http.client.HTTPConnection, model: str, id_: str, row: Array) -> int:
    tensor = {"name": INPUT, "shape": [1, len(row)], "datatype": "FP32", "data": row.tolist()}
    body = json.dumps({"id": id_, "inputs": [tensor]})
    try:
        connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RequestFailed(f"prediction {id_}: {error}") from error
    if response.status != 200:
        raise RequestFailed(f"prediction {id_}: status {response.status}, {answer}")
    # Of the model's two outputs the label is the integer one.
    return next(int(output["data"][0]) for output in answer["outputs"] if output["datatype"] == "INT64")
