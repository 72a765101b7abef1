"""The update as a persisted state machine: the table (states), the loop over it (engine), the work (steps)."""
