"""Multiple choice: the correct one of several options (RACE, SWAG, C3).

python -m lm.objectives.choice [--config=configs/choice_nano.py]
"""

import dataclasses
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.corpus.corpus import Corpus
from lm.data.labelled.check import check_tokens, encoded, items_of, refuse_empties, refuse_empty
from lm.data.rows.examples import row_length
from lm.data.rows.templates import Laid, cut
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Example
from lm.errors import UserError, check, check_range
from lm.models.pooling import Scores
from lm.objectives.base import Answers, Batch, Objective, Scored, Sums
from lm.objectives.base import Example as Row
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Head, Rows, Stacks


@dataclass(frozen=True, kw_only=True)
class Choose(Tuned, Objective):
    """Score each option with its context by one number; cross-entropy over the options of an example.

    `context`: the field of the text that all options share ("": none), `question`: of one before each option, `options`:
    of a list of options, or one field each. `label`: the correct option, its index from 0, its letter from A, or its
    text. A string that is the index or letter of one option and the text of another is an error; a number in JSON is an
    index. Question and option are truncated to `longest` tokens together (0: no limit). The options of an example lie in
    one row.
    """

    paper: ClassVar[str] = "Radford et al. 2018 (GPT); Devlin et al. 2019 (BERT, SWAG)"
    holds: ClassVar[str] = "tokens types segments positions (B, T); places offered (B, P, options); targets weights (B, P)"
    task: ClassVar[str] = "MultipleChoice"

    model: Stacks
    context: str = "context"
    question: str = ""
    options: tuple[str, ...] = ("options",)
    label: str = "label"
    longest: int = 0
    most: int = 0  # maximum options of an example; 0: that of the training and held-out examples
    rows: Rows = Rows()
    head: Head = Head()

    def __post_init__(self) -> None:
        check_range(self, 0, float("inf"), "longest", "most")
        check(len(self.options) > 0, "options: name a list, or a column each")
        check(
            isinstance(self.model, Stacks),
            "the options of an example lie in one row, all of which XLNet sees: take another network",
        )
        network.check_rows(self.model, dataclasses.replace(self.rows, row=0))

    # -- host ----------------------------------------------------------------------------------------------------------

    @property
    def texts(self) -> int:
        return max(1, self.most)

    def learn(self, training: Sequence[Example], held_out: Sequence[Example]) -> Self:
        """Set the maximum number of options."""
        most = self.most or max(len(self.offered(example)) for example in [*training, *held_out])
        return dataclasses.replace(self, most=most)

    def check_example(self, example: Example) -> None:
        refuse_empties([example], *filter(None, (self.context, self.question)))
        self.right(example)
        options, where = self.offered(example), example.where
        for k, option in enumerate(options):
            refuse_empty(option, where, f"option {k}")
        fits = 1 < len(options) <= self.most
        check(fits, f"{where}: {len(options)} options where objective.most={self.most}; mend it or raise most")

    def choose_row(self, corpus: Corpus) -> int:
        """Choose a row that holds all options of the longest example."""
        # Of all examples, not of a sample: an example whose options exceed the row could not be read at all.
        examples = [*network.examples_of(corpus), *corpus.validation.examples]
        sizes = [tokens for example in examples for tokens, _ in self.sizes(example)]
        longest = -(-max(sizes) // 8) * 8
        return row_length(sizes, longest) if self.rows.pack else longest

    def offered(self, example: Example) -> list[str]:
        """Return the texts of the options."""
        return [option for name in self.options for option in items_of(example, name)]

    def right(self, example: Example) -> int:
        """Return the index of the correct option; raises UserError for a label of none, or of two."""
        value, options = example.get(self.label, (str, int)), [option.strip() for option in self.offered(example)]
        text = str(value).strip()
        letter = string.ascii_uppercase.find(text.upper()) if len(text) == 1 else -1
        by_index = int(text) if text.isdecimal() else letter
        by_text = options.index(text) if isinstance(value, str) and text in options else -1
        # Index, letter and text may each name an option: a label that names two is refused, not interpreted.
        indices = [index for index in (by_text, by_index) if 0 <= index < len(options)]
        prefix = f"{example.where}: {self.label!r} is {value!r}: "
        if not indices:
            raise UserError(f"{prefix}give the option's number from 0, letter or text")
        kind, other = ("number", "letter") if text.isdecimal() else ("letter", "number")
        both = f"option {by_text} by its text, option {by_index} by its {kind}; give its {other}"
        check(len(set(indices)) == 1, prefix + both)
        return indices[0]

    def lay(self, example: Example) -> list[Laid]:
        context = [encoded(self.frame, example, self.context)] if self.context else []
        lead = f"{example.get(self.question)} " if self.question else ""
        texts = []
        for k, option in enumerate(self.offered(example)):
            text = self.frame.encode(lead + option)
            check_tokens(len(text), option, example.where, f"option {k}")
            # A long question loses its start: the option behind it is kept.
            text = cut(text, self.longest, "end") if self.longest else text
            texts.append(self.frame.join([*context, text], self.limit))
        return texts

    def target(self, example: Example) -> tuple[np.int32, float]:
        return np.int32(self.right(example)), 1.0

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Row:
        """Lay out a row; "offered" (P, options) marks the options that an example has."""
        row = super().corrupt(rng, record)
        counts = [len(self.offered(example)) for example, _ in record["examples"]]
        # Unused predictions offer nothing: their scores are all equal, and the softmax stays finite.
        counts += [0] * (len(row["weights"]) - len(counts))
        return row | {"offered": np.arange(self.most) < np.array(counts)[:, None]}

    # -- device --------------------------------------------------------------------------------------------------------

    @property
    def scores(self) -> Scores:
        # RoBERTa's folders too have BERT's head for this task.
        style = "bert" if self.frame.style == "roberta" and not network.is_pair(self.model) else self.frame.style
        return network.scores_of(self.head, self.model, self.rows, style, 1)

    def scored(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> Scored:
        """Score the options, absent ones by the lowest float32; the states are those of all options, one behind the other."""
        shape, z_BPD = batch["places"].shape, self.pooled(params, batch, keys_B)
        scores_BPK = self.scores.apply({"params": params}, z_BPD, keys_B).reshape(shape)
        scores_BPK = jnp.where(batch["offered"], scores_BPK, jnp.finfo(jnp.float32).min)
        return Scored(scores_BPK, z_BPD.reshape(*shape[:2], -1))

    def logits(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> jax.Array:
        """Score the options (B, P, options)."""
        return self.scored(params, batch, keys_B).scores_BPC

    def score_names(self, example: Example) -> tuple[str, ...]:
        return tuple(self.offered(example))

    def terms(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
        logits_BPK, targets, weights_BP = self.logits(params, batch, keys_B), batch["targets"], batch["weights"]
        gold_BP = jnp.take_along_axis(jax.nn.log_softmax(logits_BPK), targets[..., None], -1)[..., 0]
        count = weights_BP.sum()
        hits = jnp.sum((logits_BPK.argmax(-1) == targets) * weights_BP)
        nll = -jnp.sum(jnp.where(weights_BP > 0, gold_BP, 0) * weights_BP)
        return {"loss": (nll, count), "accuracy": (hits, count)}

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Return the "probabilities" of the options (B, P, options)."""
        return {"probabilities": jax.nn.softmax(self.logits(params, batch))}

    # -- after training ------------------------------------------------------------------------------------------------

    @property
    def answers(self) -> Answers:
        return Answers("options", "chooser", (*filter(None, (self.context, self.question)), *self.options))

    def placeholder(self, example: Example) -> dict[str, Any]:
        return {self.label: 0}

    def unbounded(self, tokenizer: Tokenizer, examples: Sequence[Example]) -> Self:
        known = self.resolve(tokenizer)
        most = max(len(known.offered(example)) for example in examples)
        if most > known.most or max(size for example in examples for size, _ in known.sizes(example)) > known.row:
            return dataclasses.replace(self, most=0, rows=dataclasses.replace(self.rows, row=0))
        return self

    def outcome(self, example: Example, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        shares = outputs["probabilities"][: len(self.offered(example))]
        return {"gold": self.right(example), "guess": int(shares.argmax()), "probabilities": list(map(float, shares))}

    def lines(self, tokenizer: Tokenizer, row: Row, outputs: Row | None) -> list[str]:
        texts, lines, number = network.texts_of(tokenizer, row), [], 0
        for k in np.flatnonzero(row["weights"]):
            guess = None if outputs is None else int(outputs["probabilities"][k].argmax())
            for option in range(int(row["offered"][k].sum())):
                sign = "right" if option == row["targets"][k] else "wrong"
                mark = f" {'>' if option == guess else ' '} {outputs['probabilities'][k][option]:4.0%}" if outputs else ""
                lines.append(f"{sign}{mark}  {texts[number]}")
                number += 1
        return lines


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/choice_nano.py")
