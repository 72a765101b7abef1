"""A candidate beside the version that serves: fed the same inputs in the background, or a share of the requests.

The parent introduces two workers to each other (`introductions`, `tap`) and stays out of the way of the data: what the
serving worker gives the candidate goes through a socket pair of their own (`frames`). `beside` is the serving worker's
part, `intake` the candidate's.
"""
