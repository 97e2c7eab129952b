"""Text rebuilt from a spoiled copy of itself: BART (Lewis et al. 2020).

    python -m lm.objectives.denoise [--config=configs/bart_nano.py]
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from lm.corruption import noise
from lm.data.rows.prompts import answered
from lm.data.rows.records import Windows
from lm.errors import check, check_choices, check_range
from lm.fields import derived
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.objectives.base import Objective, fit
from lm.objectives.rows import HOLDS, forced, guess, read, row_flops, show_pairs, target_sums


@dataclass(frozen=True, kw_only=True)
class Denoise(Objective):
    """Cross-entropy of every token of the text, given those before it and the spoiled text.

    The noise, in this order: `permute` is the share of sentences shuffled; `share` of the words is taken away, in spans
    of words whose lengths are Poisson with mean `poisson`, or one by one as words or as tokens, leaving "one" mask a
    span, "each" token a mask, or "none" (deletion); `random` of the masks are random tokens instead; `insert` puts masks
    in, as many as that share of what is left; `rotate` is the probability to let the text begin elsewhere. The paper's
    token masking is units="tokens"; its deletion that with replace="none".

    Each document of a row is spoiled on its own, between a <s> and a </s>; what these take is cut off at the row's end.
    Words and the ends of sentences are those of `lm.data.tokenizer.vocabulary`. `length` is a row's, 0: as long as the
    network takes.
    """

    paper: ClassVar[str] = "Lewis et al. 2020 (BART)"
    holds: ClassVar[str] = HOLDS
    writes: ClassVar[str] = "answer"

    model: EncoderDecoder
    share: float = 0.3
    units: Literal["spans", "words", "tokens"] = "spans"
    poisson: float = 3.0
    replace: noise.Replace = "one"
    permute: float = 1.0
    random: float = 0.0
    insert: float = 0.0
    rotate: float = 0.0
    length: int = 0
    chunk: int = 0
    template: bool = False  # prompts are encoded as the tokenizer's own files say (published models)
    start: int | None = None  # the id that begins what the decoder reads (in mBART's models a language's); None: </s>
    begin: int | None = None  # the ids of <s>, </s> and of what separates documents, filled in by `resolve`
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
        """Length of a row on both sides."""
        return self.length or min(self.model.encoder.context, self.model.decoder.context)

    @property
    def special(self):
        return "[CLS]", "[SEP]", "[MASK]"

    @property
    def records(self):
        return Windows(length=self.size - 2, stride=self.size - 2)

    def resolve(self, tokenizer):
        begin, end, mask = (tokenizer.special_id(name) for name in self.special)
        ids = {"begin": begin, "end": end, "separator": tokenizer.separator}
        pieces = tokenizer.piece_table()
        fillers = noise.Fillers(mask=mask, random=self.random, ordinary=np.flatnonzero(~pieces.special))
        return dataclasses.replace(self, model=fit(self.model, tokenizer), pieces=pieces, fillers=fillers, **ids)

    def corrupt(self, rng, record):
        blocks = self.blocks(record["tokens"], record["segments"])
        return forced([self.spoil(rng, block) for block in blocks], blocks, (self.size, self.size), self.start)

    def blocks(self, tokens: np.ndarray, segments: np.ndarray) -> list[np.ndarray]:
        """Cut a record into its documents, each from <s> to </s>, int32; all together they fit the decoder."""
        size = np.count_nonzero(segments)
        cuts = [0, *(np.flatnonzero(np.diff(segments[:size])) + 1), size]
        room, found = self.size, []
        for low, high in itertools.pairwise(cuts):
            low += int(low < high and tokens[low] == self.separator)
            high = min(high, low + room - 2)
            if low < high:
                found.append(np.concatenate([[self.begin], tokens[low:high], [self.end]], dtype=np.int32))
                room -= len(found[-1])
        return found

    def spoil(self, rng: np.random.Generator, block: np.ndarray) -> np.ndarray:
        """Apply the noise to one document."""
        if self.permute:
            block = noise.permute_sentences(rng, block, self.pieces.ends_sentence[block], self.permute)
        if self.share:
            starts = np.ones(len(block), bool) if self.units == "tokens" else self.pieces.word_starts(block).copy()
            starts[[0, -1]] = False
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

    def prompt(self, tokenizer, text):
        ends = {"start": self.end if self.start is None else self.start, "begin": [self.begin], "end": [self.end]}
        return answered(tokenizer, text, template=self.template, **ends)

    def stops(self, tokenizer):
        return (self.end,)

    def init(self, key, batch):
        return Seq2Seq(self.model).init(key, batch["source"], batch["tokens"])["params"]

    def loss(self, params, batch, memory, keys_B):
        return target_sums(*read(self.model, params, batch, keys_B), batch, chunk=self.chunk), memory

    def predict(self, params, batch):
        return guess(*read(self.model, params, batch))

    def show(self, tokenizer, example, found=None):
        return show_pairs(tokenizer, example, found, ("spoiled", "text"))

    def flops(self):
        return row_flops(self.model, self.size, self.size)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/bart_nano.py")
