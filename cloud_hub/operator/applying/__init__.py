"""A fleet as a file: read, compared with the hub, and made so."""
