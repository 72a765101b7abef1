"""A fleet in one process: devices that speak the real protocol with real keys and signatures, and have no model."""
