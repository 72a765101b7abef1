"""Floor 2, hub side: registry, packaging, trust, devices, rollouts, monitoring, and the API over them."""

__version__ = "0.2.0"
