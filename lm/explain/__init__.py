"""Explanations: a network's predictions on one text, in one HTML page.

Read in this order: attribution (hidden states and attention that layers sow, logit lens, gradient x input, integrated
gradients, attention rollout), explain (a text laid out as the objective reads it, and all values of a page), page (those
values in the frame page.html), __main__ (the command; `numbers` parses --layers and --attribute before jax starts).
"""
