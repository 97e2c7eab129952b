"""Searches, each a compiled loop over the steps of an architecture: settings and arrays in, ids and log-probabilities out.

Read in this order: contrastive (one text a prompt, the simplest loop), beam (pools of finished texts, diverse groups,
coverage; `reorder` moves its caches), speculative (two networks, tokens forgotten), then the models that predict masks:
masked (fill-mask, Gibbs sampling) and mask_predict (whole targets of a source).
"""
