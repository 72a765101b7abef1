"""The hub's own state as Prometheus metrics: what is counted as it happens, and what is looked up now and then."""
