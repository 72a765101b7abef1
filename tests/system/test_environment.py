"""A script with libraries that only its module carries: from the hub's build to a prediction on a device."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cloud_hub.building.request import BuildRequest
from cloud_hub.registry import NewModel
from modules.tensors import TensorSpec
from system.traffic import post
from system.world import EVERYTHING, HEALTH, PROFILE, World

pytestmark = pytest.mark.asyncio(loop_scope="session")
NAME = "greeter"
SCRIPT = b"""
import json, os, sys
import greeting, greeting.a, greeting.b
import numpy
def init():
    assert greeting.__file__.startswith(os.environ["AZUREML_MODEL_DIR"]), greeting.__file__
    assert numpy.__version__ != "2.1.0", "the shelf's numpy is not the device's"
def run(data):
    return [greeting.hello(name) for name in json.loads(data)["name"]]
"""


async def test_a_script_imports_libraries_that_came_with_its_module(world: World) -> None:
    folder = world.folder / "greeter"
    folder.mkdir()
    (folder / "notes.txt").write_text("the model is in the script")
    (folder / "entry.py").write_bytes(SCRIPT)
    (folder / "requirements.txt").write_text("greeting==1.0\nnumpy\n")
    np.savez(folder / "golden.npz", name=np.array([b"Ann"]), said=np.array([b"hello Ann"]))
    client = world.client
    await client.register(NewModel(NAME), {"notes.txt": folder / "notes.txt"})
    digests = [(await client.upload(folder / name)).sha256 for name in ("entry.py", "requirements.txt", "golden.npz")]
    name, said = TensorSpec("name", "BYTES", (-1,)), TensorSpec("said", "BYTES", (-1,))
    request = BuildRequest(
        NAME, 1, PROFILE, entry=digests[0], environment=digests[1], golden=digests[2], inputs=(name,), outputs=(said,),
        sampling=EVERYTHING, health=HEALTH,
    )  # fmt: skip
    await client.build(request)
    await client.sign(NAME, 1, PROFILE)
    async with world.device("libraries-1") as device:
        address = await world.roll_out(device, 1, NAME)
        tensor = {"name": "name", "datatype": "BYTES", "shape": [1], "data": ["Bob"]}
        body = json.dumps({"id": "greet-1", "inputs": [tensor]}).encode()
        status, (_, answer) = await post(address, f"/v2/models/{NAME}/infer", body, {})
        assert (status, json.loads(answer)["outputs"][0]["data"]) == (200, ["hello Bob"])
        status, (_, answer) = await post(address, "/score", b'{"name": ["Cy", "Di"]}', {})
        assert (status, json.loads(answer)) == (200, ["hello Cy", "hello Di"])
