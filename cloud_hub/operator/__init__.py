"""What runs on the operator's side: the `mooring` command, and the client of the hub's API that it and the demo use."""
