"""Several processes of one hub: who does what only one may do, and what each is called at the broker.

`lease` is the right to do it, `settings` how replicas are told from each other, `names` their certificates. What else
stands in a process's memory, and why that is right with several, is in docs/operate/replicas.md.
"""
