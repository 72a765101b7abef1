"""Rollouts: a module goes to a fleet in ordered groups, and only what is verified healthy opens the next one."""
