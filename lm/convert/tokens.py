"""The tokenizer's files of a folder: post-processing and special ids by which transformers encodes as in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lm.data.rows.templates import Frame, style_of
from lm.data.tokenizer import special
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.models.encoder_decoder import EncoderDecoder
from lm.strict_json import dump_json, load_json

ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
# Read by `generate` from generation_config.json.
GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_eos_token_id")


def special_ids(tokenizer: Tokenizer, settings: dict[str, Any], writes: bool = False) -> dict[str, int | None]:
    """Return the special ids for config.json from a tokenizer; transformers' defaults would be other tokens of ours.

    `settings`: the family's; `writes`: a text starts as in training, after the end of another.
    """
    size = settings["vocab_size"]

    def within(token: int | None) -> int | None:
        # A tokenizer may have more tokens than the network has rows: config.json must name none of those.
        return token if token is not None and token < size else None

    def known(name: str) -> int | None:
        found = special.find(tokenizer.core, name)
        return None if found is None else within(tokenizer.token_id(found))

    end = within(settings.get("eos_token_id", tokenizer.separator))
    roles = {f"{role}_token_id": known(name) for role, name in ROLES.items() if role in ("cls", "sep", "mask")}
    found = {name: token for name, token in roles.items() if token is not None}
    # Without a padding token, the end of text: transformers never takes that for a gap within one.
    found["pad_token_id"] = end if special.find(tokenizer.core, "[PAD]") is None else known("[PAD]")
    return found | {"eos_token_id": end, "bos_token_id": within(tokenizer.separator) if writes else None}


def framing(objective: Any, tokenizer: Tokenizer) -> tuple[list[list[int]], list[list[int]], bool] | None:
    """Return the ids around one text and around two (before, between, after), and whether the second has a type of its own.

    As the objective reads a text: a task by its frame, a generator by its prompt, an encoder by [CLS] and [SEP]. None
    without special tokens.
    """
    frame = objective.frame
    if frame is None and (objective.writes):
        if objective.writes == "answer" and objective.end is None:  # not resolved with a tokenizer yet
            return None
        # A prompt of a known text shows the ids around it, whatever the objective's rules for prompts are.
        text = tokenizer.decode([0]) if tokenizer.characters else "a"
        prompt, plain = objective.prompt(tokenizer, text), tokenizer.encode(text).tolist()
        whole = (prompt.tokens if prompt.source is None else prompt.source).tolist()
        at = next((i for i in range(len(whole)) if plain and whole[i : i + len(plain)] == plain), None)
        if at is None:
            return None
        before, after = whole[:at], whole[at + len(plain) :]
        return [before, [], after], [before, after, after], False
    if frame is None:
        lacks = any(special.find(tokenizer.core, name) is None for name in ("[CLS]", "[SEP]"))
        frame = None if lacks else Frame(tokenizer, style_of(tokenizer.core, "encoder"))
    return None if frame is None or frame.style == "xlnet" else (frame.around(1), frame.around(2), frame.style == "bert")


def templated(core: Any, around: tuple[list[list[int]], list[list[int]], bool] | None) -> Any:
    """Return a copy of a tokenizer with these ids as its template; itself where it has one."""
    from tokenizers import Tokenizer as Core
    from tokenizers import processors

    if core.post_processor is not None or around is None or not any(around[0]):
        return core
    one, two, typed = around
    second = int(typed)

    def pieces(ids: list[int], kind: int) -> list[str]:
        return [f"{core.id_to_token(int(i))}:{kind}" for i in ids]

    copy = Core.from_str(core.to_str())
    used = sorted({int(i) for i in np.concatenate([*one, *two]).tolist()})
    copy.post_processor = processors.TemplateProcessing(
        single=[*pieces(one[0], 0), "$A:0", *pieces(one[2], 0)],
        pair=[*pieces(two[0], 0), "$A:0", *pieces(two[1], 0), f"$B:{second}", *pieces(two[2], second)],
        special_tokens=[(core.id_to_token(i), i) for i in used],
    )
    return copy


def save(folder: Path, objective: Any, tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Write tokenizer.json and tokenizer_config.json; generation_config.json where the model writes."""
    core = templated(tokenizer.core, framing(objective, tokenizer))
    (folder / "tokenizer.json").write_text(core.to_str(pretty=True), encoding="utf-8")
    writes = objective.writes
    names = {f"{role}_token": special.find(core, name) for role, name in ROLES.items()}
    # `generate` reads these ids in config.json: the tokenizer's names must be of the same tokens.
    for role in ("bos", "eos", "pad") if writes else ("pad",):
        token = settings.get(f"{role}_token_id")
        name = core.id_to_token(token) if isinstance(token, int) else None
        names[f"{role}_token"] = name if name is not None else names.get(f"{role}_token")
    model = objective.model.encoder if isinstance(objective.model, EncoderDecoder) else objective.model
    typed = ["token_type_ids"] * (getattr(model, "types", 0) > 1)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": int(getattr(model, "context", 0)) or None,
        "model_input_names": ["input_ids", *typed, "attention_mask"],
        # The default deletes spaces before punctuation when it decodes: texts would not come back as they were.
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in names.items() if token is not None},
        # A field of ours: the document separator, which may differ from the end of an answer.
        "separator": None if tokenizer.separator is None else core.id_to_token(tokenizer.separator),
    }
    (folder / "tokenizer_config.json").write_text(dump_json(about, 1) + "\n", encoding="utf-8")
    if writes:
        generation(folder, settings)


def generation(folder: Path, settings: dict[str, Any]) -> None:
    """Write generation_config.json from a config.json."""
    found = {name: settings[name] for name in GENERATION if settings.get(name) is not None}
    (folder / "generation_config.json").write_text(dump_json(found, 1) + "\n", encoding="utf-8")


def update(folder: Path, settings: dict[str, Any]) -> None:
    """Update generation_config.json, if present, from another config.json."""
    file = folder / "generation_config.json"
    if file.exists():
        generation(folder, {**load_json(file, dict), **settings})
