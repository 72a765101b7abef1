"""What this machine is and how it does, read from the kernel's own files; one file here for each subject.

Every reader takes a `Tree`, so that files captured from a device can be probed anywhere. Nothing is started and no
library loaded: what a backend can make of it is `agent.doctor`'s to try. What cannot be read is not there.
"""
