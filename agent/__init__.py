"""Floor 2, device side: the daemon that pulls modules, runs them and sends back what they see."""

__version__ = "0.2.0"
