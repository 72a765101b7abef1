"""A registry with models in it, files in the blobs, and the packaging that builds modules of them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from cloud_hub.blobs import FolderBlobs
from cloud_hub.building.request import BuildRequest
from cloud_hub.building.resolve import Resolver
from cloud_hub.events import Events
from cloud_hub.packaging import Packaging
from cloud_hub.registry import NewModel, Registry
from cloud_hub.store.engine import Store
from firmware_profiles.catalog import built_in
from modules.manifest import Manifest, decode_manifest
from support.clock import SetClock

PROFILE = "generic-x86_64"


class Shop:
    """Of the model `name`, in versions that count up with `register`."""

    def __init__(
        self,
        store: Store,
        blobs: FolderBlobs,
        events: Events,
        clock: SetClock,
        resolver: Resolver | None = None,
        name: str = "iris",
    ) -> None:
        self.blobs = blobs
        self.name = name
        self.registry = Registry(store, blobs, events, clock)
        self.packaging = Packaging(store, blobs, events, self.registry, built_in(), "acme", clock, resolver)

    async def register(self, **files: bytes) -> None:
        """An underscore in a name is a point in the file's."""
        digests = {path.replace("_", "."): (await self.blobs.put(body), len(body)) for path, body in files.items()}
        await self.registry.register(NewModel(self.name, author="Ann", git_commit="abc123"), digests, "ann")

    async def arrays(self, **arrays: Any) -> str:
        """The digest of an .npz."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return await self.blobs.put(buffer.getvalue())

    async def build(self, version: int = 1, **fields: Any) -> Manifest:
        await self.packaging.build(BuildRequest(self.name, version, **({"profile": PROFILE} | fields)), "ann")
        return await self.manifest(version)

    async def manifest(self, version: int = 1) -> Manifest:
        return decode_manifest(await self.packaging.manifest(self.name, version, PROFILE))


def linear(factor: float, give: str = "y", take: str = "x", columns: int = 2) -> bytes:
    """An ONNX model that multiplies `columns` numbers by a factor."""
    graph = helper.make_graph(
        [helper.make_node("Mul", [take, "factor"], [give])],
        "linear",
        [helper.make_tensor_value_info(take, TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info(give, TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
