"""Floor 0: what a device is. Imports nothing of ours; everything above may import it."""
