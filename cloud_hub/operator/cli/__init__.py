"""The `mooring` command: what operators and publishers type. Parses, calls the client, prints; decides nothing."""

from cloud_hub.operator.cli.root import app, main

__all__ = ["app", "main"]
