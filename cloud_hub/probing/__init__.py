"""A look at a model in a process of its own: what it takes and gives, its known answers, its reference profile."""
