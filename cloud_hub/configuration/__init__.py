"""Configuration of modules: revisions, overrides by group and device, checked by schemas, rolled out like versions."""
