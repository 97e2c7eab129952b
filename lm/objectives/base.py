"""What an objective is: two halves of one idea, on the host and on the device.

| key of a batch | shape | meaning |
|---|---|---|
| tokens | (B, T) int32 | what the network reads |
| targets | (B, T) int32 | what it is asked for |
| weights | (B, T) float32 | how much each target counts; 0 for padding |
| segments | (B, T) int32 | number of the document within the row, from 1; 0 for padding |
| positions | (B, T) int32 | place within the document |
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

Example = dict[str, np.ndarray]
Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (weighted sum, sum of weights)


class Objective(Protocol):
    """A frozen dataclass of this shape is an objective; the loop knows nothing else of it.

    `window` tokens of the corpus make one record, of which `stride` are new; `corrupt` turns a record (tokens, segments,
    positions, weights, each (window,)) into the arrays of one row. The loop minimises
    sum over k of scales[k] * sums[k] / weights[k], where `weights(batch)` are the denominators of the whole batch, known
    before the forward pass, and `loss` gives the sums of the rows it is shown: rows may come in any number of parts.
    """

    model: Any
    window: int
    stride: int
    scales: Mapping[str, float]

    def resolve(self, tokenizer: Any) -> "Objective":
        """Fill in what the tokenizer knows (the vocabulary's size); raise UserError when the two do not fit."""

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, np.ndarray]) -> Example:
        """Make one row from one record; numpy, on the host, pure."""

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Draw the parameters, as a tree of `Named` arrays."""

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Sum the weights of each term of the loss over the batch."""

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        """Sum each term and metric over the rows; `keys_B`, one key a row, is None when nothing may be random."""
