"""A trained or published model in Python: write and score texts, measure tasks, look inside.

    model = lm.load("runs/mine")
    model.generate("Once", strategy="sample", top_p=0.9, num_samples=3)

Mistakes raise `lm.errors.UserError`, whose text is the line that a command prints.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from lm.config import Config
from lm.convert.runs import opened
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.generate import occurrences
from lm.decode.options import ALIASES, Constraints, options_of
from lm.decode.request import Command
from lm.decode.results import as_object
from lm.decode.strategies import STRATEGIES
from lm.errors import UserError, check, unknown
from lm.evaluation.metrics.statistics import flat
from lm.evaluation.perplexity import text_scores
from lm.evaluation.registry import named
from lm.evaluation.subject import Subject
from lm.explain.ablation import Ablation, ablate
from lm.explain.attribution import Network, observe
from lm.explain.compare import Comparison, compare, token_scores
from lm.explain.contents import Options, contents
from lm.explain.embeddings import Neighbours, ids_of, neighbours
from lm.explain.page import page
from lm.explain.probing import Probing, probe, read_items
from lm.extensions import import_modules
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.platform import begin


def load(
    folder: str | Path, step: str = "auto", new_heads: bool = False, modules: Sequence[str] = (), mesh: str = ""
) -> LanguageModel:
    """Open a run, or a model folder in Hugging Face's layout.

    `step`: auto, latest, best or a number, of a run. `modules`: names of your own modules whose classes the run's config holds.
    `mesh`: spread the parameters over this machine's devices, as --mesh of the commands does: "fsdp=8".
    """
    begin()
    import_modules(modules)

    path = Path(folder).expanduser()
    check(path.is_dir(), f"{folder}: there is no such folder")
    # Both kinds of folder have a config.json: only runs have checkpoints.
    run = (path / "checkpoints").is_dir()
    workdir, model = (str(path), None) if run else (None, str(path))
    config, params, tokenizer = opened(workdir, model, step, new_heads, mesh)
    return LanguageModel(config, params, tokenizer, path, run)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A trained or published model: its config, parameters (a tree of arrays) and tokenizer, from `folder`."""

    config: Config
    params: Any
    tokenizer: Tokenizer
    folder: Path
    is_run: bool = True

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        strategy: str = "sample",
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        seed: int = 0,
        special: bool = False,
        chat: bool = False,
        system: str | None = None,
        regex: str | None = None,
        json_schema: str | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Continue, answer or fill each prompt as `lm.generate` does, whose flags the options are.

        Returns an object a sample: {"prompt", "text", "tokens" (the new ids), "logprob" (their sum)}.
        """
        if strategy not in STRATEGIES:
            raise unknown("strategy", strategy, list(STRATEGIES))
        kind = STRATEGIES[strategy]
        options = {ALIASES.get(name, name): value for name, value in options.items()}
        for name in options:
            if name not in (valid := [*options_of(kind), *options_of(Constraints), "num_samples"]):
                raise unknown(f"option of {strategy}", name, valid)
        # Strategies are hashable, as static arguments of compiled functions.
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        own, shared = ({name: options[name] for name in options_of(part) if name in options} for part in (kind, Constraints))
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        place = {"workdir": str(self.folder) if self.is_run else None, "model": None if self.is_run else str(self.folder)}
        flags = {
            **place, "strategy": strategy, "max_new_tokens": max_new_tokens,
            "stop": [stop] if isinstance(stop, str) else list(stop),
            "seed": seed, "special": special, "chat": chat, "system": system, "regex": regex, "json_schema": json_schema,
            "prompts": None, "prompt": texts, "draft": options.get("draft", ""),
        }  # fmt: skip
        job = Command(kind(**own), Constraints(**shared), options, flags).job(self.config, self.params, self.tokenizer)
        prompts = [(text, job.encode({"prompt": text})) for text in texts]
        # Collected first: batches end in another order than the prompts came in.
        found = dict(job.samples(prompts, occurrences([encoded for _, encoded in prompts])))
        return [as_object(sample) for i in range(len(texts)) for sample in found[i]]

    def encode(self, text: str) -> list[int]:
        """Turn a text into ids, without special tokens."""
        return self.tokenizer.encode(text).tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids back into a text."""
        return self.tokenizer.decode(ids)

    @functools.cached_property
    def subject(self) -> Subject:
        """What `lm.evaluate` measures tasks on."""
        return Subject(self.config, self.params, self.tokenizer, workdir=self.folder if self.is_run else None)

    def score(self, text: str) -> dict[str, Any]:
        """Score each token given those before it (masked models: given all others).

        Returns {"ids", "tokens", "logprobs", "sum", "perplexity"}, as `lm.evaluate --text` writes them.
        """
        return text_scores(self.subject, text)

    def evaluate(self, tasks: str | Sequence[str] = "validation") -> dict[str, dict[str, float | None]]:
        """Measure tasks as `lm.evaluate --tasks` does: {"task": {"metric": value}}."""
        names = tasks if isinstance(tasks, str) else ",".join(tasks)
        check(self.is_run or "validation" not in names.split(","), "a model folder has no held-out split: name other tasks")
        return {name: flat(task.measure(self.subject)) for name, task in named(names).items()}

    def logits(self, ids_BT: ArrayLike, source_BS: ArrayLike | None = None) -> jax.Array:
        """Return the logits (B, T, V) of rows of ids without padding, V the vocabulary; `source_BS`: an encoder's rows."""
        return self._network[0](self.params, *self._sides(ids_BT, source_BS))

    def hidden(self, ids_BT: ArrayLike, source_BS: ArrayLike | None = None) -> np.ndarray:
        """Return the states before and after each layer, (L + 1, B, T, D), of the stack that predicts."""
        return np.asarray(self._network[1](self.params, self._sides(ids_BT, source_BS)))

    def explain(
        self,
        text: str | Mapping[str, Any],
        target: str | None = None,
        label: str | None = None,
        task: str | None = None,
        layers: str = "auto",
        attribute: str = "auto",
        baseline: str = "mean",
        top: int = 5,
        beside: LanguageModel | None = None,
        probe: str | Path | None = None,
        words: Sequence[str] = (),
        lens_text: str | Path | None = None,
        ablate: str = "auto",
    ) -> Explanation:
        """Explain the predictions on a text as `lm.explain` does, whose flags the options are; `beside`: another model.

        Runs of labelled examples explain the predicted labels, or `label`; where they read several values, `text` maps names
        to them.
        """
        options = Options(
            target=target or "", label=label or "", task=task or "", layers=layers, attribute=attribute, baseline=baseline,
            top=top, ablate=ablate, probe=str(probe or ""), words=tuple(words), lens_text=str(lens_text or ""),
        )  # fmt: skip
        other = None if beside is None else (beside.folder.name, beside.opened)
        return Explanation(contents(self.opened, text, options, self.folder, other))

    @property
    def opened(self) -> tuple[Config, Any, Tokenizer]:
        """Return config, parameters and tokenizer."""
        return self.config, self.params, self.tokenizer

    def ablate(self, text: str | Mapping[str, Any], target: str | None = None, neurons: int = 20) -> Ablation:
        """Measure the change of a text's loss without each head, and without the neurons that matter most."""
        return ablate(self.config.objective, self.params, self.tokenizer, text, target=target, neurons=neurons)

    def compare(self, other: LanguageModel, text: str, target: str | None = None) -> Comparison:
        """Compare the log-probabilities of a text under two models, over spans that both tokenizers end."""
        scored = [token_scores(one.config.objective, one.params, one.tokenizer, text, target) for one in (self, other)]
        return compare(*scored)

    def probe(self, file: str | Path, text: str = "text", label: str = "label") -> Probing:
        """Fit a probe for the labels of a file on the states of every layer, and measure it on held-out examples."""
        return probe(self.config.objective, self.params, self.tokenizer, read_items(str(file), text, label))

    def neighbours(self, words: Sequence[str], count: int = 8) -> list[Neighbours]:
        """Return the nearest tokens of each word in the embedding table, by cosine."""
        return neighbours(self.params, self.tokenizer, ids_of(self.tokenizer, words), count)

    def _sides(self, ids_BT: ArrayLike, source_BS: ArrayLike | None) -> tuple[np.ndarray, ...]:

        rows = [np.asarray(side, np.int32) for side in (source_BS, ids_BT) if side is not None]
        for row in rows:
            check(row.ndim == 2, f"ids have {row.ndim} axes where rows (B, T) are needed: [ids] makes one row")
            # jax raises nothing for an index out of range: the states would silently be those of another token, or NaN.
            low, high = (int(row.min()), int(row.max())) if row.size else (0, 0)
            vocab = self.tokenizer.vocab
            check(low >= 0 and high < vocab, f"ids from {low} to {high}: the vocabulary has ids 0 to {vocab - 1}")
        return tuple(rows)

    @functools.cached_property
    def _network(self) -> tuple[Any, Any]:
        """Compile (params, sides) -> logits, and -> states."""
        objective = self.config.objective
        model, name = objective.model, type(objective).__name__
        if not isinstance(model, Transformer | EncoderDecoder) or "embed" not in self.params:
            raise UserError(f"logits and hidden states are of Transformers that predict tokens, not of a model of {name}")
        network = Network(model, isinstance(model, EncoderDecoder) or objective.writes == "text")
        vocab = network.last.vocab
        # Without the rows that pad the table, which are no tokens.
        logits = jax.jit(lambda params, *sides: network.logits(params, network.read(params, sides))[..., :vocab])
        return logits, lambda params, sides: observe(network, params, sides)[1]


class Explanation(dict):
    """What `lm.explain` shows, as values and numpy arrays.

    "columns": the tokens; "predictions": for each its "token", "logp", "entropy", "rank", "top", the logit "lens" of each layer
    (and the "tuned" one) and the attributions "input" and "integrated", of labels the "nearest" training examples;
    "attention": of each stack (L, N, T, S); "ablation", "beside", "neighbours", "map" and "probe" where they were asked for.
    """

    def html(self) -> str:
        """Return the page of `lm.explain`."""
        return page(self)

    def _repr_html_(self) -> str:
        """Show the page inside a notebook's cell."""
        return f'<iframe srcdoc="{html.escape(self.html())}" width="100%" height="700" style="border:0"></iframe>'
