"""The errors of floor 1: something that was shipped or said does not have the form it must have."""

from __future__ import annotations

import msgspec


class ModuleError(Exception):
    """Base of this package. `key` is stable and may be shown, counted and matched."""

    key = "module-error"


class ManifestError(ModuleError):
    """The manifest is not one that this version understands."""

    key = "manifest-invalid"


class MessageError(ModuleError):
    """The bytes are not a message of this protocol version."""

    key = "message-invalid"


class TopicError(ModuleError):
    """The topic is not one of ours."""

    key = "topic-invalid"


class ConfigurationError(ModuleError):
    """A configuration, or the schema of one, that is not what both sides can keep and read alike."""

    key = "configuration-invalid"


class TargetError(ModuleError):
    """The custom part of a TUF target lacks our fields or has wrong ones."""

    key = "target-invalid"


class TensorError(ModuleError):
    """Name, datatype, shape and bytes of a tensor do not fit together."""

    key = "tensor-invalid"


class WindowError(ModuleError):
    """A window or reference profile that does not fit its own description."""

    key = "window-invalid"


class ChunkError(ModuleError):
    """A chunk list that does not add up to its file."""

    key = "chunks-invalid"


class PatchError(ModuleError):
    """A patch that is damaged, hostile, or for another base or target."""

    key = "patch-invalid"


# What reading bytes of strangers raises: msgspec's own error, its two that are not (text that is no UTF-8, nesting
# without end), and ours for values that do not fit. Whoever decodes catches these and raises its own error.
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ModuleError)
