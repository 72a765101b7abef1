"""What the agent as a whole tells Prometheus; each worker has a page of its own (`agent.endpoint.metrics`)."""
