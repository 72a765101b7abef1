"""Ask a module for predictions from an application on the same device: over shared memory, or HTTP where that is not.

Needs nothing but the standard library; NumPy only where arrays are wanted. Imports nothing of the agent.

    from mooring_client import Client

    with Client("digits") as digits:
        print(digits.predict(x=rows)["label"])
"""

from typing import TYPE_CHECKING

from mooring_client.client import Client
from mooring_client.errors import ClientError, Gone, Refused, Timeout
from mooring_client.prediction import Prediction
from mooring_client.tensors import Spec, Tensor

if TYPE_CHECKING:
    from mooring_client.aio import AsyncClient

__all__ = ["AsyncClient", "Client", "ClientError", "Gone", "Prediction", "Refused", "Spec", "Tensor", "Timeout"]


def __getattr__(name: str) -> object:
    """Importing asyncio takes longer than all the rest, and plain applications do not need it."""
    if name == "AsyncClient":
        from mooring_client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
