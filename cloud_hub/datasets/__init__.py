"""Samples and windows as Parquet, and versioned data sets made of them."""
