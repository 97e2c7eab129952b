"""Prefix-LM (Liu et al. 2018; Raffel et al. 2020) and UL2's mixture of denoisers (Tay et al. 2022).

python -m lm.objectives.prefix [--config=configs/prefix_nano.py]
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from lm.corruption.layouts import Layout, Line, Sides, Symbols, capacity, draw
from lm.corruption.spans import Denoiser
from lm.data.rows.prompts import Prompt, answered, continued, encode
from lm.data.rows.records import Windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check, check_range
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.objectives.base import Batch, Example, Objective, Sums, fit
from lm.objectives.rows import SourceTarget
from lm.objectives.span import denoised, sentinel_names, show_documents


def ul2(regular: float = 2 / 7, extreme: float = 4 / 7, sequential: float = 1 / 7) -> tuple[Denoiser, ...]:
    """Return UL2's seven denoisers, of equal weight by default; the arguments are the total weights of R, X and S.

    Tay et al. 2022, table 1, where S is the last quarter of the text. Public reimplementations use 0.4, 0.4 and 0.2.
    """
    short = ((3, 0.15), (8, 0.15))
    long = ((3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5))
    r = [Denoiser(mean=mean, rate=rate, mode="[NLU]", weight=regular / len(short)) for mean, rate in short]
    x = [Denoiser(mean=mean, rate=rate, mode="[NLG]", weight=extreme / len(long)) for mean, rate in long]
    return (*r, *x, Denoiser(kind="end", rate=0.25, mode="[S2S]", weight=sequential))


@dataclass(frozen=True, kw_only=True)
class Prefix(SourceTarget, Objective):
    """Split a text into inputs, attended to in both directions, and targets, written left to right, by `denoisers`.

    The default splits at a uniformly random position (Raffel et al. 2020, 3.2.1). A denoiser is drawn by weight for each
    row, or for each document with data.packing="documents". A decoder alone reads inputs and targets in one row, and each
    denoiser takes as much text as fills `model.context`. An encoder-decoder takes as much as fits both contexts, which
    leaves its decoder partly empty where targets are short. A record is long enough for every denoiser: one that
    needs less takes a random stretch of it, and records overlap so that an epoch reads each token about once.
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
    # Ids, set by `resolve`.
    separator: int | None = None
    end: int | None = None
    pad: int = 0
    sentinels: tuple[int, ...] = ()
    modes: tuple[int, ...] = ()

    def __post_init__(self):
        # A list would leave the frozen objective without a hash.
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

    @property
    def limits(self) -> tuple[int, ...]:
        return self.layout.room

    @functools.cached_property
    def shares(self) -> np.ndarray:
        weights = np.array([denoiser.weight for denoiser in self.denoisers])
        return weights / weights.sum()

    @functools.cached_property
    def raw(self) -> tuple[int, ...]:
        """Return the number of text tokens in a row, for each denoiser."""
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
        """Return whether no special token is needed: plain splits, in a decoder alone."""
        return isinstance(self.layout, Line) and all(d.kind == "split" and not d.mode for d in self.denoisers)

    @property
    def special(self) -> tuple[str, ...]:
        if self.plain:
            return ()
        sentinels = max(d.sentinels(raw) for d, raw in zip(self.denoisers, self.raw))
        return ("[PAD]", "[SEP]", *self.mode_names, *sentinel_names(sentinels))

    def resolve(self, tokenizer: Tokenizer) -> "Prefix":
        ids: dict[str, Any] = {"separator": tokenizer.separator, "end": tokenizer.separator}
        # A plain split needs no token beside the separator; all else has padding, an end, modes and sentinels.
        if not self.plain:
            pad, end, *rest = map(tokenizer.special_id, self.special)
            modes = len(self.mode_names)
            ids |= {"pad": pad, "end": end, "modes": tuple(rest[:modes]), "sentinels": tuple(rest[modes:])}
        return dataclasses.replace(self, model=fit(self.model, tokenizer), **ids)

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        return draw(rng, record, self.denoisers, self.layout, self.symbols, self.separator)

    @property
    def writes(self) -> str:
        return "text" if isinstance(self.layout, Line) else "answer"

    def prompt(self, tokenizer: Tokenizer, text: str) -> Prompt:
        """Lay the text out as the first denoiser whose targets end the text (UL2's S), to continue it.

        The mode token comes first; a sentinel ends the text, and starts the answer. An empty text starts with the
        separator, as some rows of training do.
        """
        if self.writes == "answer":
            mode, hole = self.around
            prompt = answered(tokenizer, text, start=self.pad, begin=mode, end=[*hole, self.end])
            return Prompt(np.append(prompt.tokens, hole).astype(np.int32), prompt.source)
        return self.given(encode(tokenizer, text, False) if text else continued(tokenizer, text).tokens)

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """Return the mode id before the text and the sentinel of the missing end behind it, where there are such."""
        denoiser = next((d for d in self.denoisers if d.kind in ("split", "end")), self.denoisers[0])
        mode = [self.symbols.modes[denoiser.mode]] if denoiser.mode else []
        return mode, [] if denoiser.kind == "split" else [self.sentinels[0]]

    def given(self, ids: np.ndarray) -> Prompt:
        mode, hole = self.around
        # As training lays a line out: text, sentinel of the missing rest, end, and the sentinel that opens the targets.
        return Prompt(np.concatenate([mode, ids, *[hole, [self.end], hole] * bool(hole)]).astype(np.int32))

    def lead(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return ()

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        return denoised(self, params, batch, keys_B), memory

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        return show_documents(tokenizer, example, found, self.sentinels)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/prefix_nano.py")
