"""Floor 1: what is shipped and what is said. Pure: no sockets, no clock, no environment."""
