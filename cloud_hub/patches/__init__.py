"""Patches between the versions of a model: made in the background, offered per device."""
