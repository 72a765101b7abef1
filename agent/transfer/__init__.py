"""How a module's files get onto the device: whole, in blocks, or as a patch, from whoever has them; all verified."""
