"""Blobs in a bucket of an S3-compatible store, with a local cache."""
