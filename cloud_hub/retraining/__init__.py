"""The way back to training: plans, runs of them, and how a candidate is held against the champion."""
