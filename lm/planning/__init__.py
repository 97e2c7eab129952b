"""Plans for hardware that is not at hand: the train step compiled ahead of time, and its program read.

Read `step` first: it compiles the step of a config for `topologies` and collects the figures. `hlo` and `operations` read the
compiled program, `traced` the traced one; `roofline` bounds the time of a step with the rates of `hardware`; `search` ranks
meshes, micro-batches and remat policies; `pages` prints.
"""
