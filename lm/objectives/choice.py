"""The right one of several options: multiple choice (RACE, SWAG, C3).

    python -m lm.objectives.choice [--config=configs/choice_nano.py]
"""

import dataclasses
import string
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.labelled.check import check_tokens, encoded, items_of, refuse_empties, refuse_empty
from lm.data.rows.examples import row_length
from lm.data.rows.templates import Laid, cut
from lm.data.types import Example
from lm.errors import UserError, check, check_range
from lm.objectives.base import Answers, Objective
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Head, Rows, Stacks


@dataclass(frozen=True, kw_only=True)
class Choose(Tuned, Objective):
    """Score each option beside the context with one number; cross-entropy over the options of an example.

    `context` names the text that all options share (""; there is none), `question` one that stands before each option,
    `options` the list of options or one column each. `label`: the number of the right one from 0, its letter from A, or
    its text; a text that is one option's number or letter and another's text is an error, a number of JSON is a number.
    Question and option together have at most `longest` tokens (0: no limit). The options of an example lie in one row.
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
    most: int = 0  # options of an example; 0: as many as training has
    rows: Rows = Rows()
    head: Head = Head()

    def __post_init__(self):
        check_range(self, 0, float("inf"), "longest", "most")
        check(len(self.options) > 0, "options: name a list, or a column each")
        check(
            isinstance(self.model, Stacks),
            "the options of an example lie in one row, all of which XLNet sees: take another network",
        )
        network.check_rows(self.model, dataclasses.replace(self.rows, row=0))

    # -- host ----------------------------------------------------------------------------------------------------------

    @property
    def row(self) -> int:
        return self.rows.row or network.limit(self.model, self.rows) * max(1, self.most)

    def study(self, corpus):
        """Count the options, and choose a row that holds those of one example; refuse empty texts."""
        examples = [*network.examples_of(corpus), *corpus.validation.examples]
        refuse_empties(examples, *filter(None, (self.context, self.question)))
        most = self.most or max(len(self.offered(example)) for example in examples)
        found = dataclasses.replace(self, most=most)
        for example in examples:
            found.right(example)
            options = found.offered(example)
            for k, option in enumerate(options):
                refuse_empty(option, example.where, f"option {k}")
            count = len(options)
            check(1 < count <= most, f"{example.where}: {count} options where objective.most={most}; mend it or raise most")
        if self.rows.row:
            return found
        sizes = [size for example in examples for size, _ in found.sizes(example)]
        longest = -(-max(sizes) // 8) * 8
        row = row_length(sizes, longest) if self.rows.pack else longest
        return dataclasses.replace(found, rows=dataclasses.replace(self.rows, row=row))

    def offered(self, example: Example) -> list[str]:
        """Give the texts of the options."""
        return [one for name in self.options for one in items_of(example, name)]

    def right(self, example: Example) -> int:
        """Give the number of the right option; raises UserError where the label names none, or two."""
        value, options = example.get(self.label, (str, int)), [option.strip() for option in self.offered(example)]
        text = str(value).strip()
        letter = string.ascii_uppercase.find(text.upper()) if len(text) == 1 else -1
        counted = int(text) if text.isdecimal() else letter
        spelt = options.index(text) if isinstance(value, str) and text in options else -1
        places = [place for place in (spelt, counted) if 0 <= place < len(options)]
        said = f"{example.where}: {self.label!r} is {value!r}: "
        if not places:
            raise UserError(f"{said}give the option's number from 0, letter or text")
        kind, other = ("number", "letter") if text.isdecimal() else ("letter", "number")
        two = f"option {spelt} by its text, option {counted} by its {kind}; give its {other}"
        check(len(set(places)) == 1, said + two)
        return places[0]

    def lay(self, example: Example) -> list[Laid]:
        context = [encoded(self.frame, example, self.context)] if self.context else []
        lead = f"{example.get(self.question)} " if self.question else ""
        found = []
        for k, option in enumerate(self.offered(example)):
            text = self.frame.encode(lead + option)
            check_tokens(len(text), option, example.where, f"option {k}")
            text = cut(text, self.longest, "end") if self.longest else text
            found.append(self.frame.join([*context, text], network.limit(self.model, self.rows)))
        return found

    def sizes(self, example: Example) -> list[tuple[int, int]]:
        return [(sum(len(one.tokens) for one in self.lay(example)), 1)]

    def corrupt(self, rng, record):
        examples, room = [example for example, _ in record["examples"]], record["room"]
        groups = [self.lay(example) for example in examples]
        row, begins = network.lay_row([one for group in groups for one in group], self.model, self.frame, self.row)
        row["places"] = np.zeros((room, self.most), np.int32)
        row["offered"] = np.zeros((room, self.most), bool)
        row |= {"targets": np.zeros(room, np.int32), "weights": np.zeros(room, np.float32)}
        at, last = 0, self.pool == "last"
        for k, (example, group) in enumerate(zip(examples, groups)):
            edges = begins[at + 1 : at + len(group) + 1] - 1 if last else begins[at : at + len(group)]
            row["places"][k, : len(group)], row["offered"][k, : len(group)] = edges, True
            row["targets"][k], row["weights"][k] = self.right(example), 1
            at += len(group)
        return row

    @property
    def pool(self) -> str:
        return network.pool_of(self.head, self.model, self.rows, self.frame)

    # -- device --------------------------------------------------------------------------------------------------------

    @property
    def scores(self):
        # RoBERTa's folders too have BERT's head for this task.
        style = "bert" if self.frame.style == "roberta" and not network.is_pair(self.model) else self.frame.style
        return network.scores_of(self.head, self.model, self.rows, style, 1)

    def init(self, key, batch):
        state = jnp.zeros((1, 1, self.model.width))
        head = self.scores.init(jax.random.fold_in(key, 1), state)["params"]
        return {**network.draw(self.model, key, self.rows), **head}

    def logits(self, params, batch, keys_B=None):
        """Score the options (B, P, options); those that are not there get the lowest number."""
        h_BTD = network.states(self.model, params, batch, keys_B, self.rows.causal)
        places = batch["places"]
        flat = {**batch, "places": places.reshape(len(places), -1)}
        scores = self.scores.apply({"params": params}, network.pooled(h_BTD, flat, self.pool), keys_B)
        return jnp.where(batch["offered"], scores.reshape(places.shape), jnp.finfo(jnp.float32).min)

    def loss(self, params, batch, memory, keys_B):
        logits_BPK, targets, weights_BP = self.logits(params, batch, keys_B), batch["targets"], batch["weights"]
        right_BP = jnp.take_along_axis(jax.nn.log_softmax(logits_BPK), targets[..., None], -1)[..., 0]
        count = weights_BP.sum()
        hits = jnp.sum((logits_BPK.argmax(-1) == targets) * weights_BP)
        nll = -jnp.sum(jnp.where(weights_BP > 0, right_BP, 0) * weights_BP)
        return {"loss": (nll, count), "accuracy": (hits, count), "filled": network.filled(batch)}, memory

    def predict(self, params, batch):
        """Give each option's probability (B, P, options)."""
        return {"probabilities": jax.nn.softmax(self.logits(params, batch))}

    # -- for people ----------------------------------------------------------------------------------------------------

    @property
    def answers(self):
        return Answers("options", "chooser", (*filter(None, (self.context, self.question)), *self.options))

    def placeholder(self, example):
        return {self.label: 0}

    def unbounded(self, tokenizer, examples):
        known = self.resolve(tokenizer)
        most = max(len(known.offered(example)) for example in examples)
        if most > known.most or max(size for example in examples for size, _ in known.sizes(example)) > known.row:
            return dataclasses.replace(self, most=0, rows=dataclasses.replace(self.rows, row=0))
        return self

    def outcomes(self, record, found) -> list[dict[str, Any]]:
        """Say of each example of a record which option the network takes."""
        rows = []
        for k, (example, _) in enumerate(record["examples"]):
            shares = found["probabilities"][k][: len(self.offered(example))]
            guess = {"gold": self.right(example), "guess": int(shares.argmax()), "probabilities": list(map(float, shares))}
            rows.append({"where": example.where, **guess})
        return rows

    def show(self, tokenizer, example, found=None):
        texts, lines, at = network.texts_of(tokenizer, example), [], 0
        for k in np.flatnonzero(example["weights"]):
            guess = None if found is None else int(found["probabilities"][k].argmax())
            for option in range(int(example["offered"][k].sum())):
                sign = "right" if option == example["targets"][k] else "wrong"
                chosen = f" {'>' if option == guess else ' '} {found['probabilities'][k][option]:4.0%}" if found else ""
                lines.append(f"{sign}{chosen}  {texts[at]}")
                at += 1
        return "\n".join(lines) or network.EMPTY


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/choice_nano.py")
