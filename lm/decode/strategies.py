"""Decoding strategies: each is one frozen dataclass whose fields are its options, and one line of `STRATEGIES`.

`lm.generate` derives flags, help and checks from both. To add a strategy, inherit `Strategy` (text from left to right) or
`Infilling` (masks of a whole text), declare the options with `option`, implement one method and add the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lm.decode.infilling import FillMask, GibbsSampling, Infilling, MaskPredict
from lm.decode.options import Constraints, option, options_of
from lm.errors import check

if TYPE_CHECKING:  # jax and the searches load when a strategy writes
    import jax

    from lm.data.rows.prompts import Prompt
    from lm.data.tokenizer.tokenizer import Tokenizer
    from lm.decode.sampling import Sampling
    from lm.decode.search.beam import Beams
    from lm.decode.steps import Steps
    from lm.decode.writer import Request, Row, Watch, Writer

# Flags of the command that a strategy may heed besides its own options.
TEXT = ("max_new_tokens", "chat", "system", *options_of(Constraints))
TOKENS = (*TEXT, "stop", "show_probabilities")  # needs the log-probability of each token


class Strategy:
    """A way to write text from left to right; options are dataclass fields declared by `lm.decode.options.option`."""

    infills: ClassVar[bool] = False
    streams: ClassVar[bool] = False  # `watch` sees the text as it grows
    slides: ClassVar[bool] = False  # goes on beyond the context (`lm.decode.sliding`)
    takes: ClassVar[tuple[str, ...]] = TOKENS

    def check(self, samples: int) -> None:
        """Raise UserError for options that contradict each other or the number of samples; no model is open yet."""

    def bound(self, tokenizer: Tokenizer) -> Strategy:
        """Open whatever the options name beside the model itself."""
        return self

    def readers(self, writer: Writer) -> tuple[Steps, ...]:
        """List the networks whose context must hold the prompt and the new tokens."""
        return (writer.steps,)

    def fits(self, writer: Writer, prompt: Prompt, request: Request) -> None:
        """Raise UserError where a context cannot hold a prompt and the new tokens, and the text cannot go on beyond it."""
        from lm.decode.prefill import fits

        if self.slides and request.grammar is None and writer.objective.writes == "text":
            check(request.new >= 1, f"max_new_tokens={request.new} must be at least 1")
            return
        for steps in self.readers(writer):
            fits(steps, prompt, request.new)

    def rows(self, request: Request) -> int:
        """Count the rows of a batch that one prompt takes."""
        return request.samples

    def write(
        self, writer: Writer, request: Request, batch: Sequence[Prompt], keys_B: jax.Array, watch: Watch | None
    ) -> list[list[Row]]:
        """Return `request.samples` rows of each prompt; `keys_B`: one key a sample."""
        raise NotImplementedError


def search_options(writer: Writer, request: Request) -> dict[str, Any]:
    """Return the keyword arguments of every search."""
    return {"rules": replace(request.rules, stops=writer.stops), "new": request.new, "stops": writer.stops}


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of strategies that draw tokens, as `lm.decode.sampling.Sampling` has them."""

    temperature: float = option(1.0, "divides the scores: below 1 safer, above 1 wilder, 0 greedy")
    top_k: int = option(0, "draw from the k likeliest tokens; 0: from all", low=0)
    top_p: float = option(1.0, "draw from the likeliest tokens that together have this probability")
    min_p: float = option(0.0, "draw from tokens at least this share as probable as the likeliest")
    typical_p: float = option(1.0, "draw from the most typical tokens that together have this probability")
    epsilon: float = option(0.0, "draw from tokens of at least this probability")
    eta: float = option(0.0, "the same, but less where the model is unsure")

    def sampling(self) -> Sampling:
        """Return the settings of the compiled loop, greedy at temperature 0; raises UserError for values out of range."""
        from lm.decode.sampling import Sampling

        if self.temperature == 0:
            return Sampling(strategy="greedy")
        return Sampling(**{name: getattr(self, name) for name in options_of(SamplingOptions)})

    def check(self, samples: int) -> None:
        self.sampling()


@dataclass(frozen=True)
class GreedySearch(Strategy):
    """Take the likeliest token, again and again."""

    streams: ClassVar[bool] = True
    slides: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = (*TOKENS, "regex", "json_schema")

    def write(self, writer, request, batch, keys_B, watch):
        from lm.decode.sampling import Sampling

        return token_by_token(Sampling(strategy="greedy"), writer, request, batch, keys_B, watch)


@dataclass(frozen=True, kw_only=True)
class AncestralSampling(SamplingOptions, Strategy):
    """Draw one token after another, from the whole distribution unless it is truncated."""

    streams: ClassVar[bool] = True
    slides: ClassVar[bool] = True
    takes: ClassVar[tuple[str, ...]] = (*TOKENS, "num_samples", "regex", "json_schema")

    def write(self, writer, request, batch, keys_B, watch):
        return token_by_token(self.sampling(), writer, request, batch, keys_B, watch)


def token_by_token(
    sampling: Sampling, writer: Writer, request: Request, batch: Sequence[Prompt], keys_B: jax.Array, watch: Watch | None
) -> list[list[Row]]:
    """Run the token loop, beyond the context where it is too short; rows whose text holds a stop string end early."""
    import numpy as np

    from lm.decode.sliding import continue_beyond, passes
    from lm.decode.writer import continue_tokens

    def finished(ids):
        text = writer.tokenizer.decode(ids)
        return any(stop in text for stop in request.stop)

    ends, samples = finished if request.stop else None, request.samples
    found: dict[int, list[Row]] = {}
    # 0: texts that fit; else the length of prompts whose texts do not.
    lengths = [len(prompt.tokens) if passes(writer.steps, prompt, request.new) else 0 for prompt in batch]
    for length in sorted(set(lengths)):
        chosen = [i for i, one in enumerate(lengths) if one == length]
        prompts, own_B = [batch[i] for i in chosen], keys_B[np.array([i * samples + k for i in chosen for k in range(samples)])]
        if length:
            rows = continue_beyond(writer, request, prompts, own_B, sampling=sampling, finished=ends, watch=watch)
        else:
            rows = continue_tokens(
                writer.steps,
                writer.prepared(len(own_B)),
                prompts,
                own_B,
                sampling=sampling,
                new=request.new,
                rules=request.rules,
                stops=writer.stops,
                grammar=request.grammar,
                finished=ends,
                watch=watch,
            )
        found |= zip(chosen, by_prompt(rows, samples))
    return [found[i] for i in range(len(batch))]


def by_prompt(rows: list[Row], samples: int) -> list[list[Row]]:
    """Group consecutive rows by their prompt."""
    return [rows[i : i + samples] for i in range(0, len(rows), samples)]


@dataclass(frozen=True, kw_only=True)
class BeamSearch(Strategy):
    """Keep the best partial texts side by side (`lm.decode.search.beam`); a row's log-probability is known as a sum only."""

    takes: ClassVar[tuple[str, ...]] = (*TEXT, "num_samples")

    num_beams: int = option(4, "beams kept", high=10_000)
    length_penalty: float = option(1.0, "exponent of the length by which scores are divided; above 0 favours long texts")
    length_norm: Literal["hf", "gnmt"] = option("hf", "hf: by length^a; gnmt: by ((5 + length) / 6)^a")
    num_beam_groups: int = option(1, "groups of beams that are kept apart", high=10_000)
    diversity_penalty: float = option(0.0, "between groups: subtracted from tokens that another has just chosen")
    coverage_penalty: float = option(0.0, "encoder-decoders: lowers texts that leave parts of the source unread")
    early_stopping: bool | Literal["never"] = option(False, "true, false or never: when a search ends")

    def beams(self, samples: int) -> Beams:
        """Return the settings of the compiled search; raises UserError for values that do not fit."""
        from lm.decode.search.beam import Beams

        return Beams(
            count=self.num_beams,
            length_penalty=self.length_penalty,
            penalty=self.length_norm,
            early_stopping=self.early_stopping,
            groups=self.num_beam_groups,
            diversity_penalty=self.diversity_penalty,
            coverage_penalty=self.coverage_penalty,
            returned=samples,
        )

    def check(self, samples: int) -> None:
        self.beams(samples)

    def draws(self) -> Sampling | None:
        """Return the settings by which candidates are drawn; None: the likeliest are taken."""
        return None

    def rows(self, request: Request) -> int:
        return self.num_beams

    def write(self, writer, request, batch, keys_B, watch):
        import numpy as np

        from lm.decode.prefill import batch_prompts
        from lm.decode.search.beam import beam_search

        prepared, beams = writer.prepared(len(batch) * self.num_beams), self.beams(request.samples)
        options, sampling = search_options(writer, request), self.draws()
        # One search returns all samples of a prompt: it draws from the key of the first.
        drawing = {} if sampling is None else {"sampling": sampling, "keys_P": keys_B[:: request.samples]}
        hypotheses = beam_search(writer.steps, prepared, batch_prompts(batch), beams=beams, **drawing, **options)
        return [[(text.ids, np.float64(text.logprob)) for text in texts] for texts in hypotheses]


@dataclass(frozen=True, kw_only=True)
class BeamSampling(SamplingOptions, BeamSearch):
    """Draw the candidates of a beam search without replacement, in place of the likeliest (Kool et al. 2019)."""

    def draws(self) -> Sampling:
        return self.sampling()

    def check(self, samples: int) -> None:
        check(self.temperature != 0, "temperature=0 draws nothing: use --strategy=beam")
        check(self.num_beam_groups == 1, "beam sampling has no groups: leave --num_beam_groups out, or use --strategy=beam")
        self.sampling(), self.beams(samples)


@dataclass(frozen=True, kw_only=True)
class ContrastiveSearch(Strategy):
    """Take, of the `top_k` likeliest tokens, a likely one whose state is unlike the text so far (Su et al. 2022)."""

    top_k: int = option(4, "candidates for each token")
    penalty_alpha: float = option(0.6, "weight of unlikeness")

    def __post_init__(self):
        check(self.top_k >= 1, f"top_k={self.top_k}: contrastive search chooses among at least 1 candidate")
        check(0 <= self.penalty_alpha <= 1, f"penalty_alpha={self.penalty_alpha} must be from 0 (greedy) to 1")

    def rows(self, request: Request) -> int:
        return self.top_k

    def write(self, writer, request, batch, keys_B, watch):
        from lm.decode.prefill import batch_prompts
        from lm.decode.search.contrastive import contrastive_search

        prepared, options = writer.prepared(len(batch) * self.top_k), search_options(writer, request)
        how = {"top_k": self.top_k, "alpha": self.penalty_alpha, **options}
        rows = contrastive_search(writer.steps, prepared, batch_prompts(batch), **how)
        return by_prompt(rows, request.samples)


@dataclass(frozen=True, kw_only=True)
class SpeculativeSampling(SamplingOptions, Strategy):
    """Let a draft model propose tokens; the texts are distributed as the large model's own samples (Leviathan et al. 2023)."""

    takes: ClassVar[tuple[str, ...]] = (*TOKENS, "num_samples")

    draft: str = option("", "run or model folder of the small model that proposes")
    draft_tokens: int = option(4, "tokens proposed at a time", high=1000)
    proposer: Any = None  # the draft's Writer, once it is open

    def __post_init__(self):
        check(self.draft or self.proposer, "--strategy=speculative needs --draft=RUN|HF_DIR, a smaller model")

    def bound(self, tokenizer: Tokenizer) -> SpeculativeSampling:
        """Open the draft model; raises UserError where its tokenizer is another one."""
        from lm.convert.runs import opened
        from lm.decode.writer import Writer

        folder = Path(self.draft)
        check(folder.is_dir(), f"--draft={self.draft}: there is no such folder")
        config, params, known = opened(*((folder, None) if (folder / "checkpoints").is_dir() else (None, folder)))
        same = known.core.get_vocab() == tokenizer.core.get_vocab()
        check(same, f"--draft={self.draft} has another tokenizer than the model it is to propose for")
        return replace(self, proposer=Writer(config.objective, params, known))

    def readers(self, writer: Writer) -> tuple[Steps, ...]:
        return writer.steps, self.proposer.steps

    def write(self, writer, request, batch, keys_B, watch):
        from lm.decode.prefill import batch_prompts
        from lm.decode.search.speculative import speculative

        repeated = [prompt for prompt in batch for _ in range(request.samples)]
        rows, writer.accepted = speculative(
            writer.steps,
            writer.prepared(self.draft_tokens + 1),
            self.proposer.steps,
            self.proposer.prepared(1),
            batch_prompts(repeated),
            sampling=self.sampling(),
            gamma=self.draft_tokens,
            keys_B=keys_B,
            **search_options(writer, request),
        )
        return by_prompt(rows, request.samples)


STRATEGIES: dict[str, type[Strategy | Infilling]] = {
    "greedy": GreedySearch,
    "sample": AncestralSampling,
    "beam": BeamSearch,
    "beam_sample": BeamSampling,
    "contrastive": ContrastiveSearch,
    "speculative": SpeculativeSampling,
    "fill": FillMask,
    "gibbs": GibbsSampling,
    "mask_predict": MaskPredict,
}
