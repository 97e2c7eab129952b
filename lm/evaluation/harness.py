"""Run the tasks of lm-evaluation-harness (Gao et al. 2021) on a run or a model folder, local task files included.

    python -m lm.evaluation.harness --workdir=RUN|--model=HF_DIR --tasks=arc_easy,my_task [--include=FOLDER] [--shots=5]

`pip install lm-eval` first; a task whose data comes from a hub needs a network. `Adapter` is the model that its own
`simple_evaluate` takes.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from lm.data.rows.prompts import Prompt
from lm.errors import UserError, check
from lm.flags import define_new_heads, define_output, output, run
from lm.strict_json import dump_json


def adapter(subject: Any) -> Any:
    """Make the harness's model of a subject; raises UserError where the harness is not installed."""
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise UserError(f"lm-evaluation-harness is not installed ({error}): pip install lm-eval") from error

    class Adapter(LM):
        """Answers the harness's three kinds of request with this model's scores and texts."""

        def loglikelihood(self, requests) -> list[tuple[float, bool]]:
            return likelihoods(subject, [one.args for one in requests])

        def loglikelihood_rolling(self, requests) -> list[float]:
            return rolling(subject, [one.args[0] for one in requests])

        def generate_until(self, requests) -> list[str]:
            return generated(subject, [one.args for one in requests])

    return Adapter()


def likelihoods(subject: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Give log p(continuation | context), and whether greedy decoding would write it."""
    from lm.evaluation.perplexity import given

    ask = continuation if subject.writer.objective.writes == "text" and subject.writer.objective.template else given
    scored = subject.score("options", [ask(subject, *pair) for pair in pairs])
    return [(float(one.logprobs.sum(dtype=float)), bool(one.greedy.all())) for one in scored]


def continuation(subject: Any, context: str, text: str) -> Any:
    """Make the pair of a published model as the harness's own backend does, token for token (0.4.13).

    Spaces that end the context go to the text; an empty context is the first token (`prefix`), unless the text has it.
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
    left = limit(subject) + 1 - len(target)
    check(left > 0, f"a continuation of {len(target)} tokens passes the model's context of {limit(subject)}")
    return Pair(Prompt(before[-left:]), target)


def encoded(subject: Any, text: str) -> np.ndarray:
    """Encode a text of a published model; one that begins with the first token's name gets no template around it."""
    tokenizer = subject.tokenizer
    template = not text.startswith(tokenizer.decode([prefix(tokenizer)], special=True))
    return tokenizer.encode(text, special=True, template=template)


def prefix(tokenizer: Any) -> int:
    """Give the token that stands before a text: the folder's bos_token, else its template's, else its eos_token."""
    first, before = tokenizer.first, tokenizer.around[0]
    found = first if first is not None else before[-1] if before else tokenizer.separator
    check(found is not None, "the tokenizer has no token to begin a text with; take lm.evaluate's perplexity")
    return int(found)


def rolling(subject: Any, texts: Sequence[str]) -> list[float]:
    """Give log p of whole texts, in windows that score each token once, the last with as much context as it takes.

    A run's text stands behind the separator. A published model's is scored as the harness's own backend does: the first
    token (`prefix`), then all that the tokenizer makes of the text, what its template puts before it included.
    """
    tokenizer, template = subject.tokenizer, subject.writer.objective.template
    lead = prefix(tokenizer) if template else tokenizer.separator
    check(lead is not None, "the tokenizer has no separator to begin a text with; take lm.evaluate's perplexity")
    pairs, counts = [], []
    for text in texts:
        ids = encoded(subject, text) if template else tokenizer.encode(text)
        found = list(windows(np.array([lead, *ids], np.int32), limit(subject)))
        pairs += found
        counts.append(len(found))
    sums = iter([float(one.logprobs.sum(dtype=float)) for one in subject.score("texts", pairs)])
    return [sum(next(sums) for _ in range(count)) for count in counts]


def limit(subject: Any) -> int:
    return subject.scorer.steps.limit or subject.objective.model.context


def windows(ids: np.ndarray, length: int) -> Iterator[Any]:
    """Cut a text so that each of its tokens but the first is scored once, with at least one before it."""
    from lm.decode.score import Pair

    done = 1
    while done < len(ids):
        end = min(done + length, len(ids))
        start = 0 if done == 1 else max(0, end - length - 1)
        yield Pair(Prompt(ids[start:done]), ids[done:end])
        done = end


def generated(subject: Any, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Write after each context what its settings ask for; those alike go together."""
    from lm.decode.sampling import Sampling
    from lm.evaluation.in_context import write

    groups: dict[str, list[int]] = {}
    for i, (_, settings) in enumerate(asked):
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(i)
    texts = [""] * len(asked)
    for name, members in groups.items():
        settings = json.loads(name)
        until = settings.get("until") or []
        most = limit(subject) // 2
        new = min(int(settings.get("max_gen_toks", 256)), most)
        sampling = Sampling(strategy="greedy")
        if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
            sampling = Sampling(
                temperature=settings.get("temperature", 1.0), top_k=settings.get("top_k", 0), top_p=settings.get("top_p", 1.0)
            )
        stop = [until] if isinstance(until, str) else until
        for i, text in zip(members, write(subject, [asked[i][0] for i in members], new, stop, sampling)):
            texts[i] = text
    return texts


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, run the harness, print its table."""
    check(not overrides, "this command takes no --config.* flags: a run's config is its own")
    values = flags.FLAGS
    check(bool(values.tasks), "name the harness's --tasks, joined by commas")
    file = output("lm.evaluation.harness")
    from lm import platform

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

    manager = TaskManager(include_path=values.include)
    names = values.tasks.split(",")
    known = set(manager.all_tasks)
    strange = ", ".join(sorted(set(names) - known))
    check(not strange, f"the harness has no task {strange}; --include=FOLDER adds yours")
    found = simple_evaluate(
        model=model,
        tasks=names,
        num_fewshot=values.shots,
        limit=values.limit,
        task_manager=manager,
        random_seed=values.seed,
        fewshot_random_seed=values.seed,
        bootstrap_iters=1000,
        log_samples=False,
    )
    print(make_table(found))
    if file:
        results = json.loads(json.dumps(found["results"], default=str))  # numpy's numbers, and functions by their names
        file.write(dump_json(results, indent=1) + "\n")


def define_flags() -> None:
    """Declare the flags; not when this module is imported, for other commands have some of the same names."""
    flags.DEFINE_string("workdir", None, "folder of the run")
    flags.DEFINE_string("model", None, "model folder in Hugging Face's layout, instead of a run")
    flags.DEFINE_string("step", "auto", "checkpoint: auto (with stop.patience best, else latest), latest, best or a step")
    define_new_heads()
    flags.DEFINE_string("tasks", None, "tasks of the harness, joined by commas")
    flags.DEFINE_string("include", None, "folder with task files (YAML) of your own")
    flags.DEFINE_integer("shots", None, "solved examples before each question (default: as the task says)")
    flags.DEFINE_integer("limit", None, "examples of each task, to try it out")
    flags.DEFINE_integer("seed", 0, "seed of the solved examples", lower_bound=0, upper_bound=2**32 - 1)
    define_output("write the figures to this file as JSON")


if __name__ == "__main__":
    define_flags()
    run(main)
