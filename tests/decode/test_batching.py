"""Files of prompts: the same as one at a time, in order, resumed after a kill, refused before anything is written."""

import functools
import json

import numpy as np
import pytest

from lm.data.prompts import Prompt
from lm.data.tokenizers import Bytes
from lm.decode import batching
from lm.decode.batching import complete
from lm.decode.chat import Chat
from lm.decode.generate import Request, Writer, generate
from lm.decode.jobs import LeftToRight
from lm.decode.loop import begin
from lm.decode.sampling import Sampling
from lm.decode.speed import random_params
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.show import FileProgress

TOKENIZER = Bytes().build(lambda: [])
MODEL = Transformer(vocab=TOKENIZER.vocab, context=96, width=16, depth=1, heads=2, init=0.4, init_positions=0.4)
DRAWN = Sampling(temperature=0.9, top_k=50)


@functools.cache
def opened():
    return Causal(model=MODEL).resolve(TOKENIZER), random_params(MODEL)


def job(samples=1, sampling=DRAWN, new=8, chat=None):
    ask = Request(new=new, sampling=sampling, samples=samples, seed=4)
    return LeftToRight(Writer(*opened(), TOKENIZER), ask, chat)


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
    options = {"max_new_tokens": 8, "sampling": DRAWN, "num_samples": 2, "seed": 4}
    for i in (0, 5, 60, 149):
        alone = generate(*opened(), TOKENIZER, [lines[i]], **options)
        assert [s.tokens for s in alone] == [s["tokens"] for s in found[2 * i : 2 * i + 2]]
        np.testing.assert_allclose(
            [s.logprob for s in alone], [s["logprob"] for s in found[2 * i : 2 * i + 2]], rtol=1e-4
        )
    again = generate(*opened(), TOKENIZER, [lines[5]] * 3, **options)  # a prompt that comes back is drawn for anew
    assert [s.tokens for s in again] == [found[2 * i + k]["tokens"] for i in (5, 20, 77) for k in (0, 1)]


class Killed:
    """A job that is stopped after some prompts."""

    def __init__(self, job, after):
        self.job, self.left, self.encode = job, after, job.encode
        self.asked = 0

    def write(self, prompts, numbers):
        for found in self.job.write(prompts, numbers):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.asked += 1
            yield found


def test_goes_on_after_a_kill(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(batching, "WINDOW", 40)
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
    assert last.asked == 100 - 55
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "line 2: no valid JSON"),
        ('{"prompt": "a"}\n\n{"text": "b"}\n', 'line 3: an object with "prompt"'),
        ('{"prompt": 3}\n', "line 1"),
        (json.dumps({"prompt": "a" * 90}), "line 1: 91 prompt tokens + 8 new ones pass the model's context of 96"),
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
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
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
