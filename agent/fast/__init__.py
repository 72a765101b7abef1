"""Predictions over shared memory for applications on the device: the worker's side. The other is `mooring_client`."""
