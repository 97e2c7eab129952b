"""From a corpus to batches. A row is int32 [length] arrays of tokens, segments and positions.

packing     windows of the stream and of long texts; documents grouped into rows
records     `Windows` and `Documents`: the input of one row of an objective
pipeline    `Batches`, training batches by step; `Evaluation`, the held-out split once; `prefetch`
examples    labelled examples packed into rows
templates   one or two texts in the layout of a published model
prompts     a user's text as a network's input before generation
"""
