"""Cuts and faults under a real agent's file operations, and what a power cut leaves: docs/understand/power-cuts.md."""
