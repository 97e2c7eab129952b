"""From the options of `lm.generate` to a job, and from the job's samples to the screen."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.console import printable
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.chat import Chat
from lm.decode.files import encoded, records
from lm.decode.generate import occurrences
from lm.decode.grammar.constrained import Grammar, from_json_schema, from_regex
from lm.decode.infilling import Filler, Infilling
from lm.decode.modes import Infill, LeftToRight, check_rows
from lm.decode.options import Constraints
from lm.decode.results import Filled, Sample
from lm.decode.show import Stream, show, show_filled
from lm.decode.strategies import Strategy
from lm.decode.writer import Request, Writer
from lm.errors import UserError, check
from lm.objectives.base import Objective
from lm.strict_json import load_json

LONGEST = 256  # new tokens, unless --max_new_tokens sets another bound
# Flags that samples depend on, besides the options of strategies.
SETTINGS = (
    "workdir", "model", "step", "strategy", "max_new_tokens", "stop", "seed", "chat", "system", "regex", "json_schema", "draft"
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """`options`: flags of strategies that were given, by name; `flags`: all flags of the command."""

    strategy: Strategy | Infilling
    constraints: Constraints
    options: Mapping[str, Any]
    flags: Mapping[str, Any]

    def __post_init__(self):
        # Mistakes in the options are reported before a model is opened, which may take minutes.
        self.strategy.check(self.count)
        for name, texts in (("stop", self.flags["stop"]), ("bad_words", self.constraints.bad_words)):
            check(all(texts), f"--{name}= is empty: name a text, or leave the flag out")

    @property
    def count(self) -> int:
        """Samples of each prompt."""
        return self.options.get("num_samples", 1)

    def settings(self) -> dict[str, Any]:
        """Collect the flags that samples depend on besides their prompts: a file resumes only under the same ones."""
        values = {**self.options, **{name: self.flags[name] for name in SETTINGS}}
        return values | ({"special": True} if self.flags["special"] else {})

    def job(self, config: Config, params: Any, tokenizer: Tokenizer) -> LeftToRight | Infill:
        """Set up the job of a model; raises UserError where it lacks this strategy."""
        tokenizer = tokenizer.reading_special() if self.flags["special"] else tokenizer
        check_strategy(self.flags["strategy"], self.strategy, config.objective)
        if isinstance(self.strategy, Infilling):
            request = Request(new=self.flags["max_new_tokens"] or 0, samples=self.count, seed=self.flags["seed"])
            return Infill(Filler(config.objective, params, tokenizer, request), self.strategy)
        writer = Writer(config.objective, params, tokenizer)
        folder = Path(self.flags["workdir"] or self.flags["model"])
        # Chat models end a turn with an id of its own, which often only generation_config.json names.
        settings = generation_settings(folder)
        writer.stops = tuple(dict.fromkeys((*writer.stops, *named_stops(settings, tokenizer))))
        chat = Chat(folder) if self.flags["chat"] or holds_messages(self.flags["prompts"]) else None
        strategy, rules = self.strategy.bound(tokenizer), self.constraints.rules(tokenizer)
        request = Request(new=1, rules=rules, samples=self.count, seed=self.flags["seed"], stop=tuple(self.flags["stop"]))
        job = LeftToRight(writer, strategy, request, chat, self.flags["system"])

        # The bound on new tokens depends on the longest prompt; memory and grammar depend on that bound.
        new, least = self.new_tokens(job), self.constraints.min_new_tokens
        check(least <= new, f"--min_new_tokens={least} is more than the {new} new tokens that there may be: lower it")
        own = named_rules(settings, tokenizer, new, begins=len(writer.encode(["a"])[0].tokens) == 1)
        request = replace(request, new=new, rules=replace(rules, **own))
        check_rows(writer, strategy, request)
        return replace(job, request=replace(request, grammar=self.grammar(writer, new)))

    def grammar(self, writer: Writer, new: int) -> Grammar | None:
        """Compile --regex or --json_schema."""
        if self.flags["regex"]:
            return from_regex(self.flags["regex"], writer.tokenizer, writer.stops, new)
        schema = self.flags["json_schema"]
        return None if schema is None else from_json_schema(schema, writer.tokenizer, writer.stops, new)

    def new_tokens(self, job: LeftToRight) -> int:
        """Bound the new tokens: by the flag, or by the context behind the longest prompt."""
        if self.flags["max_new_tokens"] is not None:
            return self.flags["max_new_tokens"]
        limit = job.writer.steps.limit
        if limit is None:
            return LONGEST
        if self.flags["prompts"]:
            prompts = (prompt for _, prompt in encoded(job, Path(self.flags["prompts"])))
        else:
            prompts = (job.encode({"prompt": text}) for text in self.flags["prompt"])
        longest = max((len(prompt.tokens) for prompt in prompts), default=0)
        return max(1, min(LONGEST, limit - longest))

    def print_samples(self, job: LeftToRight | Infill, texts: Sequence[str]) -> list[Sample | Filled]:
        """Decode and print the samples of each text; a single one appears as it grows, on a terminal."""
        prompts = [(text, job.encode({"prompt": text})) for text in texts]
        numbers = occurrences([prompt for _, prompt in prompts])
        shades = bool(self.flags["show_probabilities"])
        if isinstance(job, Infill):
            filled: list[Any] = [sample for _, part in job.samples(prompts, numbers) for sample in part]
            if isinstance(filled[0], Filled):
                show_filled(filled)
            else:
                show(filled, job.filler.tokenizer, shades, "\n")
            return filled

        if notice := next(filter(None, (job.notice(prompt) for _, prompt in prompts)), ""):
            print(notice, file=sys.stderr)
        # A continuation stands right behind its prompt, an answer on a line of its own.
        between = "" if job.chat is None and job.writer.objective.writes == "text" else "\n"
        if job.strategy.streams and sys.stdout.isatty() and len(texts) == self.count == 1:
            stream = Stream(job.writer.tokenizer, job.request.stop, shades)
            print(f"\033[2m{printable(texts[0])}\033[0m", end=between, flush=True)
            stream.wait()
            try:
                ((_, (sample,)),) = job.samples(prompts, numbers, stream)
            except KeyboardInterrupt:
                print(flush=True)  # the partial text stays; the rest of the line is the shell's
                raise
            stream.end(sample)
            return [sample]
        by_prompt = dict(job.samples(prompts, numbers))
        samples: list[Any] = [sample for i in range(len(texts)) for sample in by_prompt[i]]
        show(samples, job.writer.tokenizer, shades, between)
        if job.writer.accepted is not None:
            print(f"{job.writer.accepted:.0%} of the draft's tokens were accepted")
        return samples

    def converse(self, job: LeftToRight) -> list[Sample | Filled]:
        """Reply to each line of standard input, with the whole conversation so far as the prompt, until it ends."""
        messages = [{"role": "system", "content": job.system}] if job.system is not None else []
        samples: list[Sample | Filled] = []
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        while True:
            try:
                line = input("> " if terminal else "").strip()
            except EOFError:
                return samples
            if not line:
                continue
            messages.append({"role": "user", "content": line})
            prompts = [(line, job.encode({"messages": messages}))]
            stream = Stream(job.writer.tokenizer, job.request.stop) if terminal and job.strategy.streams else None
            if stream:
                stream.wait()
            ((_, (sample, *_)),) = job.samples(prompts, [0], stream)
            stream.end(sample) if stream else print(printable(sample.text), flush=True)
            messages.append({"role": "assistant", "content": sample.text})
            samples.append(sample)


def check_strategy(name: str, strategy: Strategy | Infilling, objective: Objective) -> None:
    """Raise UserError unless models of the objective have the strategy."""
    kind = type(objective).__name__
    if name in objective.fills if strategy.infills else objective.writes:
        return
    if objective.writes:
        raise UserError(f"--strategy={name} is for models that fill in; a model of {kind} writes: greedy, sample, beam")
    check(bool(objective.fills), f"a model of {kind} does not write text")
    valid = " or ".join(objective.fills)
    raise UserError(f"a model of {kind} does not continue text from left to right: it has --strategy={valid}")


def generation_settings(folder: Path) -> dict[str, Any]:
    """Read a published folder's generation_config.json; {} without one."""
    path = folder.expanduser() / "generation_config.json"
    return load_json(path, dict) if path.is_file() else {}


def named_ids(settings: Mapping[str, Any], name: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Read ids of the vocabulary: one, or a list."""
    found = settings.get(name)
    return tuple(i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int) and 0 <= i < tokenizer.vocab)


def named_stops(settings: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Read the end-of-text ids."""
    return named_ids(settings, "eos_token_id", tokenizer)


def named_rules(settings: Mapping[str, Any], tokenizer: Tokenizer, new: int, begins: bool) -> dict[str, Any]:
    """Read the rules that belong to a model rather than to taste: tokens forced at the ends of a text, and banned ones.

    `begins`: the decoder's prompt is one token, behind which transformers forces the first of a text.
    """
    first, last = (named_ids(settings, f"forced_{end}_token_id", tokenizer)[:1] for end in ("bos", "eos"))
    # The file came with a model: entries of another form are passed over.
    biases = settings.get("sequence_bias")
    pairs = [pair for pair in biases if isinstance(pair, list) and len(pair) == 2] if isinstance(biases, list) else []
    known = [(named_ids({"ids": ids}, "ids", tokenizer), bias) for ids, bias in pairs]
    rules = {
        "sequence_bias": tuple((ids, float(bias)) for ids, bias in known if ids and isinstance(bias, int | float)),
        "suppress": named_ids(settings, "suppress_tokens", tokenizer),
        "begin_suppress": named_ids(settings, "begin_suppress_tokens", tokenizer),
        "renormalise": settings.get("renormalize_logits") is True,
    }
    rules |= {"forced_begin": first[0]} if first and begins else {}
    return rules | ({"forced_end": last[0], "limit": new} if last else {})


def holds_messages(path: str | None) -> bool:
    """Check a file of prompts for conversations."""
    return bool(path) and path.endswith(".jsonl") and any("messages" in record for _, record in records(Path(path)))
