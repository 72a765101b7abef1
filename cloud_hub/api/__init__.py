"""The HTTP interface: thin handlers, one file per room, over one table of routes."""
