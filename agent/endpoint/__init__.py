"""The module's endpoint: Open Inference Protocol v2 over HTTP, in the worker process.

`http` moves requests and replies over connections, `oip` gives them their meaning, `codec` turns bytes into arrays,
`predictor` runs the backend, `counters` counts.
"""
