"""Which libraries a module never brings: those that the device's own worker has loaded, and those that Azure needs.

Python loads a library once per process, and the worker is built on some: a second NumPy beside the first is not to be
had. A script gets the device's; what the script's libraries ask of it is held against what every device has. Pure;
called by `requirements` and `resolve`.
"""

from __future__ import annotations

# Name -> what every device of this version has, as `pyproject.toml` asks for it (a test holds them together).
DEVICE = {
    "ai-edge-litert": ">=1.2",
    "httptools": ">=0.7",
    "msgspec": ">=0.20",
    "numpy": ">=2.0",
    "onnxruntime": ">=1.22",
    "onnxruntime-gpu": ">=1.22",
    "pyseccomp": ">=0.1.2",
    "tflite-runtime": ">=2.14",
}
# The serving stack of Azure ML: the worker's own endpoint takes its place, see docs/extend/entry-scripts.md.
SERVING = frozenset({"azureml-contrib-services", "azureml-defaults", "azureml-inference-server-http", "mooring"})
