"""What comes back of predictions: chosen, redacted, kept in a ring, bounded in bytes. Worker side, but for `quota`.

Nothing is imported here: the agent's parent takes `quota` alone, without NumPy.
"""
