"""Decoding strategies that predict masked tokens of a text: candidates for masks, Gibbs sampling, Mask-Predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lm.decode.options import option, options_of
from lm.errors import check

if TYPE_CHECKING:  # jax and the searches load when a strategy fills
    from lm.data.rows.prompts import Prompt
    from lm.data.tokenizer.tokenizer import Tokenizer
    from lm.decode.writer import Request


LENGTH = 40  # tokens of a text that is drawn whole, unless the request sets another number


@dataclass(frozen=True)
class Filler:
    """A network that fills masks, and the request; its `new` may be 0: the strategy's own length."""

    objective: Any  # an Objective with the members that the strategy needs
    params: Any
    tokenizer: Tokenizer
    request: Request


class Infilling:
    """A way to fill masks; options are dataclass fields declared by `lm.decode.options.option`."""

    infills: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = ()

    def check(self, samples: int) -> None:
        """Raise UserError for options that contradict the number of samples; no model is open yet."""

    def encode(self, filler: Filler, record: Mapping[str, Any]) -> Prompt:
        """Encode {"prompt": text}."""
        from lm.data.rows.prompts import Prompt

        check("prompt" in record, "a masked model fills texts: give them as prompts, not as messages")
        return Prompt(filler.tokenizer.encode(record["prompt"], special=True))

    def fill(self, filler: Filler, prompts: Sequence[tuple[str, Prompt]]) -> Iterator[list[Any]]:
        """Yield the samples of each prompt, in order."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FillMask(Infilling):
    """Fill the masks of a text with their likeliest tokens."""

    top_k: int = option(5, "candidates to show")
    order: str = option("once", "once, left_to_right or confident")

    def fill(self, filler: Filler, prompts: Sequence[tuple[str, Prompt]]) -> Iterator[list[Any]]:
        from lm.decode.search.masked import fill_masks

        texts = [text for text, _ in prompts]
        options: dict[str, Any] = {"top_k": self.top_k, "order": self.order}
        filled = fill_masks(filler.objective, filler.params, filler.tokenizer, texts, **options)
        return ([text] for text in filled)


@dataclass(frozen=True, kw_only=True)
class GibbsSampling(Infilling):
    """Draw texts behind a prefix by Gibbs sampling from a masked model (Wang and Cho 2019)."""

    takes: ClassVar[tuple[str, ...]] = ("max_new_tokens", "num_samples")

    top_k: int = option(100, "draw from the k likeliest tokens after the burn-in", low=0)
    temperature: float = option(1.0, "divides the scores: below 1 safer, above 1 wilder")
    iterations: int = option(500, "rounds")
    burn_in: int = option(250, "rounds that draw from all tokens", low=0)
    walk: str = option("random", "random, left_to_right or parallel")

    def fill(self, filler: Filler, prompts: Sequence[tuple[str, Prompt]]) -> Iterator[list[Any]]:
        from lm.decode.search.masked import gibbs
        from lm.sizes import check_memory

        count, length = filler.request.samples, filler.request.new or LENGTH
        size = 4 * count * (filler.tokenizer.vocab + 2 * length)  # scores of a token each, and the texts
        check_memory(size, f"drawing {count:,} texts at a time", "lower --num_samples")
        options = {name: getattr(self, name) for name in options_of(GibbsSampling)}
        for text, _ in prompts:
            how = {"count": count, "length": length, "prefix": text, "seed": filler.request.seed, **options}
            yield gibbs(filler.objective, filler.params, filler.tokenizer, **how)


@dataclass(frozen=True, kw_only=True)
class MaskPredict(Infilling):
    """Predict the target of a source all at once, then its least certain tokens again (Ghazvininejad et al. 2019)."""

    takes: ClassVar[tuple[str, ...]] = ("max_new_tokens", "num_samples")

    iterations: int = option(10, "rounds")
    num_lengths: int = option(5, "lengths tried", high=10_000)
    forced_prefix: str = option("", "text that the target starts with")

    def check(self, samples: int) -> None:
        check(samples <= self.num_lengths, f"num_samples={samples} is more than num_lengths={self.num_lengths}")

    def encode(self, filler: Filler, record: Mapping[str, Any]) -> Prompt:
        """Encode a source; raises UserError for one that passes the encoder's context."""
        import numpy as np

        from lm.data.rows.prompts import Prompt

        check(bool(record.get("prompt")), "an empty prompt: this model writes an answer to a source, give it a text")
        ids = filler.tokenizer.encode(record["prompt"], special=True)
        capacity = filler.objective.limits[0] - 2
        check(len(ids) <= capacity, f"a source of {len(ids)} tokens passes the encoder's capacity of {capacity}: shorten it")
        return Prompt(np.zeros(1, np.int32), ids)

    def fill(self, filler: Filler, prompts: Sequence[tuple[str, Prompt]]) -> Iterator[list[Any]]:
        import numpy as np

        from lm.decode.results import Sample
        from lm.decode.search.mask_predict import mask_predict

        sources, tokenizer = [prompt.source for _, prompt in prompts], filler.tokenizer
        prefix = tokenizer.encode(self.forced_prefix)
        ranked = mask_predict(
            filler.objective, filler.params, sources, iterations=self.iterations, lengths=self.num_lengths,
            prefixes=[prefix] * len(sources), longest=filler.request.new and filler.request.new + 1,
        )  # fmt: skip
        for (text, _), targets in zip(prompts, ranked):
            best = [(np.concatenate([prefix, target.ids]), target) for target in targets[: filler.request.samples]]
            yield [Sample(text, tokenizer.decode(ids), ids.tolist(), float(target.logprob)) for ids, target in best]
