"""Families of published models, one file each: read `gpt` first, then `encoders`, `llama`, `t5`; the rest vary those.

A file holds a subclass of `lm.convert.family.Family` (its config.json, its two-way table of tensors, its heads) and a tuple
FAMILIES of the releases it covers. A new family is its file and its line in FAMILIES here.
"""

from functools import cache
from importlib import import_module

from lm.convert.family import Family
from lm.errors import unknown

# model_type of config.json -> the module here that has it, imported at the first use; or a family itself.
FAMILIES: dict[str, str | Family] = {
    "gpt2": "gpt",
    "openai-gpt": "gpt",
    "bert": "encoders",
    "ernie": "encoders",
    "megatron-bert": "megatron_bert",
    "roberta": "encoders",
    "albert": "albert",
    "distilbert": "distilbert",
    "electra": "electra",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "starcoder2": "starcoder2",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "t5": "t5",
    "mt5": "t5",
    "bart": "bart",
    "mbart": "bart",
    "marian": "bart",
    "xlnet": "xlnet",
    "transfo-xl": "transfoxl",
}


@cache
def of_module(module: str) -> dict[str, Family]:
    return {family.name: family for family in import_module(f"{__name__}.{module}").FAMILIES}


def family_named(name: str) -> Family:
    """Return the family of a model_type; UserError lists the known ones."""
    if name not in FAMILIES:
        raise unknown("model_type of config.json", name, list(FAMILIES))
    entry = FAMILIES[name]
    return of_module(entry)[name] if isinstance(entry, str) else entry


def all_families() -> list[Family]:
    return [family_named(name) for name in FAMILIES]
