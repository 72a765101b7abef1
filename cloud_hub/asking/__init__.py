"""What the hub asks of devices beside their desired state, what of it comes back in pieces, and sampling policies."""
