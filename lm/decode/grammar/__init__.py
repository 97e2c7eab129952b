"""Constrained decoding: regular expressions and JSON schemas as automata over a tokenizer's vocabulary.

Read in this order: character_ranges (characters as UTF-8 byte ranges), automaton (an expression as a minimal automaton over
bytes), keywords and schema (a JSON schema as an expression), constrained (an automaton over tokens, as tables on the device).
Nothing but constrained knows jax or tokenizers.
"""
