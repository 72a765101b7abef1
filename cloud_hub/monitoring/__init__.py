"""What devices saw, counted: windows merge into looks, looks are weighed as evidence, evidence opens alerts.

Order of imports: evidence and effects (pure) < layout < looks < ingest, alerts, samples.
"""
