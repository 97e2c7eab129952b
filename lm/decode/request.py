"""From the options of `lm.generate` to a job, and the job's samples to the screen."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.convert.runs import opened
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.chat import Chat
from lm.decode.generate import occurrences
from lm.decode.grammar.constrained import from_json_schema, from_regex
from lm.decode.modes import LeftToRight, Masks, Targets, Walks, check_rows
from lm.decode.processors import Rules
from lm.decode.sampling import Sampling
from lm.decode.search.beam import Beams
from lm.decode.show import Stream, show, show_filled
from lm.decode.strategies import ContrastiveSearch, Speculative
from lm.decode.writer import Request, Writer
from lm.errors import UserError, check
from lm.sizes import check_memory
from lm.strict_json import load_json

LONGEST = 256  # new tokens, unless --max_new_tokens says otherwise
WRITE = ("greedy", "sample", "beam", "contrastive", "speculative")


@dataclasses.dataclass
class Command:
    """`options`: those given that only some strategies have; `flags`: all flags of the command."""

    strategy: str
    options: dict[str, Any]
    flags: Mapping[str, Any]

    def __post_init__(self):
        self.sampling()  # a mistake in the options is told before a model is opened
        for name, texts in (("stop", self.flags["stop"]), ("bad_words", self.options.get("bad_words", ()))):
            check(all(texts), f"--{name}= is empty: name a text, or leave the flag out")

    def some(self, *names: str) -> dict[str, Any]:
        return {name: self.options[name] for name in names if name in self.options}

    def settings(self) -> dict[str, Any]:
        """Give what samples depend on besides their prompts."""
        names = ("workdir", "model", "step", "strategy", "max_new_tokens", "stop", "seed", "chat", "system", "regex")
        found = self.options | {name: self.flags[name] for name in (*names, "json_schema", "draft")}
        return found | {"special": True} if self.flags["special"] else found

    def job(self, config: Any, params: Any, tokenizer: Tokenizer) -> Any:
        """Make the job of a model; raises UserError where it has not this strategy."""
        objective = config.objective
        tokenizer = tokenizer.reading_special() if self.flags["special"] else tokenizer
        if self.strategy not in WRITE or not objective.writes:
            self.has(objective)
            return self.filling(objective, params, tokenizer)
        writer = Writer(objective, params, tokenizer)
        folder = Path(self.flags["workdir"] or self.flags["model"])
        writer.stops = tuple(dict.fromkeys((*writer.stops, *named_stops(folder, tokenizer))))
        chat = None
        if self.flags["chat"] or holds_messages(self.flags["prompts"]):
            chat = Chat(folder)
        ask = Request(
            new=1,
            sampling=self.way(tokenizer),
            rules=self.rules(tokenizer),
            samples=self.options.get("num_samples", 1),
            seed=self.flags["seed"],
            stop=tuple(self.flags["stop"]),
        )
        check(ask.samples >= 1, f"num_samples={ask.samples} must be at least 1")
        job = LeftToRight(
            writer, ask, chat if self.flags["chat"] or self.flags["prompts"] else None, self.flags["system"]
        )
        new = self.new(job)
        least = self.options.get("min_new_tokens", 0)
        check(least <= new, f"--min_new_tokens={least} is more than the {new} new tokens that there may be: lower it")
        ask = dataclasses.replace(ask, new=new)
        check_rows(writer, ask)
        return dataclasses.replace(job, ask=dataclasses.replace(ask, grammar=self.grammar(writer, new)))

    def has(self, objective: Any) -> None:
        """Raise UserError unless the model has the strategy."""
        kinds = objective.fills
        if self.strategy in kinds:
            return
        kind = type(objective).__name__
        if objective.writes:
            check(
                False,
                f"--strategy={self.strategy} is for models that fill in; a model of {kind} writes: greedy, sample, beam",
            )
        check(bool(kinds), f"a model of {kind} does not write text")
        raise UserError(
            f"a model of {kind} does not continue text from left to right: --strategy={' or '.join(kinds)} is what it can do"
        )

    def filling(self, objective: Any, params: Any, tokenizer: Tokenizer) -> Any:
        """Make the job of a model that fills in."""
        count = self.options.get("num_samples", 1)
        if self.strategy == "fill":
            return Masks(objective, params, tokenizer, self.some("top_k", "order"))
        if self.strategy == "gibbs":
            options = self.some("top_k", "temperature", "iterations", "burn_in", "walk") | {"count": count}
            length = {"length": self.flags["max_new_tokens"]} if self.flags["max_new_tokens"] else {}
            size = 4 * count * (tokenizer.vocab + 2 * length.get("length", 1))  # scores of a token each, and the texts
            check_memory(size, f"drawing {count:,} texts at a time", "lower --num_samples")
            return Walks(objective, params, tokenizer, options | length | {"seed": self.flags["seed"]})
        lengths = self.options.get("num_lengths", 5)
        check(count <= lengths, f"num_samples={count} is more than num_lengths={lengths}")
        return Targets(objective, params, tokenizer, self.some("iterations") | {"lengths": lengths}, count)

    def sampling(self) -> Sampling:
        names = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon", "eta")
        if self.strategy == "greedy":
            return Sampling(strategy="greedy")
        return Sampling(**(self.some(*names) if self.strategy in ("sample", "speculative") else {}))

    def way(self, tokenizer: Tokenizer) -> Any:
        """Give how tokens are chosen."""
        o = self.options
        if self.strategy == "beam":
            early = {"true": True, "false": False}
            early = early.get(o.get("early_stopping", "false"), o.get("early_stopping"))
            names = {
                "num_beams": "count",
                "num_beam_groups": "groups",
                "length_norm": "penalty",
                "num_samples": "returned",
            }
            given = {names.get(name, name): o[name] for name in o if name in names or name in BEAM}
            return Beams(**given | {"early_stopping": early})
        if self.strategy == "contrastive":
            return ContrastiveSearch(top_k=o.get("top_k", 4), alpha=o.get("penalty_alpha", 0.6))
        if self.strategy == "speculative":
            config, params, known = opened(*either_folder(self.flags["draft"]))
            same = known.core.get_vocab() == tokenizer.core.get_vocab()
            check(same, f"--draft={self.flags['draft']} has another tokenizer than the model it is to propose for")
            draft = Writer(config.objective, params, known)
            return Speculative(draft=draft, tokens=o.get("draft_tokens", 4), sampling=self.sampling())
        return self.sampling()

    def rules(self, tokenizer: Tokenizer) -> Rules:
        """Make the rules; words are banned as they begin a text and behind a space."""
        names = [field.name for field in dataclasses.fields(Rules)]
        given = self.some(*[name for name in names if name not in ("bad_words", "forced_prefix")])
        spaced = not tokenizer.characters or tokenizer.token_id(" ") is not None
        words = [w for word in self.options.get("bad_words", ()) for w in ([word, " " + word] if spaced else [word])]
        ids = [tuple(tokenizer.encode(word).tolist()) for word in words]
        prefix = tuple(tokenizer.encode(self.options.get("forced_prefix", "")).tolist())
        return Rules(**given, bad_words=tuple(dict.fromkeys(filter(None, ids))), forced_prefix=prefix)

    def grammar(self, writer: Writer, new: int) -> Any:
        """Compile what the text must follow."""
        make, what = (
            (from_regex, self.flags["regex"]) if self.flags["regex"] else (from_json_schema, self.flags["json_schema"])
        )
        return None if what is None else make(what, writer.tokenizer, writer.stops, new)

    def new(self, job: LeftToRight) -> int:
        """Give how many tokens may be new: as told, or what the longest prompt leaves."""
        if self.flags["max_new_tokens"] is not None:
            return self.flags["max_new_tokens"]
        limit = job.writer.steps.limit
        if limit is None:
            return LONGEST
        if self.flags["prompts"]:
            from lm.decode.files import encoded

            longest = max((len(prompt.tokens) for _, prompt in encoded(job, Path(self.flags["prompts"]))), default=0)
        else:
            longest = max(len(job.encode({"prompt": text}).tokens) for text in self.flags["prompt"])
        return max(1, min(LONGEST, limit - longest))

    def say(self, job: Any, texts: Sequence[str]) -> list[Any]:
        """Write and show the samples of each text; a single one is shown as it comes where somebody watches."""
        prompts = [(text, job.encode({"prompt": text})) for text in texts]
        numbers = occurrences([prompt for _, prompt in prompts])
        shades = bool(self.flags["show_probabilities"])
        writes = isinstance(job, LeftToRight)
        between = "" if writes and job.chat is None and job.writer.objective.writes == "text" else "\n"
        live = writes and isinstance(job.ask.sampling, Sampling) and sys.stdout.isatty()
        if live and len(texts) == job.ask.samples == 1:
            from lm.console import printable

            stream = Stream(job.writer.tokenizer, job.ask.stop, shades)
            print(f"\033[2m{printable(texts[0])}\033[0m", end=between, flush=True)
            try:
                ((_, (sample,)),) = job.samples(prompts, numbers, stream)
            except KeyboardInterrupt:
                print(flush=True)  # what was written stays; the rest of the line is the shell's
                raise
            stream.end(sample)
            return [sample]
        found = dict(job.samples(prompts, numbers))
        samples = [sample for i in range(len(texts)) for sample in found[i]]
        if writes or isinstance(job, Targets):
            show(samples, (job.writer if writes else job).tokenizer, shades, between)
        else:
            show_filled(samples)
        if writes and job.writer.accepted is not None:
            print(f"{job.writer.accepted:.0%} of the draft's tokens were accepted")
        return samples


BEAM = ("length_penalty", "diversity_penalty", "coverage_penalty")


def either_folder(folder: str) -> tuple[str | None, str | None]:
    """Tell a run from a model folder: (workdir, model)."""
    check(Path(folder).is_dir(), f"--draft={folder}: there is no such folder")
    return (folder, None) if (Path(folder) / "checkpoints").is_dir() else (None, folder)


def named_stops(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Read the ids that a published folder's generation_config.json says end a text."""
    path = folder.expanduser() / "generation_config.json"
    if not path.is_file():
        return ()
    ends = load_json(path, dict).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return tuple(i for i in ends if isinstance(i, int) and 0 <= i < tokenizer.vocab)


def holds_messages(path: str | None) -> bool:
    """Tell whether a file of prompts holds conversations."""
    from lm.decode.files import records

    return bool(path) and path.endswith(".jsonl") and any("messages" in record for _, record in records(Path(path)))
