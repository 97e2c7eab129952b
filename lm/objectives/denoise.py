"""Denoising of corrupted text by an encoder-decoder: BART (Lewis et al. 2020).

python -m lm.objectives.denoise [--config=configs/bart_nano.py]
"""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from lm.corruption import noise
from lm.data.rows.records import Windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check, check_choices, check_range
from lm.fields import derived
from lm.models.encoder_decoder import EncoderDecoder
from lm.objectives.base import Batch, Example, Objective, Sums, fit
from lm.objectives.rows import SourceTarget, forced, read, show_pairs, target_sums


@dataclass(frozen=True, kw_only=True)
class Denoise(SourceTarget, Objective):
    """Reconstruct a document from a corrupted copy: cross-entropy of every token (Lewis et al. 2020, 2.2).

    Noise, in this order: `permute` is the share of sentences shuffled; `share` of the words is removed, in spans of words
    with lengths from a Poisson distribution of mean `poisson`, or as single words or tokens, leaving "one" mask a span,
    "each" token a mask, or "none" (deletion); `random` of the masks are random tokens instead; `insert` adds masks, as
    that share of the remaining length; `rotate` is the probability to start the document at another token. The paper's
    token masking is units="tokens"; its deletion adds replace="none".

    Each document of a row is corrupted on its own, between <s> and </s>, for which the row's end is truncated. Words and
    sentence ends: `lm.data.tokenizer.vocabulary`. `length` of a row, 0: the model's context.
    """

    paper: ClassVar[str] = "Lewis et al. 2020 (BART)"

    model: EncoderDecoder
    share: float = 0.3
    units: Literal["spans", "words", "tokens"] = "spans"  # of the noise
    poisson: float = 3.0
    replace: noise.Replace = "one"  # masks put in place of a span
    permute: float = 1.0
    random: float = 0.0
    insert: float = 0.0
    rotate: float = 0.0
    length: int = 0
    chunk: int = 0
    template: bool = False  # prompts are encoded by the tokenizer's template (published models)
    start: int | None = None  # first id that the decoder reads (mBART: a language's); None: </s>
    begin: int | None = None  # ids of <s>, </s> and the document separator, set by `resolve`
    end: int | None = None
    separator: int | None = None
    pieces: Any = derived()
    fillers: Any = derived()

    def __post_init__(self):
        check_choices(self)
        for name in ("share", "permute", "random", "insert", "rotate"):
            check(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} must be from 0 to 1")
        check_range(self, 0.5, 60, "poisson")
        check_range(self, 0, float("inf"), "chunk")
        most = min(self.model.encoder.context, self.model.decoder.context)
        check(8 <= self.size <= most, f"length={self.size} must lie in 8..{most}, the model's context")

    @property
    def size(self) -> int:
        """Return the length of a row on both sides."""
        return self.length or min(self.model.encoder.context, self.model.decoder.context)

    @property
    def limits(self) -> tuple[int, int]:
        return self.size, self.size

    @property
    def special(self) -> tuple[str, ...]:
        return "[CLS]", "[SEP]", "[MASK]"

    @property
    def records(self) -> Windows:
        return Windows(length=self.size - 2, stride=self.size - 2)

    def resolve(self, tokenizer: Tokenizer) -> "Denoise":
        begin, end, mask = (tokenizer.special_id(name) for name in self.special)
        ids: dict[str, Any] = {"begin": begin, "end": end, "separator": tokenizer.separator}
        pieces = tokenizer.piece_table()
        # A special token in running text would give itself away as noise.
        fillers = noise.Fillers(mask=mask, random=self.random, ordinary=np.flatnonzero(~pieces.special))
        return dataclasses.replace(self, model=fit(self.model, tokenizer), pieces=pieces, fillers=fillers, **ids)

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        blocks = self.blocks(record["tokens"], record["segments"])
        return forced([self.corrupt_document(rng, block) for block in blocks], blocks, self.limits, self.start)

    def blocks(self, tokens: np.ndarray, segments: np.ndarray) -> list[np.ndarray]:
        """Split a record into documents, int32, each between <s> and </s>; together they fit the decoder."""
        size = np.count_nonzero(segments)
        cuts = [0, *(np.flatnonzero(np.diff(segments[:size])) + 1), size]
        remaining, blocks = self.size, []
        for low, high in itertools.pairwise(cuts):
            low += int(low < high and tokens[low] == self.separator)  # <s> and </s> mark the document in its place
            # The window leaves room for one pair of <s> and </s>; those of further documents displace text at the end.
            high = min(high, low + remaining - 2)
            if low < high:
                blocks.append(np.concatenate([[self.begin], tokens[low:high], [self.end]], dtype=np.int32))
                remaining -= len(blocks[-1])
        return blocks

    def corrupt_document(self, rng: np.random.Generator, block: np.ndarray) -> np.ndarray:
        """Apply the noise functions to one document, in the order of the class docstring."""
        if self.permute:
            # Sentences move first: the full stops that show where they end may be masked later.
            block = noise.permute_sentences(rng, block, self.pieces.ends_sentence[block], self.permute)
        if self.share:
            starts = np.ones(len(block), bool) if self.units == "tokens" else self.pieces.word_starts(block).copy()
            starts[[0, -1]] = False  # <s> and </s> are never masked
            if self.units == "spans":
                table = noise.poisson(self.poisson)
                block = noise.infill(rng, block, starts, self.share, table, self.fillers, self.replace)
            else:
                block = noise.mask(rng, block, starts, self.share, self.fillers, self.replace)
        if self.insert:
            block = noise.insert(rng, block, noise.budget(self.insert, len(block)), self.fillers)
        if self.rotate and rng.random() < self.rotate:
            block = noise.rotate(rng, block)
        return block

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        return target_sums(*read(self.model, params, batch, keys_B), batch, chunk=self.chunk), memory

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        return show_pairs(tokenizer, example, found, ("spoiled", "text"))


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/bart_nano.py")
