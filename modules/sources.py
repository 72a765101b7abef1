"""Where a worker may take its inputs from by itself, without a request: declared here, allowed by the device.

Pure values with their checks; `agent.sources` runs them.
"""

from __future__ import annotations

import msgspec


class Directory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="directory"):
    """Files that appear in a folder, each one input; what was done with is remembered, never deleted.

    `path` is absolute; the device must allow it (`serving.sources`).
    """

    path: str
    pattern: str = "*"


Source = Directory
