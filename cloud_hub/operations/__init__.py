"""Long operations: what was asked for over the API and takes longer than one likes to wait for an answer."""
