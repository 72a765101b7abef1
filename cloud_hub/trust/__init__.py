"""Whom devices and hub trust: keys, certificates, and the two TUF repositories (image, and director per device)."""
