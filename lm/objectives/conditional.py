"""Conditional masked language modelling, for parallel decoding: Mask-Predict (Ghazvininejad et al. 2019).

python -m lm.objectives.conditional [--config=configs/mask_predict_nano.py]
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.packing import lay
from lm.data.rows.records import Documents
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check_range
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import Head, cross_entropy
from lm.models.layers import Embed
from lm.objectives.base import Batch, Example, Objective, Sums, fit
from lm.objectives.rows import HOLDS, row_flops, show_pairs
from lm.objectives.seq2seq import closed


@dataclass(frozen=True, kw_only=True)
class Conditional(Objective):
    """Cross-entropy of masked target tokens, given the source and the other target tokens, and of the target's length.

    Of N tokens (the end token included) n are masked, n uniform in 1 ... N - 1, contiguous with `run` (section 3.2). The
    decoder is not causal. A length slot before each source, hidden from the decoder, predicts N: the logits are its last
    state times a table whose row 0 is the slot's own embedding and whose row N stands for length N. Both sums are divided
    by the number of masked tokens. `smoothing` e is spread over all V tokens, the right one too, but not over lengths.

    The slot shares position 0 with the first token; the released code adds no position to it, which only shifts the
    value of row 0.
    """

    paper: ClassVar[str] = "Ghazvininejad et al. 2019 (Mask-Predict)"
    holds: ClassVar[str] = f"{HOLDS}; lengths (B, S)"
    fills: ClassVar[tuple[str, ...]] = ("mask_predict",)

    model: EncoderDecoder
    smoothing: float = 0.0
    run: bool = False
    pack: bool = True
    chunk: int = 0
    end: int | None = None  # ids, set by `resolve`
    mask: int | None = None

    def __post_init__(self):
        check_range(self, 0, 1, "smoothing")
        check_range(self, 0, float("inf"), "chunk")

    @property
    def special(self) -> tuple[str, ...]:
        return "[SEP]", "[MASK]"

    @property
    def limits(self) -> tuple[int, int]:
        return self.model.encoder.context, self.model.decoder.context

    @property
    def records(self) -> Documents:
        return Documents(fields=2, limit=self.limits, ends=(2, 1), pack=self.pack)

    @property
    def scales(self) -> Mapping[str, float]:
        return {"masked": 1.0, "length": 1.0}

    def resolve(self, tokenizer: Tokenizer) -> "Conditional":
        end, mask = (tokenizer.special_id(name) for name in self.special)
        return dataclasses.replace(self, model=fit(self.model, tokenizer), end=end, mask=mask)

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        capacity, limit = self.limits
        # The slot takes one position of each source; its id is never embedded (`states` puts row 0 of the table there).
        sources, targets = closed(record["documents"], (capacity - 1, limit), self.end)
        slots = [np.concatenate([[0], source], dtype=np.int32) for source in sources]
        source, source_segments, source_positions = lay(slots, capacity)
        labels, segments, positions = lay(targets, limit)
        first = np.flatnonzero((source_segments > 0) & (source_positions == 0))
        lengths = np.zeros(capacity, np.int32)  # at each slot the target's length, 0 elsewhere
        lengths[first] = np.bincount(segments, minlength=len(targets) + 1)[1 : len(first) + 1]
        chosen = self.choose(rng, segments)
        return {
            "source": source,
            "source_segments": source_segments,
            "source_positions": np.maximum(source_positions - 1, 0),
            "lengths": lengths,
            "tokens": np.where(chosen, np.int32(self.mask), labels),
            "targets": labels,
            "weights": chosen.astype(np.float32),
            "segments": segments,
            "positions": positions,
        }

    def choose(self, rng: np.random.Generator, segments: np.ndarray) -> np.ndarray:
        """Draw the masked tokens of each segment, 1 ... N - 1 of its N: bool [T]."""
        sizes = np.bincount(segments)
        sizes[0] = 0  # padding
        # Uniform, not 15 %: decoding starts from masks alone and keeps more each time, so every share must be trained.
        counts = rng.integers(1, np.maximum(sizes, 2))
        draws = np.zeros(len(segments)) if self.run else rng.random(len(segments))
        order = np.lexsort((draws, segments))  # by segment, in a random order within each
        number = segments[order]
        rank = np.arange(len(segments)) - np.searchsorted(number, number)
        if self.run:  # a window of `counts` ranks at a uniform offset
            rank = rank - rng.integers(0, np.maximum(sizes - counts, 0) + 1)[number]
        chosen = np.zeros(len(segments), bool)
        chosen[order] = (rank >= 0) & (rank < counts[number]) & (number > 0)
        return chosen

    def init(self, key: jax.Array, batch: Batch) -> Any:
        words, lengths = jax.random.split(key)
        pair = Seq2Seq(self.model).init(words, batch["source"], batch["tokens"])["params"]
        return {**pair, "lengths": self.table.init(lengths, batch["lengths"], jnp.float32)["params"]}

    @property
    def table(self) -> Embed:
        """Return the embeddings of the slot (row 0) and of each length."""
        return Embed(self.model.context + 1, self.model.width, axis=None, std=self.model.encoder.init)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        masked = batch["weights"].sum()
        return {"masked": masked, "length": masked}

    def states(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> tuple[jax.Array, jax.Array, Head]:
        """Return the states of source (B, S, D) and target (B, T, D), and the length head, whose class k is length k + 1."""
        pair, variables = Seq2Seq(self.model), {"params": {k: v for k, v in params.items() if k != "lengths"}}
        table_LD = params["lengths"]["table"]
        # The encoder sees the slot in place of a token's embedding; for the decoder it is padding.
        slots_BS, segments_BS = batch["lengths"] > 0, batch["source_segments"]
        x_BSD = pair.apply(variables, batch["source"], method="vectors")
        x_BSD = jnp.where(slots_BS[..., None], table_LD[0].astype(x_BSD.dtype), x_BSD)
        layout = batch["source_positions"], segments_BS, keys_B
        source_BSD = pair.apply(variables, x_BSD, *layout, method="encode_states")
        source = {"source_BSD": source_BSD, "source_segments_BS": jnp.where(slots_BS, 0, segments_BS)}
        layout = batch["tokens"], batch["positions"], batch["segments"]
        h_BTD = pair.apply(variables, *layout, keys_B=keys_B, causal=False, method="decode", **source)
        return source_BSD, h_BTD, Head(table_VD=table_LD[1:], vocab=self.model.context)

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        source_BSD, h_BTD, lengths = self.states(params, batch, keys_B)
        head = self.head(params)
        words = cross_entropy(h_BTD, head, batch["targets"], batch["weights"], smoothing=self.smoothing, chunk=self.chunk)
        slots_BS = (batch["lengths"] > 0).astype(jnp.float32)
        # Off the slots the weight is 0 and the label, length 1, arbitrary.
        length = cross_entropy(source_BSD, lengths, jnp.maximum(batch["lengths"] - 1, 0), slots_BS)
        masked, pairs = batch["weights"].sum(), slots_BS.sum()
        return {
            "masked": (words["total"], masked),
            "length": (length["total"], masked),
            "nll": (words["nll"], masked),
            "accuracy": (words["hits"], masked),
            "length_nll": (length["nll"], pairs),
            "length_accuracy": (length["hits"], pairs),
        }, memory

    def head(self, params: Any) -> Head:
        """Return the vocabulary head."""
        variables = {"params": {k: v for k, v in params.items() if k != "lengths"}}
        return Seq2Seq(self.model).apply(variables, method="head")

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        source_BSD, h_BTD, lengths = self.states(params, batch)
        guess_BT = jnp.argmax(self.head(params).logits(h_BTD), -1)
        filled_BT = jnp.where(batch["weights"] > 0, guess_BT, batch["targets"])
        return {"guess": filled_BT, "lengths": jnp.argmax(lengths.logits(source_BSD), -1) + 1}

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        slots = np.flatnonzero(example["lengths"])
        # The slot and the length are no tokens: hidden from the decoded source.
        visible = {**example, "source_segments": np.where(example["lengths"] > 0, 0, example["source_segments"])}
        masked = {**visible, "targets": example["tokens"]}
        text = show_pairs(tokenizer, masked, found, ("source", "masked"))
        sizes = f"lengths  {example['lengths'][slots].tolist()}"
        return "\n".join([text, sizes if found is None else f"{sizes} guessed {found['lengths'][slots].tolist()}"])

    def flops(self) -> float:
        return row_flops(self.model, *self.limits)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/mask_predict_nano.py")
