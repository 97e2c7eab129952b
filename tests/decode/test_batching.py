"""Files of prompts: the same as one at a time, in order, resumed after a kill, refused before anything is written."""

import functools
import hashlib
import json
import os

import numpy as np
import pytest

from lm import sizes
from lm.data.rows.prompts import Prompt
from lm.data.tokenizer.tokenizer import Bytes
from lm.decode import files
from lm.decode.chat import Chat
from lm.decode.files import complete
from lm.decode.generate import generate
from lm.decode.loop import begin
from lm.decode.modes import LeftToRight, check_rows
from lm.decode.show import FileProgress
from lm.decode.speed import random_params
from lm.decode.strategies import AncestralSampling
from lm.decode.writer import Request, Writer
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.outputs import Claim

TOKENIZER = Bytes().build(lambda: [])
MODEL = Transformer(vocab=TOKENIZER.vocab, context=96, width=16, depth=1, heads=2, init=0.4, init_positions=0.4)
DRAWN = AncestralSampling(temperature=0.9, top_k=50)


@functools.cache
def opened():
    return Causal(model=MODEL).resolve(TOKENIZER), random_params(MODEL)


def job(samples=1, strategy=DRAWN, new=8, chat=None):
    request = Request(new=new, samples=samples, seed=4)
    return LeftToRight(Writer(*opened(), TOKENIZER), strategy, request, chat)


def ragged(count):
    random = np.random.default_rng(0)
    lines = ["".join(map(chr, random.integers(97, 123, n))) for n in random.integers(0, 80, count)]
    lines[5] = lines[77] = lines[20]
    return lines


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_as_one_at_a_time(tmp_path):
    lines, (path, output) = ragged(150), (tmp_path / "prompts.txt", tmp_path / "out.jsonl")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = begin._cache_size()
    assert complete(job(samples=2), path, output, {}) == 150
    assert begin._cache_size() - before <= 6  # widths of 16, 24, 32, 48, 64, 96 tokens at most
    found = read(output)
    assert [s["index"] for s in found] == [i for i in range(150) for _ in range(2)]
    assert [s["prompt"] for s in found[::2]] == lines
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.txt", "out.jsonl"] or len(list(tmp_path.iterdir())) == 2
    options = {"max_new_tokens": 8, "strategy": DRAWN, "num_samples": 2, "seed": 4}
    for i in (0, 5, 60, 149):
        alone = generate(*opened(), TOKENIZER, [lines[i]], **options)
        assert [s.tokens for s in alone] == [s["tokens"] for s in found[2 * i : 2 * i + 2]]
        np.testing.assert_allclose([s.logprob for s in alone], [s["logprob"] for s in found[2 * i : 2 * i + 2]], rtol=1e-4)
    again = generate(*opened(), TOKENIZER, [lines[5]] * 3, **options)  # a prompt that comes back is drawn for anew
    assert [s.tokens for s in again] == [found[2 * i + k]["tokens"] for i in (5, 20, 77) for k in (0, 1)]


class Killed:
    """A job that is stopped after some prompts."""

    def __init__(self, job, after):
        self.job, self.remaining, self.encode, self.notice = job, after, job.encode, job.notice
        self.done = 0

    def samples(self, prompts, numbers):
        for samples in self.job.samples(prompts, numbers):
            if not self.remaining:
                raise KeyboardInterrupt
            self.remaining -= 1
            self.done += 1
            yield samples


def test_goes_on_after_a_kill(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "WINDOW", 40)
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(ragged(100)) + "\n", encoding="utf-8")
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    complete(job(samples=2), path, whole, {"seed": 4})
    for after, junk in (
        (30, '{"index": 1, "pro'),
        (25, '{"index": 99, "prompt": "", "text": "", "tokens": [], "logprob": 0}\n'),
    ):
        with pytest.raises(KeyboardInterrupt):
            complete(Killed(job(samples=2), after), path, output, {"seed": 4})
        assert not output.exists()
        with (tmp_path / "out.jsonl.partial").open("a", encoding="utf-8") as file:
            file.write(junk)
    last = Killed(job(samples=2), 1000)
    complete(last, path, output, {"seed": 4}, FileProgress)
    assert last.done == 100 - 55
    assert "going on behind 55 of 100 prompts" in capsys.readouterr().out
    assert [s["tokens"] for s in read(output)] == [s["tokens"] for s in read(whole)]
    assert [s["index"] for s in read(output)] == [s["index"] for s in read(whole)]


def test_other_settings_and_files_are_not_mixed(tmp_path):
    path, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    path.write_text("ab\ncd\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        complete(Killed(job(), 1), path, output, {"seed": 4, "top_k": 3})
    with pytest.raises(UserError, match="another seed, top_k"):
        complete(job(), path, output, {"seed": 5})
    path.write_text("ab\nce\n", encoding="utf-8")
    with pytest.raises(UserError, match="another prompts"):
        complete(job(), path, output, {"seed": 4, "top_k": 3})
    (tmp_path / "out.jsonl.partial").unlink()
    complete(job(), path, output, {})
    with pytest.raises(UserError, match="there already"):
        complete(job(), path, output, {})
    complete(job(), path, output, {}, overwrite=True)


def test_an_unfinished_file_has_one_writer(tmp_path):
    path, output, partial = (tmp_path / name for name in ("prompts.txt", "out.jsonl", "out.jsonl.partial"))
    path.write_text("ab\ncd\n", encoding="utf-8")
    with Claim(partial, "wait"), pytest.raises(UserError, match=rf"in use by process {os.getpid()} on .*another --output"):
        complete(job(), path, output, {})
    (tmp_path / ".out.jsonl.partial.lock").write_text("process 1 on a machine that is off")  # nobody holds it
    complete(job(), path, output, {})
    assert {p.name for p in tmp_path.iterdir()} == {"prompts.txt", "out.jsonl"}


def test_what_two_writers_left_holds_one_set_of_samples(tmp_path):
    path, output, partial = (tmp_path / name for name in ("prompts.txt", "out.jsonl", "out.jsonl.partial"))
    path.write_text("ab\ncd\nef\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        complete(Killed(job(samples=2), 2), path, output, {})
    whole = partial.read_text()
    partial.write_text(whole + whole.split("\n", 1)[1])
    complete(job(samples=2), path, output, {})
    assert [s["index"] for s in read(output)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("what somebody wrote", 1),
        ("[1]\n", 1),
        ('{"settings": 5}\n', 1),
        ('SETTINGS\n\x00\x00\n{"done": 0}\n', 2),
        ('SETTINGS\n{"done": "x"}\n', 2),
        ('SETTINGS\n{"index": 0, "prompt": "a"}\n{"other": 1}\n', 3),
        ("SETTINGS\n" + "[" * 5000 + "\n", 2),
    ],
)
def test_an_unfinished_file_of_another_form_is_left_alone(tmp_path, text, line):
    path, partial = tmp_path / "prompts.txt", tmp_path / "out.jsonl.partial"
    path.write_text("ab\n", encoding="utf-8")
    settings = {"settings": {"prompts": hashlib.sha256(path.read_bytes()).hexdigest()}}
    text = text.replace("SETTINGS", json.dumps(settings))
    partial.write_text(text)
    with pytest.raises(UserError, match=f"partial, line {line}: no unfinished file of lm.generate.*another --output"):
        complete(job(), path, tmp_path / "out.jsonl", {})
    assert partial.read_text() == text
    partial.unlink()
    partial.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        complete(job(), path, tmp_path / "out.jsonl", {})


def test_more_rows_than_memory_holds_are_refused(monkeypatch):
    made = job(samples=1_000_000, new=80)
    monkeypatch.setattr(sizes, "memory", lambda: 1 << 30)
    with pytest.raises(UserError, match=r"writing 1,000,000 texts at a time needs 1\d\.\d GB, this machine has 1\.07 GB"):
        check_rows(made.writer, made.strategy, made.request)
    check_rows(made.writer, made.strategy, job(samples=1000, new=80).request)  # 15 MB


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    path.write_text("ab\n", encoding="utf-8")
    output.write_text("before")

    def full(file):
        if (tmp_path / "out.jsonl.partial").exists():  # the samples are there, and are being sorted
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        complete(job(), path, output, {}, overwrite=True)
    monkeypatch.undo()
    assert output.read_text() == "before"
    assert {p.name for p in tmp_path.iterdir()} == {"prompts.txt", "out.jsonl", "out.jsonl.partial"}
    complete(job(), path, output, {}, overwrite=True)
    assert len(read(output)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "line 2: no valid JSON"),
        ('{"prompt": "a"}\n{"a":' + "[" * 5000, "line 2: nested deeper"),
        ('{"prompt": "a", "n": ' + "9" * 5000 + "}", "line 1: a number of too many digits"),
        ('{"prompt": "a"}\n\n{"text": "b"}\n', 'line 3: an object with "prompt"'),
        ('{"prompt": 3}\n', "line 1"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "no chat template"),
        ("", "no prompts"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_wrong_line_is_told_before_anything_is_written(tmp_path, text, words):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        complete(job(), path, tmp_path / "out.jsonl", {})
    assert words in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_conversations(tmp_path):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    path, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    path.write_text(json.dumps({"messages": messages}) + "\n" + '{"prompt": "hi"}\n')
    chatting = job(chat=Chat(tmp_path))
    assert TOKENIZER.decode(chatting.encode({"messages": messages}).tokens) == "<system>s<user>hi<bot>"
    complete(chatting, path, output, {})
    expected = [Prompt(TOKENIZER.encode(text)) for text in ("<system>s<user>hi<bot>", "<user>hi<bot>")]
    (_, (first,)), (_, (second,)) = sorted(chatting.samples([("", prompt) for prompt in expected], [0, 0]))
    assert [s["tokens"] for s in read(output)] == [first.tokens, second.tokens]
    assert json.loads(read(output)[0]["prompt"]) == messages
