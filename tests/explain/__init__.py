"""Explanations beside torch and transformers on random models."""

from lm.convert.convert import load


def opened(models, name):
    theirs, folder = models[name]
    loaded = load(folder)
    return theirs, loaded.objective.resolve(loaded.tokenizer), loaded.params, loaded.tokenizer
