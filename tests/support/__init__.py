"""Helpers shared by the tests of several rooms. Nothing here imports pytest fixtures or keeps state."""
