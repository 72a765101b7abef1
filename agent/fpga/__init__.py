"""The device's FPGA: programming it with what a verified module brings, and handing a worker what it runs through.

The agent's side; no heavy imports. The worker's side is `agent.backends.fpga`.
"""
