"""Several processes of one hub: who does what only one may do, and what each is called at the broker.

`lease` is the right to do it, `joining` makes a replica's directory and name, `rereading` and `turns` are what sharing
messages asks for, `room` has it all. What else stands in a process's memory, and why that is right with several, is in
docs/operate/scale-out.md.
"""
