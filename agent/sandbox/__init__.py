"""One confined worker process per module: protocol, host side, worker side."""
