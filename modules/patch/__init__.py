"""Exact patches between two versions of a model file: the format and its streamed decoder.

The device's decoder process and the hub's encoder call `apply`; nothing here opens a file, a socket or a clock. The
format is described byte by byte in docs/understand/patches.md.
"""

from modules.patch.decoder import apply

__all__ = ["apply"]
