"""Run tasks of lm-evaluation-harness (Gao et al. 2021), local task files included, on a run or a model folder.

    python -m lm.evaluation.harness --workdir=RUN|--model=HF_DIR --tasks=arc_easy,my_task [--include=FOLDER] [--shots=5]

Needs `pip install lm-eval`, and a network for tasks with data on a hub. `adapter` makes the model for its
`simple_evaluate`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from lm import platform
from lm.data.rows.prompts import Prompt
from lm.decode.strategies import Strategy
from lm.errors import UserError, check
from lm.flags import define_new_heads, define_output, output, run
from lm.strict_json import dump_json

if TYPE_CHECKING:  # jax starts after the flags are checked
    from lm.data.tokenizer.tokenizer import Tokenizer
    from lm.decode.score import Pair
    from lm.evaluation.subject import Subject


def adapter(subject: Subject) -> Any:
    """Wrap a subject as the harness's model; raises UserError unless the harness is installed."""
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise UserError(f"lm-evaluation-harness is not installed ({error}): pip install lm-eval") from error

    class Adapter(LM):
        """Serves the harness's three kinds of request with this model's scores and texts."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return likelihoods(subject, [request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return rolling(subject, [request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return generated(subject, [request.args for request in requests])

    return Adapter()


def likelihoods(subject: Subject, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Return log p(continuation | context), and whether greedy decoding would write the continuation."""
    from lm.evaluation.perplexity import given

    pair_of = continuation if subject.writer.objective.writes == "text" and subject.writer.objective.template else given
    scored = subject.score("options", [pair_of(subject, *pair) for pair in pairs])
    return [(float(score.logprobs.sum(dtype=float)), bool(score.greedy.all())) for score in scored]


def continuation(subject: Subject, context: str, text: str) -> Pair:
    """Tokenize a pair for a published model exactly as the harness's own backend (0.4.13).

    Trailing spaces of the context move to the text; an empty context is the first token (`prefix`), unless the text has it.
    """
    from lm.decode.score import Pair

    if context:
        bare = context.rstrip()
        before = encoded(subject, bare)
        target = encoded(subject, context + text)[len(before) :]
        before = before if len(before) else np.array([prefix(subject.tokenizer)], np.int32)
    else:
        target = subject.tokenizer.encode(text, special=True)
        before = np.array([prefix(subject.tokenizer)], np.int32)
        if len(target) and target[0] == before[0]:
            before, target = target[:1], target[1:]
    check(len(target) > 0, f"{text!r} adds no token to {context!r}: it has no probability")
    remaining = limit(subject) + 1 - len(target)
    check(remaining > 0, f"a continuation of {len(target)} tokens exceeds the model's context of {limit(subject)}")
    return Pair(Prompt(before[-remaining:]), target)


def encoded(subject: Subject, text: str) -> np.ndarray:
    """Encode a text for a published model; a text that starts with the first token's name gets no template."""
    tokenizer = subject.tokenizer
    template = not text.startswith(tokenizer.decode([prefix(tokenizer)], special=True))
    return tokenizer.encode(text, special=True, template=template)


def prefix(tokenizer: Tokenizer) -> int:
    """Return the token before a text: the folder's bos_token, else its template's, else its eos_token."""
    first, before = tokenizer.first, tokenizer.around[0]
    token = first if first is not None else before[-1] if before else tokenizer.separator
    if token is None:
        raise UserError("the tokenizer has no token to start a text with; use lm.evaluate's perplexity")
    return int(token)


def rolling(subject: Subject, texts: Sequence[str]) -> list[float]:
    """Return log p of whole texts, in windows that score each token once, the last with the longest possible context.

    A run's text follows the separator. A published model scores like the harness's own backend: the first token (`prefix`),
    then all tokens of the text, those of the template included.
    """
    tokenizer, template = subject.tokenizer, subject.writer.objective.template
    lead = prefix(tokenizer) if template else tokenizer.separator
    check(lead is not None, "the tokenizer has no separator to start a text with; use lm.evaluate's perplexity")
    pairs, counts = [], []
    for text in texts:
        ids = encoded(subject, text) if template else tokenizer.encode(text)
        cut = list(windows(np.array([lead, *ids], np.int32), limit(subject)))
        pairs += cut
        counts.append(len(cut))
    sums = iter([float(score.logprobs.sum(dtype=float)) for score in subject.score("texts", pairs)])
    return [sum(next(sums) for _ in range(count)) for count in counts]


def limit(subject: Subject) -> int:
    return subject.scorer.steps.limit or subject.objective.model.context


def windows(ids: np.ndarray, length: int) -> Iterator[Pair]:
    """Split a text into windows that score each token but the first once, given at least one token."""
    from lm.decode.score import Pair

    done = 1
    while done < len(ids):
        end = min(done + length, len(ids))
        start = 0 if done == 1 else max(0, end - length - 1)
        yield Pair(Prompt(ids[start:done]), ids[done:end])
        done = end


def generated(subject: Subject, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Continue each context by its settings; requests of equal settings share a batch."""
    from lm.decode.strategies import AncestralSampling, GreedySearch
    from lm.evaluation.in_context import write

    groups: dict[str, list[int]] = {}
    for i, (_, settings) in enumerate(requests):
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(i)
    texts = [""] * len(requests)
    for name, members in groups.items():
        settings = json.loads(name)
        until = settings.get("until") or []
        # Half of the context stays for the prompt, which `write` cuts from its start to make room.
        most = limit(subject) // 2
        new = min(int(settings.get("max_gen_toks", 256)), most)
        strategy: Strategy = GreedySearch()
        if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
            strategy = AncestralSampling(
                temperature=settings.get("temperature", 1.0), top_k=settings.get("top_k", 0), top_p=settings.get("top_p", 1.0)
            )
        stop = [until] if isinstance(until, str) else until
        for i, text in zip(members, write(subject, [requests[i][0] for i in members], new, stop, strategy)):
            texts[i] = text
    return texts


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, run the harness, print its table."""
    check(not overrides, "this command takes no --config.* flags: a run's config is its own")
    values = flags.FLAGS
    check(bool(values.tasks), "name the harness's --tasks, joined by commas")
    file = output("lm.evaluation.harness")

    platform.prepare()
    from lm.console import progress_bar
    from lm.convert.runs import opened
    from lm.evaluation.subject import Subject

    loaded = opened(values.workdir, values.model, values.step, values.allow_new_heads)
    subject = Subject(*loaded, seed=values.seed, progress=progress_bar)
    model = adapter(subject)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    # A wrong name is an error before any task loads its data.
    manager = TaskManager(include_path=values.include)
    names = values.tasks.split(",")
    known = set(manager.all_tasks)
    strange = ", ".join(sorted(set(names) - known))
    check(not strange, f"the harness has no task {strange}; --include=FOLDER adds a folder of task files")
    evaluated = simple_evaluate(
        model=model,
        tasks=names,
        num_fewshot=values.shots,
        limit=values.limit,
        task_manager=manager,
        random_seed=values.seed,
        fewshot_random_seed=values.seed,
        bootstrap_iters=1000,  # 100,000 by default, which takes longer than a small model's scores
        log_samples=False,
    )
    print(make_table(evaluated))
    if file:
        results = json.loads(json.dumps(evaluated["results"], default=str))  # str converts numpy numbers and functions
        file.write(dump_json(results, indent=1) + "\n")


def define_flags() -> None:
    """Define the flags; not at import, since other commands have flags of the same names."""
    flags.DEFINE_string("workdir", None, "folder of the run")
    flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
    flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best or a step")
    define_new_heads()
    flags.DEFINE_string("tasks", None, "tasks of the harness, joined by commas")
    flags.DEFINE_string("include", None, "folder with further task files (YAML)")
    flags.DEFINE_integer("shots", None, "solved examples before each question (default: the task's own)")
    flags.DEFINE_integer("limit", None, "number of examples of each task, for a quick trial")
    flags.DEFINE_integer("seed", 0, "seed of the solved examples", lower_bound=0, upper_bound=2**32 - 1)
    define_output("write the figures to this file as JSON")


if __name__ == "__main__":
    define_flags()
    run(main)
