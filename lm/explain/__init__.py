"""Explanations: a network's predictions on one text, in one HTML page; each part a function that returns arrays.

Read in this order: attribution (hidden states and attention that layers sow, logit lens, gradient x input, integrated
gradients, attention rollout), explain (a text laid out as the objective reads it, and its predictions), labelled and nearest
(labels of fine-tuned networks, and their nearest training examples). Then, in any order: ablation (heads, neurons),
tuned_lens, compare (two networks on one text), embeddings (nearest tokens, map), probing. Last contents (all values of a
page, by its options), panels and page (those values in the frame page.html), __main__ (the command; `numbers` parses
--layers and --attribute before jax starts).
"""
