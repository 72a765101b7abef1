"""What devices saw, counted: windows merge into looks, looks are weighed as evidence, evidence opens alerts.

Order of imports: evidence and effects (pure) < layout < looks < bases (what is compared with) < reports and spread (who
is behind it) < deciding < alerts. Beside them: ingest, which writes looks, and samples.
"""
