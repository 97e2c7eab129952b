"""What the cases meet: small runs and model folders, made once, copied for each case that names them."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.forks import command
from tests.hostile.jobs import serve

ROOT = Path(__file__).parent.parent.parent
TINY = "tests/configs/tiny.py:text=a.txt"
LABELLED = {"CLS": "tiny_classify", "TAG": "tiny_tag", "QA": "tiny_extract"}
TEXTS = {"MASKED": "tiny_masked", "SEQ": "tiny_seq2seq"}
NEEDS = {"SEQ": "pairs.tsv"}
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Files that every case may name.
FILES: dict[str, str | bytes] = {
    "notes.txt": "my own notes\n" * 3,
    "empty.txt": "",
    "empty.jsonl": "",
    "bytes.txt": b"abc \xff\xfe def\n" * 60,
    "bytes.jsonl": b'{"text": "\xff\xfe", "prompt": "\xff", "question": "\xff", "first": "\xff"}\n',
    "short.txt": "x",
    "prompts.txt": "The\nA list\nstatement\n",
    "prompts.jsonl": '{"prompt": "The"}\n{"prompt": "A"}\n',
    "broken.jsonl": '{"text": "fine", "prompt": "x"}\n{"text": \n',
    "list.jsonl": "[1, 2]\n",
    "number.jsonl": "5\n",
    "other.jsonl": '{"unheard": 1}\n',
    "deep.jsonl": "[" * 100_000 + "]" * 100_000 + "\n",
    "deep.json": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "digits.jsonl": '{"text": "x", "label": ' + "9" * 5000 + "}\n",
    "digits.json": '{"a": ' + "9" * 5000 + "}",
    "nul.txt": "a\0b\n" * 80,
    "new.txt": "A good film.\nA bad film.\n",
    "new.jsonl": '{"text": "A good film."}\n',
    "x.csv": "text,label\nA good film,good\nA bad film,bad\n",
    "cut.gz": b"\x1f\x8b\x08\x00\x00\x00",
    "junk.parquet": b"PAR1" + b"\x07" * 200 + b"PAR1",
    "junk.json": b"\x00\x01\x02\xff" * 40,
    "broken.json": '{"type": ',
    "list.json": "[]",
    "null.json": "null",
    "syntax.py": "def config(:\n",
    "imports.py": "import no_such_module\ndef config(): pass\n",
    "raises.py": "raise ValueError('mine')\n",
    "none.py": "x = 1\n",
    "wrong.py": "def config():\n    return 5\n",
    "fails.py": "def config():\n    return 1 / 0\n",
    "latin.py": b"# \xff\xfe\ndef config(): pass\n",
    "a.jsonl": '{"prompt": "p", "text": "one"}\n{"prompt": "q", "text": "two"}\n',
    "b.jsonl": '{"prompt": "p", "text": "=cmd|\' /C calc\'!A0"}\n{"prompt": "q", "text": "+1"}\n',
    "choices.jsonl": '{"question": "2+2=", "choices": ["four", "five"], "answer": 0}\n',
    "ok.jsonl": '{"text": "The list is long enough."}\n',
}


def tables(folder: Path) -> None:
    """Write the text and the pairs that runs are trained on."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics)[:12])
    (folder / "a.txt").write_text(text, encoding="utf-8")
    words = text.split()
    pairs = [f"{' '.join(words[k : k + 4])}\t{' '.join(words[k : k + 4][::-1])}" for k in range(0, 900, 3)]
    (folder / "pairs.tsv").write_text(
        "\n".join(["source\ttarget", *(p for p in pairs if '"' not in p)]) + "\n", encoding="utf-8"
    )


def published(folder: Path) -> None:
    """Save a GPT-2 with its own BPE, a BERT that classifies and a T5 as transformers does: the only use of PyTorch."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    torch.manual_seed(0)
    sentinels = [f"<extra_id_{k}>" for k in range(100)]
    level, bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel.alphabet()
    kinds = {
        "HF": (models.BPE(), trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=bytes_of)),
        "BERT": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(vocab_size=400, special_tokens=BERT_TOKENS)),
        "T5": (models.BPE(), trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<pad>", "</s>", "<unk>", *sentinels], initial_alphabet=bytes_of)),
    }  # fmt: skip
    names = {
        "HF": {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"},
        "BERT": {n: f"[{n[:-6].upper()}]" for n in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")},
        "T5": {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    }
    sizes = {}
    for name, (model, trainer) in kinds.items():
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if name == "BERT" else level
        tokenizer.decoder = decoders.WordPiece() if name == "BERT" else decoders.ByteLevel()
        tokenizer.train([str(folder / "a.txt")], trainer)
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names[name])
        fast.save_pretrained(folder / name)
        sizes[name] = len(fast)
    gpt2 = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=sizes["HF"], eos_token_id=0, bos_token_id=0
    )
    bert = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=sizes["BERT"],
        max_position_embeddings=64, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}, pad_token_id=0,
    )  # fmt: skip
    t5 = transformers.T5Config(
        d_model=32, num_layers=2, num_heads=2, d_ff=64, d_kv=16, vocab_size=sizes["T5"], eos_token_id=1, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    for name, model in (
        ("HF", transformers.GPT2LMHeadModel(gpt2)),
        ("BERT", transformers.BertForSequenceClassification(bert)),
        ("T5", transformers.T5ForConditionalGeneration(t5)),
    ):
        model.save_pretrained(folder / name)


def variables(base: Path) -> dict[str, str]:
    """Return what every case's environment says, beside what the server's does."""
    return {"LM_CACHE": str(base / "cache"), "COLUMNS": "120", "WANDB_MODE": "disabled"}


def build(base: Path, jobs: int) -> Path:
    """Make the world below `base` once; return its folder."""
    world = base / "world"
    if (world / "done").exists():
        return world
    shutil.rmtree(world, ignore_errors=True)
    world.mkdir(parents=True)
    link(world)
    tables(world)

    def tasks() -> Iterator:
        yield "HF", world, lambda: published(world), {"CUDA_VISIBLE_DEVICES": ""}, 200
        for name, config in {**LABELLED, **TEXTS, "RUN": "tiny"}.items():
            arg = f"text={NEEDS.get(name, 'a.txt')}" if name not in LABELLED else ""
            more = " --config.data.source.documents=line" if name == "MASKED" else ""  # next sentences need several
            line = f"lm.main --config=tests/configs/{config}.py:{arg} --workdir={name}{more}"
            below = base / f"make-{name}"
            below.mkdir(exist_ok=True)
            yield name, below, moved(world, command(line.split())), variables(base), 200

    for name, outcome in serve(tasks(), jobs):
        assert outcome.status == 0, f"{name}: {outcome.stdout[-500:]}{outcome.stderr[-2000:]}"
    (world / "done").write_text("")
    return world


def moved(folder: Path, work):
    """Do the work in another folder than the one whose name its output files have."""

    def start() -> None:
        os.chdir(folder)
        work()

    return start


def link(folder: Path) -> None:
    """Give a folder the repository's configs under the names that its commands use."""
    (folder / "tests").symlink_to(ROOT / "tests")
    (folder / "configs").symlink_to(ROOT / "configs")


def lay_out(world: Path, folder: Path, names: str) -> None:
    """Make a case's folder: the small files, and what of the world `names` (its command, its files) speaks of."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    link(folder)
    for path in world.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name in names:
            shutil.copytree(path, folder / path.name)
    shutil.copy(world / "a.txt", folder / "a.txt")
    shutil.copy(world / "pairs.tsv", folder / "pairs.tsv")
    for name, content in FILES.items():
        if name in names:
            put(folder / name, content)


def put(path: Path, content: str | bytes) -> None:
    """Write text or bytes, with the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def edit(path: Path, **values) -> None:
    """Replace values of a JSON file; a name may be a path joined by two underscores."""
    whole = json.loads(path.read_text())
    for name, value in values.items():
        *outer, last = name.split("__")
        inner = whole
        for key in outer:
            inner = inner[key]
        inner[last] = value
    path.write_text(json.dumps(whole))


if __name__ == "__main__":
    sys.exit(str(build(Path(sys.argv[1]), 2)))
