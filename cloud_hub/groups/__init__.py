"""Devices that people have put together by hand, and queries that they keep under a name.

`book` changes groups, `saved` changes queries, `resolving` puts saved queries in the place of their names and says
which devices a query means. Called by `api.groups`, and by every room that takes a query from a person.
"""
