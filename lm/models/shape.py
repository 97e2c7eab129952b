"""Sizes that every network derives from its config in the same way."""

import dataclasses
from typing import Self

from lm.errors import UserError


class Shape:
    """Base of the configs of networks: a field of 0 stands for the usual value, the properties return the one in force."""

    vocab: int
    pad_vocab: int
    width: int
    depth: int
    heads: int
    head: int
    mlp: int
    embed: int
    pipeline_batches: int
    # Of the networks that have the fields; what the others do.
    quantize: str = "none"
    keep: tuple[str, ...] = ()
    offload: bool = False

    def sized(self, vocab: int) -> Self:
        """Set the vocabulary size."""
        return dataclasses.replace(self, vocab=vocab)  # type: ignore[type-var]  # a dataclass, as all that have this base

    def check_heads(self) -> None:
        """Raise UserError where the width does not divide among the heads and their size is not set."""
        if not self.head and self.width % self.heads:
            raise UserError(f"width={self.width} does not divide among heads={self.heads}; set head as well")

    @property
    def rows(self) -> int:
        """Rows of the embedding table: the vocabulary rounded up to a multiple of `pad_vocab`."""
        return -(-self.vocab // self.pad_vocab) * self.pad_vocab

    @property
    def embed_size(self) -> int:
        """Width of the embedding tables."""
        return self.embed or self.width

    @property
    def head_size(self) -> int:
        return self.head or self.width // self.heads

    @property
    def mlp_size(self) -> int:
        return self.mlp or 4 * self.width

    @property
    def mup(self) -> float:
        """Width over the tuned width (Yang et al. 2022): 1 without maximal-update parametrisation."""
        return 1.0
