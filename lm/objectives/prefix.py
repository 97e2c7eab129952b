"""Prefix-LM (Liu et al. 2018; Raffel et al. 2020) and UL2's mixture of denoisers (Tay et al. 2022).

    python -m lm.objectives.prefix [--config=configs/prefix_nano.py]
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lm.corruption.layouts import Layout, Line, Sides, Symbols, capacity, draw
from lm.corruption.spans import Denoiser
from lm.data.rows.prompts import Prompt, answered, continued, encode
from lm.data.rows.records import Windows
from lm.errors import check, check_range
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Objective, fit
from lm.objectives.rows import guess, read, row_flops
from lm.objectives.span import denoised, sentinel_names, show


def ul2(regular: float = 2 / 7, extreme: float = 4 / 7, sequential: float = 1 / 7) -> tuple[Denoiser, ...]:
    """Return UL2's seven denoisers, all alike by default; the shares are those of the R, X and S ones together.

    Tay et al. 2022, table 1, where S is the last quarter of the text. Public reimplementations use 0.4, 0.4 and 0.2.
    """
    short = ((3, 0.15), (8, 0.15))
    long = ((3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5))
    r = [Denoiser(mean=mean, rate=rate, mode="[NLU]", weight=regular / len(short)) for mean, rate in short]
    x = [Denoiser(mean=mean, rate=rate, mode="[NLG]", weight=extreme / len(long)) for mean, rate in long]
    return (*r, *x, Denoiser(kind="end", rate=0.25, mode="[S2S]", weight=sequential))


@dataclass(frozen=True, kw_only=True)
class Prefix(Objective):
    """Inputs that see each other, then targets left to right; what is input and what target, `denoisers` say.

    The default cuts the text in two at a uniformly random place. A denoiser is drawn by weight for each row, or for each
    document with data.packing="documents". In a decoder alone one row holds the inputs and then the targets, and every
    denoiser takes as much text as fills `model.context`. An encoder-decoder takes as much as fits both contexts, which
    leaves its decoder partly empty where little is asked for; `waste` says how much. A record is long enough for every
    denoiser: those that need less take a random stretch of it, and records overlap so that an epoch still reads each
    token about once.
    """

    paper: ClassVar[str] = "Liu et al. 2018; Raffel et al. 2020 (prefix-LM); Tay et al. 2022 (UL2)"
    holds: ClassVar[str] = (
        "tokens targets weights segments positions (B, T); with a decoder alone prefix (B, T), "
        "else source source_segments source_positions (B, S)"
    )

    prefix: ClassVar[bool] = True

    model: Transformer | EncoderDecoder
    denoisers: tuple[Denoiser, ...] = (Denoiser(kind="split"),)
    z_loss: float = 0.0
    smoothing: float = 0.0
    chunk: int = 0
    # Filled in by `resolve`.
    separator: int | None = None
    end: int | None = None
    pad: int = 0
    sentinels: tuple[int, ...] = ()
    modes: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "denoisers", tuple(self.denoisers))
        check_range(self, 0, float("inf"), "chunk", "z_loss")
        check_range(self, 0, 1, "smoothing")
        check(sum(d.weight for d in self.denoisers) > 0, "denoisers: at least one needs a weight above 0")
        short = [d for d, raw in zip(self.denoisers, self.raw) if raw < 2]
        check(not short, f"model.context={self.model.context} has no room for {short[:1]}")

    @functools.cached_property
    def layout(self) -> Layout:
        if isinstance(self.model, EncoderDecoder):
            return Sides(self.model.encoder.context, self.model.decoder.context)
        return Line(self.model.context)

    @functools.cached_property
    def shares(self) -> np.ndarray:
        weights = np.array([denoiser.weight for denoiser in self.denoisers])
        return weights / weights.sum()

    @functools.cached_property
    def raw(self) -> tuple[int, ...]:
        """Tokens of text in a row, for each denoiser."""
        return tuple(capacity(self.layout, denoiser) for denoiser in self.denoisers)

    @functools.cached_property
    def symbols(self) -> Symbols:
        names = self.mode_names
        return Symbols(self.end, self.pad, np.array(self.sentinels, np.int32), dict(zip(names, self.modes)))

    @property
    def mode_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(d.mode for d in self.denoisers if d.mode))

    @property
    def records(self) -> Windows:
        return Windows(length=max(self.raw), stride=max(1, round(float(self.shares @ self.raw))))

    @property
    def plain(self) -> bool:
        """Running text in a decoder alone: no token is needed that the text has not."""
        return isinstance(self.layout, Line) and all(d.kind == "split" and not d.mode for d in self.denoisers)

    @property
    def special(self) -> tuple[str, ...]:
        if self.plain:
            return ()
        sentinels = max(d.sentinels(raw) for d, raw in zip(self.denoisers, self.raw))
        return ("[PAD]", "[SEP]", *self.mode_names, *sentinel_names(sentinels))

    def resolve(self, tokenizer):
        found = {"model": fit(self.model, tokenizer), "separator": tokenizer.separator, "end": tokenizer.separator}
        if not self.plain:
            pad, end, *rest = map(tokenizer.special_id, self.special)
            modes = len(self.mode_names)
            found |= {"pad": pad, "end": end, "modes": tuple(rest[:modes]), "sentinels": tuple(rest[modes:])}
        return dataclasses.replace(self, **found)

    def corrupt(self, rng, record):
        return draw(rng, record, self.denoisers, self.layout, self.symbols, self.separator)

    @property
    def writes(self):
        return "text" if isinstance(self.layout, Line) else "answer"

    def prompt(self, tokenizer, text):
        """Ask for what follows, as the first denoiser that takes the end of a text away does (UL2's S).

        Behind its mode token the text ends in a sentinel, which the answer then begins with. An empty text begins with
        the separator, as some rows of training do.
        """
        if self.writes == "answer":
            mode, hole = self.around
            found = answered(tokenizer, text, start=self.pad, begin=mode, end=[*hole, self.end])
            return Prompt(np.append(found.tokens, hole).astype(np.int32), found.source)
        return self.given(encode(tokenizer, text, False) if text else continued(tokenizer, text).tokens)

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """Ids before the text and, for the part that is missing, behind it."""
        asks = next((d for d in self.denoisers if d.kind in ("split", "end")), self.denoisers[0])
        mode = [self.symbols.modes[asks.mode]] if asks.mode else []
        return mode, [] if asks.kind == "split" else [self.sentinels[0]]

    def given(self, ids):
        mode, hole = self.around
        return Prompt(np.concatenate([mode, ids, *[hole, [self.end], hole] * bool(hole)]).astype(np.int32))

    def lead(self, tokenizer):
        return ()

    def stops(self, tokenizer):
        return () if self.end is None else (self.end,)

    def init(self, key, batch):
        if isinstance(self.model, EncoderDecoder):
            return Seq2Seq(self.model).init(key, batch["source"], batch["tokens"])["params"]
        return Model(self.model).init(key, batch["tokens"])["params"]

    def loss(self, params, batch, memory, keys_B):
        return denoised(self, params, batch, keys_B), memory

    def predict(self, params, batch):
        return guess(*read(self.model, params, batch, None))

    def show(self, tokenizer, example, found=None):
        return show(tokenizer, example, found, self.sentinels)

    def flops(self):
        return row_flops(self.model, *self.layout.room)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/prefix_nano.py")
