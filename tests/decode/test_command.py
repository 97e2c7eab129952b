"""python -m lm.generate: what it prints and writes, and how it refuses."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from lm.config import Config, to_json
from lm.data.tokenizer.tokenizer import Bytes, Characters
from lm.decode.options import translated
from lm.decode.processors import Rules
from lm.decode.request import Command, named_rules
from lm.decode.results import Sample
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.sharding import unbox
from lm.training.checkpoint import Checkpoints
from lm.training.state import create
from tests import processes


def command(*arguments):
    return processes.command("lm.generate", *arguments)


SITTING = """
import contextlib, io, json, sys
from absl import flags
from lm import generate
from lm.flags import run
found = []
for arguments in json.load(sys.stdin):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    sys.argv, out, err, status = ["lm.generate", *arguments], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(generate.main, groups=generate.groups())
        except SystemExit as end:
            status = end.code or 0
    found.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


def sitting(commands, prologue=""):
    """Run the command many times in one process: starting jax takes seconds. Return (status, stdout, stderr) of each."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu"}
    text = json.dumps([[str(a) for a in arguments] for arguments in commands])
    result = subprocess.run(
        [sys.executable, "-c", prologue + SITTING], input=text, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with a random model, checkpoints of steps 1 and 2, and the character tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = Characters().build(lambda: ["abcdefghijklmnopqrstuvwxyz\n "])
    tokenizer.save(folder / "tokenizer.json")
    model = Transformer(vocab=tokenizer.vocab, context=32, width=16, depth=1, heads=2, init=0.5, init_positions=0.5)
    config = Config(objective=Causal(model=model))
    (folder / "config.json").write_text(to_json(config), encoding="utf-8")
    checkpoints = Checkpoints(folder, config.keep)
    for step in (1, 2):
        params = unbox(Model(model).init(jax.random.key(step), np.zeros((1, 8), np.int32))["params"])
        checkpoints.save(step, create(config, optax.sgd(1.0), params), {}, figures={"loss": float(step)})
    checkpoints.close()
    return folder


def test_prints_and_writes_samples(workdir, tmp_path):
    output = tmp_path / "samples.jsonl"
    arguments = ["--prompt=abc", "--prompt=", "--num_samples=2", "--max_new_tokens=5", "--seed=1"]
    result = command(f"--workdir={workdir}", *arguments, f"--output={output}")
    assert (result.returncode, result.stderr) == (0, "")
    samples = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [s["prompt"] for s in samples] == ["abc", "abc", "", ""]
    assert all(set(s) == {"prompt", "text", "tokens", "logprob"} for s in samples)
    assert all(len(s["tokens"]) == len(s["text"]) == 5 and s["logprob"] < 0 for s in samples)
    assert f"abc{samples[0]['text']}\n" in result.stdout
    assert "\033" not in result.stdout


def test_takes_the_checkpoint_asked_for(workdir):
    steps = ("1", "2", "best", "latest")
    found = sitting([f"--workdir={workdir}", "--prompt=a", "--strategy=greedy", f"--step={step}"] for step in steps)
    shown = {step: out for step, (_, out, _) in zip(steps, found)}
    assert shown["best"] == shown["1"] != shown["2"] == shown["latest"]
    assert len(shown["1"]) == 33  # without --max_new_tokens: up to the context


MISTAKES = [
    ([], "--workdir=RUN"),
    (["--workdir=nowhere"], "'nowhere' is not a run"),
    (["--workdir={run}", "--strategy=gredy"], "did you mean 'greedy'?"),
    (["--workdir={run}", "--temperature=-1"], "must be positive"),
    (["--workdir={run}", "--top_p=1.5"], "(0, 1]"),
    (["--workdir={run}", "--prompt=aQ"], "'Q'"),
    (["--workdir={run}", "--prompt=abcdefgh", "--max_new_tokens=30", "--strategy=beam"], "8 prompt tokens + 30 new ones"),
    (["--workdir={run}", "--step=7"], "has 1, 2"),
    (["--workdir={run}", "--output=no/such/file"], "no/such"),
    (["--workdir={run}", "--num_sample=3"], "num_sample"),
    (
        ["--workdir={run}", "--strategy=greedy", "--top_p=0.9"],
        "--top_p belongs to --strategy=sample, beam_sample or speculative",
    ),
    (["--workdir={run}", "--num_beams=3"], "--num_beams belongs to --strategy=beam or beam_sample, not to sample"),
    (["--workdir={run}", "--strategy=beam", "--regex=a"], "--regex belongs to"),
    (["--workdir={run}", "--strategy=beam_sample", "--temperature=0"], "use --strategy=beam"),
    (["--workdir={run}", "--strategy=beam_sample", "--num_beam_groups=2"], "beam sampling has no groups"),
    (["--workdir={run}", "--strategy=beam", "--stop=a"], "--stop belongs to"),
    (["--workdir={run}", "--regex=a", "--json_schema=null"], "exclude each other"),
    (["--workdir={run}", "--strategy=speculative"], "--draft"),
    (["--workdir={run}", "--strategy=speculative", "--draft=nowhere"], "no such folder"),
    (["--workdir={run}", "--strategy=beam", "--num_beams=2", "--num_samples=3"], "raise count"),
    (["--workdir={run}", "--strategy=fill"], "for models that fill in"),
    (["--workdir={run}", "--system=x"], "--chat"),
    (["--workdir={run}", "--chat"], "no chat template"),
    (["--workdir={run}", "--prompts=nowhere.txt"], "no such file"),
    (["--workdir={run}", "--prompts={run}/config.json"], "--output"),
    (["--workdir={run}", "--regex=(a"], "no regular expression"),
    (["--workdir={run}", "--regex=[a-c]{9}", "--max_new_tokens=5"], "at least 9 tokens"),
    (["--workdir={run}", "--repetition_penalty=0"], "must be positive"),
    (["--workdir={run}", "--bad_words=aQ"], "'Q'"),
    (["--workdir={run}", "--config.seed=3"], "--config"),
    (["--workdir={run}", "--seed=99999999999999999999999"], "range [0, 9223372036854775807]"),
    (["--workdir={run}", "--num_samples=1000000000"], "range [1, 1000000]"),
    (["--workdir={run}", "--strategy=beam", "--num_beams=100000000"], "range [1, 10000]"),
    (["--workdir={run}", "--max_new_tokens=1000000000000"], "range [1, 10000000]"),
    (["--workdir={run}", "--top_k=-1"], "range [0, 1000000]"),
    (["--workdir={run}", "--regex=(){4294967000}"], "followed by the empty text only"),
    (["--workdir={run}", "--prompts=" + __file__, "--output={run}/metrics.jsonl"], "belongs to '{run}', a run"),
    (["--workdir={run}", "--prompts=" + __file__, "--output=" + __file__], "is the input itself"),
]


def test_mistakes_end_in_one_line(workdir):
    commands = [[a.replace("{run}", str(workdir)) for a in arguments] for arguments, _ in MISTAKES]
    for command, (_, words), (status, out, err) in zip(commands, MISTAKES, sitting(commands), strict=True):
        assert status == 2, (command, err)
        assert err.startswith("error: "), command
        assert words.replace("{run}", str(workdir)) in err, command
        assert (err.count("\n"), out) == (1, ""), command


OUTSIDE = """
from dataclasses import dataclass
import numpy as np
from lm.decode.options import option
from lm.decode.strategies import STRATEGIES, Strategy

@dataclass(frozen=True, kw_only=True)
class Constant(Strategy):
    letter: int = option(0, "id of every token", low=0, high=9)

    def write(self, writer, request, batch, keys_B, watch):
        return [[(np.full(request.new, self.letter), np.zeros(request.new))] for _ in batch]

STRATEGIES["constant"] = Constant
"""


def test_a_strategy_from_outside_is_a_class_and_a_line(workdir):
    """Its flag, bounds, checks and samples come from the fields; `lm` itself stays as it is."""
    commands = [[f"--workdir={workdir}", "--prompt=x", "--max_new_tokens=4", *more] for more in (
        ["--strategy=constant", "--letter=5", "--min_new_tokens=2"], ["--strategy=constant"], ["--letter=5"],
        ["--strategy=constant", "--letter=10"], ["--strategy=constant", "--num_samples=2"], ["--help"],
    )]  # fmt: skip
    chosen, default, other, bound, samples, usage = sitting(commands, OUTSIDE)
    assert [status for status, *_ in (chosen, default)] == [0, 0], (chosen, default)
    assert chosen[1] == "x" + 4 * chosen[1][1] + "\n"
    assert default[1] != chosen[1]
    assert "--letter belongs to --strategy=constant, not to sample" in other[2]
    assert "range [0, 9]" in bound[2]
    assert "--num_samples belongs to" in samples[2]
    assert "Options of constant: --letter=INT id of every token (default 0)" in " ".join(usage[1].split())


def test_a_run_without_a_checkpoint(workdir, tmp_path):
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text((workdir / "tokenizer.json").read_text())
    result = command(f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert "no finished checkpoint" in result.stderr


STRATEGIES = {
    "greedy": ["--repetition_penalty=1.3", "--no_repeat_ngram=2", "--bad_words=ab", "--min_new_tokens=3"],
    "sample": ["--min_p=0.01", "--typical_p=0.9", "--epsilon=0.001", "--eta=0.001", "--forced_prefix=xy", "--num_samples=2"],
    "beam": ["--num_beams=4", "--num_beam_groups=2", "--diversity_penalty=0.5", "--length_penalty=0.8", "--num_samples=2",
             "--early_stopping=never"],
    "beam_sample": ["--num_beams=3", "--top_k=5", "--num_samples=2"],
    "contrastive": ["--penalty_alpha=0.4", "--top_k=3"],
    "speculative": ["--draft={run}", "--draft_tokens=3", "--temperature=0.7"],
}  # fmt: skip


@pytest.mark.slow
def test_every_strategy_that_writes(workdir, tmp_path):
    commands = []
    for strategy, options in STRATEGIES.items():
        options = [option.replace("{run}", str(workdir)) for option in options]
        where = [f"--workdir={workdir}", f"--output={tmp_path / strategy}", f"--strategy={strategy}"]
        commands.append([*where, "--prompt=abc", "--max_new_tokens=8", *options])
    for (strategy, options), (status, _, err) in zip(STRATEGIES.items(), sitting(commands), strict=True):
        assert (status, err) == (0, ""), strategy
        samples = [json.loads(line) for line in (tmp_path / strategy).read_text(encoding="utf-8").splitlines()]
        assert len(samples) == (2 if "--num_samples=2" in options else 1)
        assert all(len(s["text"]) == 8 and s["logprob"] < 0 for s in samples)
        if strategy == "sample":
            assert all(s["text"].startswith("xy") for s in samples)


def test_a_file_of_prompts(workdir, tmp_path):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("abc\n\nabcdefgh\nabc\n")
    files = [f"--workdir={workdir}", f"--prompts={prompts}", f"--output={output}"]
    listed = [f"--workdir={workdir}", "--prompt=abc", "--max_new_tokens=3", "--show_probabilities"]
    beyond = [f"--workdir={workdir}", f"--prompts={prompts}", f"--output={tmp_path / 'long.jsonl'}", "--max_new_tokens=30"]
    found = sitting([[*files, "--seed=2"], files, listed, beyond])
    (first, said, err), (again, _, refused), (_, table, _), (_, _, slid) = found
    assert (first, err) == (0, "")
    assert "the samples of 4 prompts" in said
    samples = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [s["prompt"] for s in samples] == ["abc", "", "abcdefgh", "abc"]
    assert all(len(s["tokens"]) == 24 for s in samples)  # what the longest prompt leaves of the context
    assert (again, refused.count("\n")) == (2, 1)
    assert "there already" in refused
    assert slid == "the context holds 32 tokens: beyond it the text goes on from the last 16\n"
    assert all(0 < float(line.split()[-1]) < 1 for line in table.splitlines()[-3:])


LONG = {"vocab": 257, "context": 4096, "width": 32, "depth": 1, "heads": 2, "positions": "rotary"}


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    """A run whose model writes bytes, the umlauts and emojis of its bias alone, and never ends."""
    folder = tmp_path_factory.mktemp("chatty")
    tokenizer = Bytes().build(lambda: [])
    tokenizer.save(folder / "tokenizer.json")
    config = Config(objective=Causal(model=Transformer(**LONG, head_bias=True)).resolve(tokenizer))
    (folder / "config.json").write_text(to_json(config), encoding="utf-8")
    params = unbox(Model(config.objective.model).init(jax.random.key(0), np.zeros((1, 8), np.int32))["params"])
    checkpoints = Checkpoints(folder, config.keep)
    checkpoints.save(1, create(config, optax.sgd(1.0), params), {}, figures={"loss": 1.0})
    checkpoints.close()
    return folder


def on_terminal(arguments, until=None):
    """Run the command on a pseudo-terminal; interrupt it once `until` bytes came.

    Give the bytes, the status, the seconds it took to end and stderr.
    """
    parent, child = pty.openpty()
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lm.generate", *map(str, arguments)],
        env=environment,
        stdout=child,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    os.close(child)
    seen, began = b"", None
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
        if until and began is None and len(seen) > until:
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
    os.close(parent)
    process.wait()
    return seen, process.returncode, time.monotonic() - (began or time.monotonic()), process.stderr.read().decode()


def test_text_comes_as_it_is_written(chatty, tmp_path):
    output = tmp_path / "out.jsonl"
    arguments = [f"--workdir={chatty}", "--prompt=hello", "--max_new_tokens=200", "--regex=(🙂[a-zäß日]){20,}"]
    seen, status, _, errors = on_terminal([*arguments, f"--output={output}"])
    assert (status, errors) == (0, "")
    text = json.loads(output.read_text(encoding="utf-8"))["text"]
    notice = " (compiling)"
    before = f"\033[2mhello\033[0m\033[2m{notice}\033[0m" + "\b" * len(notice) + "\033[K"
    assert seen.decode().replace("\r\n", "\n") == f"{before}{text}\n"
    assert "🙂" in text


def test_an_interrupt_is_answered_and_keeps_what_is_there(chatty):
    arguments = [f"--workdir={chatty}", "--prompt=hello", "--max_new_tokens=4000", "--regex=[a-z]{4000}"]
    seen, status, seconds, errors = on_terminal(arguments, until=100)
    assert status == 130
    assert errors == "interrupted\n"
    assert seconds < 30  # the whole text takes longer
    assert len(seen) > 100


def test_a_conversation_keeps_its_history(monkeypatch, capsys):
    """Each line is answered with all messages before it as the prompt; empty lines are left out."""
    seen = []

    def encode(record):
        seen.append([(m["role"], m["content"]) for m in record["messages"]])

    def samples(prompts, numbers, watch):
        return [(0, [Sample(prompts[0][0], f"reply {len(seen)}", [1], -1.0)])]

    strategy = SimpleNamespace(streams=True)
    job = SimpleNamespace(system="Be brief.", encode=encode, samples=samples, strategy=strategy)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n  again \n"))
    found = Command.converse(None, job)
    assert [sample.prompt for sample in found] == ["hello", "again"]
    assert capsys.readouterr().out == "reply 1\nreply 2\n"
    first = [("system", "Be brief."), ("user", "hello")]
    assert seen == [first, [*first, ("assistant", "reply 1"), ("user", "again")]]


def test_rules_of_a_published_folder_are_read():
    """Those that belong to the model; ids outside of the vocabulary and values of other kinds are left out."""
    tokenizer = Bytes().build(lambda: [])
    settings = {
        "forced_bos_token_id": 7, "forced_eos_token_id": [9], "suppress_tokens": [1, 2, 999, "x"], "begin_suppress_tokens": 3,
        "renormalize_logits": True, "sequence_bias": [[[4, 5], -2], ["x", 1.0], [[6]]], "temperature": 0.1, "num_beams": 4,
    }  # fmt: skip
    found = Rules(**named_rules(settings, tokenizer, 20, begins=True))
    expected = Rules(
        forced_begin=7, forced_end=9, limit=20, suppress=(1, 2), begin_suppress=(3,), renormalise=True,
        sequence_bias=(((4, 5), -2.0),),
    )  # fmt: skip
    assert found == expected
    assert Rules(**named_rules(settings, tokenizer, 20, begins=False)).forced_begin is None
    assert Rules(**named_rules({}, tokenizer, 20, begins=True)) == Rules()


def test_names_of_transformers_are_ours():
    line = ["lm.generate", "--num_return_sequences=3", "--stop_strings", "a=b", "--do_sample=false", "--prompt=--do_sample"]
    expected = ["lm.generate", "--num_samples=3", "--stop", "a=b", "--strategy=greedy", "--prompt=--do_sample"]
    assert translated(line) == expected
    assert translated(["--do_sample"]) == ["--strategy=sample"]
    assert translated(["--num_beams=4", "--do_sample"]) == ["--num_beams=4", "--strategy=beam_sample"]
    assert translated(["--num_beams=1", "--do_sample=false"]) == ["--num_beams=1", "--strategy=greedy"]
