"""Vocabulary transfer for trained weights: tokens added, or the tokenizer replaced and the rows of shared pieces kept.

    python -m lm.convert --model=HF_DIR --add_tokens=FILE --output=HF_DIR2
    python -m lm.convert --model=HF_DIR --tokenizer=PATH [--initialise=overlap|mean|random] --workdir=RUN

Every parameter with a row per token takes part, input and output tables and biases alike. Shared pieces keep their rows.
"overlap": the row of a new piece is the mean of the rows of its old pieces, a plain form of WECHSEL (Minixhofer et al.
2022) and FOCUS (Dobler & de Melo 2023), whose new rows are mixtures of old ones of similar meaning, found through word
vectors of both vocabularies. "mean" draws from a normal distribution
with the old rows' mean and covariance (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").
"random" draws as for a new model.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from lm.config import Config
from lm.convert import tokens
from lm.convert.absent import without
from lm.convert.convert import flat, load, nested, save, some
from lm.convert.runs import kind_of, opened, remember, untrained, whole, write_run
from lm.convert.spelling import Match, Spelling, match
from lm.convert.task_heads import framed
from lm.data.corpus.corpus import Data
from lm.data.demo import Documentation
from lm.data.tokenizer.special import find
from lm.data.tokenizer.tokenizer import Pretrained, Tokenizer
from lm.errors import UserError, check
from lm.objectives.base import Objective
from lm.sharding import axes_of, unbox
from lm.strict_json import load_json

Initialise = Literal["overlap", "mean", "random"]
ROWS = ("table", "head_bias")  # names of leaves with a row per token, in the order of the tokenizer


@dataclass(frozen=True)
class Plan:
    """The source of each row of the new tables: an old row, the mean of some, or a draw."""

    vocab: int  # rows of the new tables that have an id
    old: np.ndarray  # old row of each new one, or -1: int [vocab]
    parts: dict[int, list[int]]  # new row -> old rows whose mean it is
    filler: range  # padding rows: the mean of all
    match: Match


def plan(old: Tokenizer, new: Tokenizer, rows: int, initialise: Initialise, multiple: int = 1) -> Plan:
    """Plan a table of new rows from `rows` old ones; their number is a multiple of `multiple`.

    Rows of the old table beyond its tokenizer are kept where all old tokens keep their ids.
    """
    before, after = Spelling(old), Spelling(new)
    matched = match(before, after)
    prefix = matched.old[: old.vocab]
    # Where every match is of a row with itself, tokens were only appended: then the rows without a match keep theirs,
    # too.
    kept = new.vocab >= old.vocab and np.array_equal(prefix[prefix >= 0], np.flatnonzero(prefix >= 0))
    vocab = -(-max(new.vocab, rows if kept else 0) // multiple) * multiple
    source = np.full(vocab, -1, np.int64)
    source[: new.vocab] = matched.old
    if kept:  # unused ids of the vocabulary, and rows behind it
        source[: old.vocab] = np.arange(old.vocab)
        source[new.vocab : rows] = np.arange(new.vocab, rows)
    parts = {}
    if initialise == "overlap":
        missing = [i for i in after.keys if source[i] < 0]
        parts = {i: ids for i in missing if (ids := before.compose(after.keys[i]))}
    return Plan(vocab, source, parts, range(max(new.vocab, rows if kept else 0), vocab), matched)


def operate(
    objective: Any, params: Any, old: Tokenizer, new: Tokenizer, initialise: Initialise = "overlap", multiple: int = 1,
    seed: int = 0,
) -> tuple[Any, Any, Tokenizer, list[str]]:  # fmt: skip
    """Return objective, parameters and tokenizer with the new vocabulary, and the lines to print.

    Special tokens that the objective needs and the new tokenizer lacks are appended. Raises UserError for tables whose
    rows are not in the tokenizer's order.
    """
    new = new.with_special(objective.special)
    axes = flat(axes_of(drawn(objective)))
    leaves = {name: np.asarray(x) for name, x in flat(params).items()}
    # Found by the axes' names: the tables of any objective take part, input and output alike.
    rowed = [name for name in leaves if "vocab" in (axes[name] or ())]
    odd = [name for name in rowed if name.rpartition("/")[2] not in ROWS]
    check(not odd, f"{some(set(odd))}: adaptive tables, cut by how frequent their tokens are; their vocabulary stays as it is")
    rows = objective.model.vocab
    planned = plan(old, new, rows, initialise, multiple)
    objective = dataclasses.replace(objective, model=objective.model.sized(planned.vocab)).resolve(new)
    shapes = {name: x.shape for name, x in flat(unbox(drawn(objective))).items()}
    fresh = draws(objective, rowed, seed) if initialise == "random" else {}
    rng = np.random.default_rng(seed)
    for name in rowed:
        table = leaves[name][:rows]
        # Padding rows are no tokens: means and covariances leave them out.
        leaves[name] = transplant(table, planned, shapes[name], fresh.get(name), rng, pieces=min(old.vocab, rows))
    return objective, nested(leaves), new, summary_of(old, new, planned, initialise, rowed)


def transplant(
    table: np.ndarray, planned: Plan, shape: tuple[int, ...], fresh: np.ndarray | None, rng: np.random.Generator, pieces: int
) -> np.ndarray:
    """Return a new table, float32 of `shape`; rows beyond the vocabulary are 0, as their logits are masked."""
    result = np.zeros(shape, np.float32)
    have = np.flatnonzero(planned.old >= 0)
    result[have] = table[planned.old[have]]
    for i, ids in planned.parts.items():
        result[i] = table[ids].mean(0)
    filler = list(planned.filler)
    result[filler] = table[:pieces].mean(0)
    none = [i for i in np.flatnonzero(planned.old < 0).tolist() if i not in planned.parts and i not in planned.filler]
    if none:
        result[none] = fresh[none] if fresh is not None else normal_like(table[:pieces], len(none), rng)
    return result


def normal_like(table: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw rows, float32 (count, ...), from the normal distribution with the mean and covariance of a table's."""
    rows = table.reshape(len(table), -1).astype(np.float64)
    mean = rows.mean(0)
    # By eigenvectors and not by Cholesky: the covariance of few rows is singular.
    values, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    root = vectors * np.sqrt(np.maximum(values, 0))
    drawn = mean + rng.standard_normal((count, len(mean))) @ root.T
    return drawn.reshape(count, *table.shape[1:]).astype(np.float32)


def drawn(objective: Objective) -> Any:
    """Return shapes and axes of the parameters, without computing any."""
    return jax.eval_shape(objective.init, jax.eval_shape(lambda: jax.random.key(0)), example())


def draws(objective: Any, names: list[str], seed: int) -> dict[str, np.ndarray]:
    """Draw some parameters as for a new model; the compiler removes the rest."""

    def some_of(key: jax.Array) -> dict[str, jax.Array]:
        params = flat(unbox(objective.init(key, example())))
        return {name: params[name] for name in names}

    return jax.device_get(jax.jit(some_of)(jax.random.key(seed)))


def example() -> dict[str, np.ndarray]:
    return {name: np.zeros((1, 8), np.int32) for name in ("tokens", "source", "places", "lengths")}


def summary_of(old: Tokenizer, new: Tokenizer, planned: Plan, initialise: Initialise, rowed: list[str]) -> list[str]:
    """Return the counts of rows by source."""
    same, composed = planned.match, len(planned.parts)
    rest = int((planned.old < 0).sum()) - composed - len(planned.filler)
    how = {"random": "drawn as a new model's"}.get(initialise, "drawn with the old rows' mean and covariance")
    other = f" ({same.twins:,} of them only inside a word there and at its beginning here, or the reverse)"
    twins = other if same.twins else ""
    lines = [
        f"vocabulary: {old.vocab:,} tokens before, {new.vocab:,} now, in {some(set(rowed))}",
        f"kept: {same.same + same.twins:,} pieces that both have{twins} and {same.roles:,} special tokens",
        f"composed: {composed:,} from the old pieces that spell them; {how}: {rest:,}",
    ]
    if planned.filler:
        lines.append(f"filled up: {len(planned.filler):,} rows of no token, at the mean of the others")
    return lines


def with_tokens(tokenizer: Tokenizer, file: Path) -> tuple[Tokenizer, list[str]]:
    """Add the tokens of a file, one per line; return the tokenizer and the tokens that it already had."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Core

    check(
        not (tokenizer.bytes or tokenizer.characters),
        "--add_tokens: a tokenizer of bytes or characters has no longer pieces; train another one and give it as --tokenizer",
    )
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--add_tokens={file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--add_tokens={file}: byte {error.start} is not UTF-8") from None
    tokens = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    known = [token for token in tokens if tokenizer.token_id(token) is not None]
    fresh = [token for token in tokens if token not in known]
    check(bool(fresh), f"--add_tokens={file} names no token that is new: one a line")
    # A copy, as `add_tokens` changes its object; not normalised, so that tokens are found in the raw text as the file
    # spells them.
    core = Core.from_str(tokenizer.core.to_str())
    core.add_tokens([AddedToken(token, normalized=False) for token in fresh])
    separator = [] if tokenizer.separator is None else [core.id_to_token(tokenizer.separator)]
    return Tokenizer(core, separator), known


def convert(
    model: str | None, workdir: str | None, output: str | None, step: str = "auto", *, tokenizer: str | None = None,
    add_tokens: str | None = None, initialise: Initialise = "overlap", multiple: int = 1, seed: int = 0,
) -> list[str]:  # fmt: skip
    """Read a folder (`model`) or a run, change its vocabulary, write a folder (`output`) or a run; return lines to print."""
    check(not (tokenizer and add_tokens), "--tokenizer replaces the vocabulary, --add_tokens adds to it: give one of them")
    check(multiple > 0, f"--pad_vocab={multiple} must be positive")
    check(bool(model) + bool(workdir) + bool(output) == 2, "name where from (--model or --workdir) and where to (--output, or "
          "--workdir with --model)")  # fmt: skip
    target = Path(output or workdir)
    check(not target.exists() or (target.is_dir() and not any(target.iterdir())), f"{target} exists; name a new folder")
    kind = ""
    drawn: tuple[str, ...]
    if model:  # resolved with the new tokenizer: the old one may lack special tokens (T5's sentinels)
        loaded = whole(load(model), model)
        objective, params, old, data = loaded.objective, loaded.params, loaded.tokenizer, Data(source=Documentation())
        kind, drawn = loaded.kind, loaded.drawn
    else:
        drawn = untrained(Path(workdir), step)
        config, params, old = opened(workdir, None, step, new_heads=True)
        objective, data = framed(config.objective, old), config.data

    # The tokenizer first, then every parameter with a row per token.
    new, lines = Tokenizer.load(tokenizer) if tokenizer else old, []
    if add_tokens:
        new, known = with_tokens(old, Path(add_tokens).expanduser())
        lines = [f"tokens that were there already: {some(set(known))}"] if known else []
    objective, params, new, more = operate(objective, params, old, new, initialise, multiple, seed)
    lines = [f"{model or workdir}: {type(objective).__name__}", *lines, *more]
    if drawn:
        lines.append(f"not in {model or workdir}, so not in {target}: {some(set(drawn))}")

    # A folder keeps the special ids of its source; a run is written at step 0.
    if output:
        card = "\n".join(["---", "library_name: transformers", "---", "", f"# {target.name}", "", *lines, ""])
        left = save(objective, without(params, drawn, str(target)), new, target, card, kind or kind_of(Path(workdir)))
        if model:  # a run has no further ids than those just written
            describe(target, Path(model).expanduser(), old, new)
        return [*lines, f"{target}: config.json, weights, tokenizer and card" + (f"; left out: {some(left)}" if left else "")]
    data = dataclasses.replace(data, tokenizer=Pretrained(str(target.absolute() / "tokenizer.json")))
    write_run(Config(objective=objective, data=data, steps=1, batch=8), params, new, target)
    remember(target, kind or kind_of(Path(model or workdir)), drawn)
    return [*lines, f"{target}: a run at step 0; start={target} trains it"]


def describe(folder: Path, source: Path, old: Tokenizer, new: Tokenizer) -> None:
    """Translate the special ids of `source` to the new tokenizer, in a folder's config.json and tokenizer_config.json."""
    settings, theirs = (load_json(path / "config.json", dict) for path in (folder, source))
    # By the token's text, or by its function: ids mean other tokens in the new vocabulary.
    for name in [name for name in theirs if name.endswith("_token_id")]:
        value = theirs[name]
        token = old.core.id_to_token(value) if isinstance(value, int) else None
        there = find(new.core, token) if token else None
        there = new.core.id_to_token(new.separator) if there is None and value == old.separator and new.separator else there
        settings[name] = None if there is None else new.token_id(there)
    for name, role in (("pad", "[PAD]"), ("mask", "[MASK]")):
        if f"{name}_token_id" not in theirs and find(new.core, role):
            settings[f"{name}_token_id"] = new.special_id(role)
    if new.separator is not None and "eos_token_id" not in theirs:
        settings |= {"bos_token_id": new.separator, "eos_token_id": new.separator}
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    tokens.update(folder, settings)
    path = folder / "tokenizer_config.json"
    about = load_json(path, dict) if path.exists() else {}
    named = {"cls": "[CLS]", "bos": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]", "unk": "[UNK]"}
    found = {f"{name}_token": find(new.core, role) for name, role in named.items() if find(new.core, role)}
    if new.separator is not None:
        found |= {"eos_token": new.core.id_to_token(new.separator)}
    path.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **found, **about}, indent=1) + "\n")
