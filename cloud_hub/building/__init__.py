"""What a module is built from: the request, the environment of its script, its container."""
