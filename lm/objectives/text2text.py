"""Text to text by labelled examples: translation, summarisation, dialogue; encoder-decoders, and decoders by prompt.

python -m lm.objectives.text2text [--config=configs/text2text_nano.py]
"""

import dataclasses
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import numpy as np

from lm.data.corpus.corpus import Corpus
from lm.data.labelled.check import check_tokens, items_of, refuse_empty
from lm.data.rows.examples import Examples, pair_lengths
from lm.data.rows.prompts import Prompt
from lm.data.rows.templates import Frame, Keep, cut
from lm.data.tokenizer import special
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Example
from lm.errors import check, check_choices, check_range
from lm.fields import derived
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Answers, Batch, Objective, Sums, fit
from lm.objectives.base import Example as Row
from lm.objectives.finetune import network
from lm.objectives.rows import forced, guess, lay, read, row_flops, show_pairs, target_sums


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Decoding of held-out sources for figures and files.

    `beams` (1: greedy search), `tokens`: maximum new tokens, `most`: number of examples, selected by hash (0: all).
    """

    beams: int = 1
    tokens: int = 64
    most: int = 200

    def __post_init__(self) -> None:
        check_range(self, 1, float("inf"), "beams", "tokens")
        check_range(self, 0, float("inf"), "most")


@dataclass(frozen=True, kw_only=True)
class Text2text(Objective):
    """Cross-entropy of each token of a target, given its source and the target's preceding tokens.

    `source` and `target` are templates over the values of an example: "summarize: {text}". A list in a source is written
    one item a line; as a target it is a list of references, of which the first is the training target. An example is
    refused where all values of a template are empty: of "{instruction} {input}" one may be. An encoder reads the source;
    a decoder alone reads it as a prompt, with bidirectional attention within it if `bidirectional` (prefix LM), and only
    the target has a loss.

    `lengths`: maximum tokens of a source and of a target (0: an encoder-decoder's contexts; half of a decoder's each). Longer
    texts lose their end; a source with `keep="end"` its start (dialogues), with "both" its middle. Rows hold as many examples
    as fit, which do not attend to each other, unless `pack` is off; `row` is their length on each side. `smoothing` e: e / (V
    - 1) on every wrong token (Szegedy et al. 2016; fairseq's form).
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
    # The decoder's start token on an encoder; None: </s> (BART), or padding where a vocabulary has no <s> (T5).
    start: int | None = None
    end: int | None = None  # end-of-sequence id of sources and targets; from `resolve`
    lead_ids: tuple[int, ...] = ()  # before a source (and BART's target), or before a decoder's prompt; from `resolve`
    tokenizer: Any = derived()

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, 0, 1, "smoothing")
        check_range(self, 0, float("inf"), "chunk")
        for name in ("source", "target"):
            check(bool(fields(getattr(self, name))), f"{name}={getattr(self, name)!r} names no value: write '{{name}}' in it")
        check(all(n >= 0 for n in self.lengths), f"lengths={self.lengths}: two numbers from 0 on")
        contexts, limits = self.contexts, self.limits
        check(
            all(a <= b for a, b in zip(limits, contexts)) and (self.paired or sum(limits) <= contexts[0]),
            f"lengths={self.lengths} is more than the model's context takes: {' and '.join(map(str, contexts))}",
        )
        check(min(limits) > 2, f"lengths={self.lengths} leaves no room for text")
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
        """Context lengths for the source and the target."""
        sides = (self.model.encoder, self.model.decoder) if isinstance(self.model, EncoderDecoder) else (self.model, self.model)
        return sides[0].context, sides[1].context

    @property
    def limits(self) -> tuple[int, int]:
        """Maximum tokens of a source and of a target, special tokens included."""
        contexts, (source, target) = self.contexts, self.lengths
        if self.paired:
            return source or contexts[0], target or contexts[1]
        target = target or (contexts[1] - source if source else contexts[1] // 2)
        return source or contexts[0] - target, target

    @property
    def sides(self) -> tuple[int, ...]:
        """Length of a row, on each side."""
        return self.row or (self.limits if self.paired else (sum(self.limits),))

    @property
    def special(self) -> tuple[str, ...]:
        return ("[SEP]",) if self.paired else ()

    @property
    def records(self) -> Examples:
        length = self.sides if self.paired else self.sides[0]
        return Examples(length=length, sizes=self.sizes, pack=self.pack, field="objective.row")

    # -- host ----------------------------------------------------------------------------------------------------------

    def resolve(self, tokenizer: Tokenizer) -> Self:
        if self.paired:
            begun, padded = (special.find(tokenizer.core, name) is not None for name in ("[CLS]", "[PAD]"))
            lead: tuple[int, ...] = (tokenizer.special_id("[CLS]"),) if begun else ()
            end = tokenizer.special_id("[SEP]")
            usual = tokenizer.special_id("[PAD]") if padded and not begun else end
            start = usual if self.start is None else self.start
        else:
            end, start = tokenizer.separator, None
            check(end is not None, "a decoder ends its answers with the tokenizer's separator: not Characters")
            lead = tuple(Frame(tokenizer, "decoder").lead()) or (end,)
        ids: dict[str, Any] = {"start": start, "end": end, "lead_ids": lead}
        return dataclasses.replace(self, model=fit(self.model, tokenizer), tokenizer=tokenizer, **ids)

    def study(self, corpus: Corpus) -> Self:
        """Check every example, and choose the length of a row from the first ones."""
        examples = network.examples_of(corpus)
        texts = [self.texts(example) for example in [*examples, *corpus.validation.examples]]
        if self.row or not self.pack:
            return self
        sizes = [size for example in examples[:2000] for size, _ in self.sizes(example)]
        limits = self.limits if self.paired else (sum(self.limits),)
        row = pair_lengths(sizes, limits)
        # A side shorter than `lengths` after the first examples: every example must fit.
        if any(a < b for a, b in zip(row, limits)):
            sources, targets = zip(*((source, references[0]) for source, references in texts))
            sides = map(self.encode_source, sources), map(self.encode_target, targets)
            least = [max(map(len, ids)) if a < b else 0 for ids, a, b in zip(sides, row, limits)]
            row = pair_lengths(sizes, limits, least)
        return dataclasses.replace(self, row=row)

    def texts(self, example: Example) -> tuple[str, list[str]]:
        """Return an example's source and its references; raises UserError where one is missing or empty."""
        (name, *more) = fields(self.target)
        several = not more and isinstance(example.values.get(name), list)
        values = items_of(example, name) if several else [None]
        if several:
            refuse_empty("".join(values), example.where, repr(name))
        return fill(self.source, example), [fill(self.target, example, value) for value in values]

    def lay(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the source and of the target, int32, special tokens included."""
        source, targets = self.texts(example)
        source_ids, target_ids, lead = self.encode_source(source), self.encode_target(targets[0]), len(self.lead_ids)
        check_tokens(len(source_ids) - lead - self.paired, source, example.where, "the source")
        check_tokens(len(target_ids) - lead * self.paired - 1, targets[0], example.where, "the target")
        return source_ids, target_ids

    def answer(self, example: Example) -> np.ndarray:
        """Return the ids of the target that follow `prompt_of`, int32."""
        return self.lay(example)[1][len(self.lead_ids) * self.paired :]

    def encode_source(self, source: str) -> np.ndarray:
        """Return the ids of a source as the network reads it; special tokens written in it are text."""
        tail = (self.end,) if self.paired else ()
        ids = cut(self.tokenizer.encode(source), self.limits[0] - len(self.lead_ids) - len(tail), self.keep)
        return np.array([*self.lead_ids, *ids, *tail], np.int32)

    def encode_target(self, target: str) -> np.ndarray:
        """Return the ids of a training target, with its end."""
        lead = self.lead_ids if self.paired else ()
        ids = cut(self.tokenizer.encode(target), self.limits[1] - len(lead) - 1, "start")
        return np.array([*lead, *ids, self.end], np.int32)

    def sizes(self, example: Example) -> list[tuple[Any, int]]:
        sizes = tuple(map(len, self.lay(example)))
        return [(sizes if self.paired else sum(sizes) - 1, 1)]

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Row:
        pairs = [self.lay(example) for example, _ in record["examples"]]
        if self.paired:
            sources, targets = zip(*pairs) if pairs else ((), ())
            return forced(sources, targets, self.sides, self.start)
        whole, length = [np.concatenate(pair) for pair in pairs], self.sides[0]
        tokens, segments, positions = lay([ids[:-1] for ids in whole], length)
        sizes = np.array([0, *(len(source) for source, _ in pairs)])[segments]  # length of each position's own source
        return {
            "tokens": tokens,
            "targets": lay([ids[1:] for ids in whole], length)[0],
            # The last token of a source predicts the first of its target.
            "weights": ((segments > 0) & (positions >= sizes - 1)).astype(np.float32),
            "segments": segments,
            "positions": positions,
            "prefix": (positions < sizes) & self.bidirectional,
        }

    def prompt(self, tokenizer: Tokenizer, text: str) -> Prompt:
        """Return the prompt of a text, filled into the source's template if that has one field."""
        names = fields(self.source)
        if len(names) == 1:
            check(bool(text), "an empty prompt: this model writes an answer to a source, give it a text")
            text = self.source.format_map({names[0]: text})
        known = self if self.tokenizer is tokenizer else self.resolve(tokenizer)
        return known.prompt_of(text)

    def prompt_of(self, source: str) -> Prompt:
        """Return the prompt of a whole source, truncated as in training."""
        ids = self.encode_source(source)
        return Prompt(np.array([self.start, *self.lead_ids], np.int32), ids) if self.paired else Prompt(ids)

    def stops(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return (self.end,)

    # -- after training ------------------------------------------------------------------------------------------------

    @property
    def answers(self) -> Answers:
        return Answers("texts", "writer", tuple(fields(self.source)))

    def placeholder(self, example: Example) -> dict[str, Any]:
        return dict.fromkeys((name for name in fields(self.target) if name not in fields(self.source)), ".")

    def unbounded(self, tokenizer: Tokenizer, examples: Sequence[Example]) -> Self:
        return dataclasses.replace(self, reply=dataclasses.replace(self.reply, most=0), pack=False, row=())

    # -- device --------------------------------------------------------------------------------------------------------

    def init(self, key: jax.Array, batch: Batch) -> Any:
        if isinstance(self.model, EncoderDecoder):
            return Seq2Seq(self.model).init(key, batch["source"], batch["tokens"])["params"]
        return Model(self.model).init(key, batch["tokens"])["params"]

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        sums = target_sums(*read(self.model, params, batch, keys_B), batch, smoothing=self.smoothing, chunk=self.chunk)
        sides = [batch[name] for name in ("segments", "source_segments") if name in batch]
        real, computed = zip(*(network.filled({"segments": side}) for side in sides))
        return {**sums, "filled": (sum(real), sum(computed))}, memory

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        return guess(*read(self.model, params, batch))

    def flops(self) -> float:
        return row_flops(self.model, *self.sides)

    # -- for people ----------------------------------------------------------------------------------------------------

    def show(self, tokenizer: Tokenizer, example: Row, outputs: Row | None = None) -> str:
        if self.paired:
            return show_pairs(tokenizer, example, outputs) if example["segments"].any() else network.EMPTY
        lines = []
        for number in range(1, int(example["segments"].max(initial=0)) + 1):
            own = example["segments"] == number
            target = own & (example["weights"] > 0)
            source = own & (np.cumsum(target) <= 1)  # the position of the first target reads the last token of the source
            lines.append(f"{'source':<9}{tokenizer.decode(example['tokens'][source], special=True)!r}")
            lines.append(f"{'target':<9}{tokenizer.decode(example['targets'][target], special=True)!r}")
            if outputs is not None:
                lines.append(f"{'guess':<9}{tokenizer.decode(outputs['guess'][target], special=True)!r}")
        return "\n".join(lines) or network.EMPTY


def fields(template: str) -> list[str]:
    """List the fields of a template; raises UserError for one that cannot be parsed."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        check(False, f"template {template!r}: {error}; write braces that are text twice")
    check(all(name.isidentifier() for name in names), f"template {template!r}: write a value's name in its braces")
    return list(dict.fromkeys(names))


def fill(template: str, example: Example, item: str | None = None) -> str:
    """Fill an example's values into a template, lists one item a line; `item` replaces the value of the only field."""
    values = {name: example.get(name, (str, int, float, list)) for name in fields(template)}
    listed = {name: "\n".join(items_of(example, name)) for name, value in values.items() if isinstance(value, list)}
    shown = values | listed if item is None else dict.fromkeys(values, item)
    # The template's own words would hide that all values are empty.
    refuse_empty("".join(map(str, shown.values())), example.where, " and ".join(map(repr, shown)))
    return template.format_map(shown)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/text2text_nano.py")
