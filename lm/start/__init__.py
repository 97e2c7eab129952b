"""The first parameters, network and tokenizer of a run whose config has a `start`: a run or a published folder.

In the order of reading: `adopt` (network and tokenizer, before anything is built), `begin` (parameters of a run), `published`
(parameters of a folder).
"""
