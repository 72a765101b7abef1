"""Images for modules of kind `container`, built without an engine: a base's layers, the worker's, and the module's."""
