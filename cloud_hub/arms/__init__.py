"""Versions of a module against each other, on the same devices or on arms of devices. Made by `service`."""
