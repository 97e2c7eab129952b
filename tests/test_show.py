"""Text on the screen as it comes: whole characters only, nothing that a stop string may take away."""

import numpy as np
import pytest

from lm.data.tokenizer.tokenizer import BytePair, Bytes
from lm.decode.generate import to_sample
from lm.decode.show import Stream, shaded, tokens_table

TEXT = "hé 日本 🙂 ok\n\nend of it"
TOKENIZERS = {"bytes": Bytes().build(lambda: []), "bpe": BytePair(vocab=270).build(lambda: ["of it of it"])}


def stream(tokenizer, ids, capsys, stop=(), **options):
    """Feed ids one by one; give what was printed each time, and the sample."""
    out, logprobs, said = Stream(tokenizer, stop, **options), np.full(len(ids), -0.5, np.float32), []
    for count in range(1, len(ids) + 1):
        out([(ids[:count], logprobs[:count])])
        said.append(capsys.readouterr().out)
    sample = to_sample(tokenizer, "", ids, logprobs, stop)
    out.end(sample)
    return said, capsys.readouterr().out, sample


@pytest.mark.parametrize("name", TOKENIZERS)
def test_only_whole_characters(name, capsys):
    ids = TOKENIZERS[name].encode(TEXT)
    said, rest, _ = stream(TOKENIZERS[name], ids, capsys)
    assert "".join(said) + rest == TEXT + "\n"
    assert all("\ufffd" not in part for part in said)
    assert len([part for part in said if part]) > 10


def test_bytes_that_never_mend_are_shown_in_the_end(capsys):
    ids = np.array([104, 0xE6, 0x97, 105, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xF0])
    said, rest, sample = stream(TOKENIZERS["bytes"], ids, capsys)
    assert "".join(said) + rest == sample.text + "\n"
    assert said[3] == "\ufffdi"


def test_what_may_become_a_stop_string_is_held_back(capsys):
    ids = TOKENIZERS["bytes"].encode(TEXT)
    said, rest, sample = stream(TOKENIZERS["bytes"], ids, capsys, stop=("\n\n", "never"))
    assert sample.text == "hé 日本 🙂 ok"
    assert "".join(said) + rest == sample.text + "\n"
    said, rest, _ = stream(TOKENIZERS["bytes"], TOKENIZERS["bytes"].encode("a\nb"), capsys, stop=("\n\n",))
    assert (said, rest) == (["a", "", "\nb"], "\n")


def test_shades(capsys):
    ids = TOKENIZERS["bytes"].encode("aé")
    said, rest, sample = stream(TOKENIZERS["bytes"], ids, capsys, shades=True)
    assert "".join(said) + rest == shaded("a", 0.6) + shaded("é", 0.6) + "\n"
    assert "0.6065" in tokens_table(sample, TOKENIZERS["bytes"])
