"""Ask a module for predictions from an application on the same device: over shared memory, or HTTP where that is not.

Needs nothing but the standard library; NumPy only where arrays are wanted. Imports nothing of the agent.
"""
