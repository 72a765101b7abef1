"""What a worker counts of its predictions: cells, moments, joint sums, in windows of the time that rows are of.

Arrays in, windows out, in the worker's process. Samples of single predictions are `agent.sampling`'s.
"""
