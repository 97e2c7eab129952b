"""A text from a text, by labelled examples: translation, summaries, replies; encoder-decoders, and decoders by prompt.

    python -m lm.objectives.text2text [--config=configs/text2text_nano.py]
"""

import dataclasses
import string
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lm.data.labelled.check import check_tokens, items_of, refuse_empty
from lm.data.rows.examples import Examples, pair_lengths
from lm.data.rows.prompts import Prompt
from lm.data.rows.templates import Frame, Keep, cut
from lm.data.tokenizer import special
from lm.data.types import Example
from lm.errors import check, check_choices, check_range
from lm.fields import derived
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Answers, Objective, fit
from lm.objectives.finetune import network
from lm.objectives.rows import forced, guess, lay, read, row_flops, show_pairs, target_sums


@dataclass(frozen=True, kw_only=True)
class Reply:
    """How held-out sources are answered for figures and files: by `beams` (1: greedily), in at most `tokens` tokens, the
    first `most` examples (0: all) in an order by hash.
    """

    beams: int = 1
    tokens: int = 64
    most: int = 200

    def __post_init__(self):
        check_range(self, 1, float("inf"), "beams", "tokens")
        check_range(self, 0, float("inf"), "most")


@dataclass(frozen=True, kw_only=True)
class Text2text(Objective):
    """Cross-entropy of each token of a target, given its source and the target's tokens before it.

    `source` and `target` are templates over the values of an example: "summarize: {text}". A value that is a list stands
    one item a line in a source; as a target it is a list of references, of which the first is learned. An example is refused
    where all values of a template are empty: of "{instruction} {input}" one may be. An encoder reads
    the source; a decoder alone reads it as a prompt, whose tokens see each other with `bidirectional` (prefix-LM), and
    only the target is asked for.

    `lengths`: tokens of a source and of a target at most (0: an encoder-decoder's contexts; of a decoder half of it each);
    what is longer loses its end, with `keep="end"` a source its beginning (dialogues), with "both" its middle. Rows hold as
    many examples as fit, which see nothing of each other, unless `pack` is off; `row` is their length on each side.
    `smoothing` e gives every wrong token e / (V - 1) (Szegedy et al. 2016; fairseq's form).
    """

    paper: ClassVar[str] = "Raffel et al. 2020 (T5), 2.4; Radford et al. 2019 (GPT-2), decoders by prompt"
    holds: ClassVar[str] = (
        "tokens targets weights segments positions (B, T); source source_segments source_positions (B, S), "
        "with a decoder alone prefix (B, T)"
    )
    writes: ClassVar[str] = "answer"

    model: Transformer | EncoderDecoder
    source: str = "{source}"
    target: str = "{target}"
    bidirectional: bool = False
    lengths: tuple[int, int] = (0, 0)
    keep: Keep = "start"
    pack: bool = True
    row: tuple[int, ...] = ()
    smoothing: float = 0.0
    chunk: int = 0
    reply: Reply = Reply()
    # The id that a decoder on an encoder reads first; None: </s> (BART), or padding where a vocabulary has no <s> (T5).
    start: int | None = None
    end: int | None = None  # the id that ends a source and a target; from `resolve`
    lead_ids: tuple[int, ...] = ()  # before a source (and BART's target), or before a decoder's prompt; from `resolve`
    tokenizer: Any = derived()

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, 1, "smoothing")
        check_range(self, 0, float("inf"), "chunk")
        for name in ("source", "target"):
            check(bool(fields(getattr(self, name))), f"{name}={getattr(self, name)!r} names no value: write '{{name}}' in it")
        check(all(n >= 0 for n in self.lengths), f"lengths={self.lengths}: two numbers from 0 on")
        room, most = self.contexts, self.limits
        check(
            all(a <= b for a, b in zip(most, room)) and (self.paired or sum(most) <= room[0]),
            f"lengths={self.lengths} is more than the model's context takes: {' and '.join(map(str, room))}",
        )
        check(min(most) > 2, f"lengths={self.lengths} leaves no room for text")
        check(not (self.paired and self.bidirectional), "bidirectional is for a decoder alone: an encoder sees all of a source")

    # -- sizes ---------------------------------------------------------------------------------------------------------

    @property
    def paired(self) -> bool:
        return isinstance(self.model, EncoderDecoder)

    @property
    def prefix(self) -> bool:
        return self.bidirectional

    @property
    def contexts(self) -> tuple[int, int]:
        """Tokens that the network takes of a source and of a target."""
        if self.paired:
            return self.model.encoder.context, self.model.decoder.context
        return self.model.context, self.model.context

    @property
    def limits(self) -> tuple[int, int]:
        """Tokens of a source and of a target at most, with what stands before and behind."""
        room = self.contexts
        if self.paired:
            return tuple(n or most for n, most in zip(self.lengths, room))
        target = self.lengths[1] or (room[1] - self.lengths[0] if self.lengths[0] else room[1] // 2)
        return self.lengths[0] or room[0] - target, target

    @property
    def sides(self) -> tuple[int, ...]:
        """Length of a row, on each side."""
        return self.row or (self.limits if self.paired else (sum(self.limits),))

    @property
    def special(self):
        return ("[SEP]",) if self.paired else ()

    @property
    def records(self):
        length = self.sides if self.paired else self.sides[0]
        return Examples(length=length, sizes=self.sizes, pack=self.pack, field="objective.row")

    # -- host ----------------------------------------------------------------------------------------------------------

    def resolve(self, tokenizer):
        if self.paired:
            begun, padded = (special.find(tokenizer.core, name) is not None for name in ("[CLS]", "[PAD]"))
            lead = (tokenizer.special_id("[CLS]"),) if begun else ()
            end = tokenizer.special_id("[SEP]")
            usual = tokenizer.special_id("[PAD]") if padded and not begun else end
            start = usual if self.start is None else self.start
        else:
            end, start = tokenizer.separator, None
            check(end is not None, "a decoder ends its answers with the tokenizer's separator: not Characters")
            lead = tuple(Frame(tokenizer, "decoder").lead()) or (end,)
        ids = {"start": start, "end": end, "lead_ids": lead}
        return dataclasses.replace(self, model=fit(self.model, tokenizer), tokenizer=tokenizer, **ids)

    def study(self, corpus):
        """Look at every example once, and choose the length of a row by the first ones."""
        examples = network.examples_of(corpus)
        texts = [self.texts(example) for example in [*examples, *corpus.validation.examples]]
        if self.row or not self.pack:
            return self
        sizes = [size for example in examples[:2000] for size, _ in self.sizes(example)]
        limits = self.limits if self.paired else (sum(self.limits),)
        row = pair_lengths(sizes, limits)
        if any(a < b for a, b in zip(row, limits)):  # a side that the first ones leave shorter than `lengths`: all must fit
            ways = (lambda source, _: self.asked(source)), (lambda _, targets: self.told(targets[0]))
            least = [max(len(way(*one)) for one in texts) if a < b else 0 for way, a, b in zip(ways, row, limits)]
            row = pair_lengths(sizes, limits, least)
        return dataclasses.replace(self, row=row)

    def texts(self, example: Example) -> tuple[str, list[str]]:
        """Give an example's source and its references; raises UserError where one is missing or empty."""
        (name, *more) = fields(self.target)
        several = not more and isinstance(example.values.get(name), list)
        values = items_of(example, name) if several else [None]
        if several:
            refuse_empty("".join(values), example.where, repr(name))
        return filled(self.source, example), [filled(self.target, example, one) for one in values]

    def lay(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Give the ids of a source and of a target, int32, with what stands before and behind each."""
        source, targets = self.texts(example)
        asked, told, lead = self.asked(source), self.told(targets[0]), len(self.lead_ids)
        check_tokens(len(asked) - lead - self.paired, source, example.where, "the source")
        check_tokens(len(told) - lead * self.paired - 1, targets[0], example.where, "the target")
        return asked, told

    def answer(self, example: Example) -> np.ndarray:
        """Give the ids that are to be written after `prompt_of`, int32."""
        return self.lay(example)[1][len(self.lead_ids) * self.paired :]

    def asked(self, source: str) -> np.ndarray:
        """Give the ids of a source as the network reads it; special tokens written in it are text."""
        tail = (self.end,) if self.paired else ()
        ids = self.cut(source, self.limits[0] - len(self.lead_ids) - len(tail), self.keep)
        return np.array([*self.lead_ids, *ids, *tail], np.int32)

    def told(self, target: str) -> np.ndarray:
        """Give the ids of a target as it is learned."""
        lead = self.lead_ids if self.paired else ()
        return np.array([*lead, *self.cut(target, self.limits[1] - len(lead) - 1), self.end], np.int32)

    def cut(self, text: str, room: int, keep: Keep = "start") -> list[int]:
        return cut(self.tokenizer.encode(text), room, keep).tolist()

    def sizes(self, example: Example) -> list[tuple[Any, int]]:
        sizes = tuple(map(len, self.lay(example)))
        return [(sizes if self.paired else sum(sizes) - 1, 1)]

    def corrupt(self, rng, record):
        pairs = [self.lay(example) for example, _ in record["examples"]]
        if self.paired:
            return forced(*zip(*pairs), self.sides, self.start) if pairs else forced([], [], self.sides, self.start)
        whole, length = [np.concatenate(pair) for pair in pairs], self.sides[0]
        tokens, segments, positions = lay([one[:-1] for one in whole], length)
        prompts = [np.arange(len(one) - 1) < len(source) for one, (source, _) in zip(whole, pairs)]
        inside = lay([prompt.astype(np.int32) for prompt in prompts], length)[0] > 0
        asked = lay([(np.arange(len(one) - 1) >= len(pair[0]) - 1).astype(np.int32) for one, pair in zip(whole, pairs)], length)
        return {
            "tokens": tokens,
            "targets": lay([one[1:] for one in whole], length)[0],
            "weights": asked[0].astype(np.float32),
            "segments": segments,
            "positions": positions,
            "prefix": inside & self.bidirectional,
        }

    def prompt(self, tokenizer, text):
        """Make the prompt of a text, put into the source's template where that names one value."""
        names = fields(self.source)
        if len(names) == 1:
            check(bool(text), "an empty prompt: this model writes an answer to a source, give it a text")
            text = self.source.format_map({names[0]: text})
        known = self if self.tokenizer is tokenizer else self.resolve(tokenizer)
        return known.prompt_of(text)

    def prompt_of(self, source: str) -> Prompt:
        """Make the prompt of a whole source, cut as in training."""
        ids = self.asked(source)
        return Prompt(np.array([self.start, *self.lead_ids], np.int32), ids) if self.paired else Prompt(ids)

    def stops(self, tokenizer):
        return (self.end,)

    # -- after training ------------------------------------------------------------------------------------------------

    @property
    def answers(self):
        return Answers("texts", "writer", tuple(fields(self.source)))

    def placeholder(self, example):
        return dict.fromkeys((name for name in fields(self.target) if name not in fields(self.source)), ".")

    def unbounded(self, tokenizer, examples):
        return dataclasses.replace(self, reply=dataclasses.replace(self.reply, most=0), pack=False, row=())

    # -- device --------------------------------------------------------------------------------------------------------

    def init(self, key, batch):
        if self.paired:
            return Seq2Seq(self.model).init(key, batch["source"], batch["tokens"])["params"]
        return Model(self.model).init(key, batch["tokens"])["params"]

    def loss(self, params, batch, memory, keys_B):
        found = read(self.model, params, batch, keys_B)
        sums = target_sums(*found, batch, smoothing=self.smoothing, chunk=self.chunk)
        sides = [batch[name] for name in ("segments", "source_segments") if name in batch]
        real, computed = zip(*(network.filled({"segments": side}) for side in sides))
        return {**sums, "filled": (sum(real), sum(computed))}, memory

    def predict(self, params, batch):
        return guess(*read(self.model, params, batch))

    def flops(self):
        return row_flops(self.model, *self.sides)

    # -- for people ----------------------------------------------------------------------------------------------------

    def show(self, tokenizer, example, found=None):
        if self.paired:
            return show_pairs(tokenizer, example, found) if example["segments"].any() else network.EMPTY
        lines = []
        for number in range(1, int(example["segments"].max(initial=0)) + 1):
            own = example["segments"] == number
            asked = own & (example["weights"] > 0)
            given = own & (np.cumsum(asked) <= 1)  # the place of the first target reads the last token of the source
            lines.append(f"{'source':<9}{tokenizer.decode(example['tokens'][given], special=True)!r}")
            lines.append(f"{'target':<9}{tokenizer.decode(example['targets'][asked], special=True)!r}")
            if found is not None:
                lines.append(f"{'guess':<9}{tokenizer.decode(found['guess'][asked], special=True)!r}")
        return "\n".join(lines) or network.EMPTY


def fields(template: str) -> list[str]:
    """List the names in a template; raises UserError where it is not one."""
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        check(False, f"template {template!r}: {error}; write braces that are text twice")
    check(all(name.isidentifier() for name in found), f"template {template!r}: write a value's name in its braces")
    return list(dict.fromkeys(found))


def filled(template: str, example: Example, one: str | None = None) -> str:
    """Put an example's values into a template, lists one item a line; `one` in place of the value where it is a list."""
    values = {name: example.get(name, (str, int, float, list)) for name in fields(template)}
    listed = {name: "\n".join(items_of(example, name)) for name, value in values.items() if isinstance(value, list)}
    shown = values | listed if one is None else dict.fromkeys(values, one)
    # What stands around the values would hide that there is nothing in them.
    refuse_empty("".join(map(str, shown.values())), example.where, " and ".join(map(repr, shown)))
    return template.format_map(shown)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/text2text_nano.py")
