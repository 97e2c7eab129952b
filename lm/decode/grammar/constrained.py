"""Constrained decoding: text that follows a regular expression or a JSON schema, by an automaton over the vocabulary.

The expression becomes a deterministic automaton over bytes, which becomes one over tokens, on the device. Each state knows
its distance in tokens to an accepting state, and tokens that could not be completed in the remaining ones are banned: every
decoded text follows the expression, whatever the model.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lm.data.tokenizer.tokenizer import Tokenizer, symbol_bytes
from lm.decode.grammar.automaton import automaton
from lm.decode.grammar.schema import to_regex
from lm.decode.prefill import bucket
from lm.decode.processors import LOWEST
from lm.errors import check, one_line
from lm.strict_json import load_json, parse_json

FAR = 1 << 30  # distance to an accepting state that is never reached
ENTRIES = 1 << 28  # states x vocabulary: some ten seconds of work
CELLS = 1 << 26  # states x classes of tokens: 256 MB
BLOCK = 1 << 22  # states x tokens that are walked at a time


class Grammar(struct.PyTreeNode):
    """A token automaton with start state 0, as tables for the loop.

    `next_SC`: the state after a token of class C, -1 for rejection; `class_V`: each id's class; `far_S`: distance in tokens
    from a state to the nearest accepting one.
    """

    next_SC: jax.Array
    class_V: jax.Array
    far_S: jax.Array
    stops: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def allow(self, scores_BV: jax.Array, logits_BV: jax.Array, states_B: jax.Array, remaining: jax.Array) -> jax.Array:
        """Ban tokens that are rejected, or that could not be completed in `remaining` tokens, this one included.

        Where the rules banned every allowed token, the grammar wins: the model's logits then decide.
        """
        may_BC = self.allowed(states_B, remaining)
        class_V = jnp.pad(self.class_V, (0, scores_BV.shape[1] - len(self.class_V)))  # class 0 is always rejected
        may_BV = may_BC[:, class_V]
        if self.stops:
            ends_B1 = (self.far_S[states_B] == 0)[:, None]
            stops_V = np.isin(np.arange(scores_BV.shape[1]), self.stops)
            may_BV = jnp.where(stops_V, ends_B1, may_BV)
        ruled_BV = jnp.where(may_BV, scores_BV, -jnp.inf)
        alive_B1 = (ruled_BV > LOWEST).any(-1, keepdims=True)
        return jnp.where(alive_B1, ruled_BV, jnp.where(may_BV, logits_BV, -jnp.inf))

    def follow(
        self, states_B: jax.Array, tokens_B: jax.Array, done_B: jax.Array, remaining: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Advance by a token, with `remaining` more to come; also return the rows that end there, as nothing may follow."""
        after_B = self.next_SC[states_B, self.class_V[jnp.minimum(tokens_B, len(self.class_V) - 1)]]
        states_B = jnp.where(done_B | (after_B < 0), states_B, after_B)  # a stop leads nowhere
        return states_B, ~self.allowed(states_B, remaining).any(-1)

    def allowed(self, states_B: jax.Array, remaining: jax.Array) -> jax.Array:
        """Return the mask (B, C) of the classes that may come next."""
        next_BC = self.next_SC[states_B]
        return (next_BC >= 0) & (self.far_S[next_BC] <= remaining - 1)


def from_regex(expression: str, tokenizer: Tokenizer, stops: Sequence[int], new: int) -> Grammar:
    """Compile a regular expression (Python's syntax, see lm.decode.grammar.automaton) that the whole new text must match.

    Raises UserError where it is wrong, or cannot be matched in `new` tokens.
    """
    what = f"--regex={one_line(expression, 60)}"
    return compiled(automaton(expression, what), tokenizer, stops, new, what)


def from_json_schema(schema: str, tokenizer: Tokenizer, stops: Sequence[int], new: int) -> Grammar:
    """Compile a JSON schema, given as text or as the path of a file, that the new text must be an instance of."""
    if schema.lstrip().startswith("{"):
        parsed = parse_json(schema, "--json_schema")
    else:
        check(Path(schema).is_file(), f"--json_schema={schema[:200]}: no such file, and no JSON object")
        parsed = load_json(schema)
    return compiled(automaton(to_regex(parsed), "--json_schema"), tokenizer, stops, new, "--json_schema")


def compiled(
    machine: tuple[np.ndarray, np.ndarray], tokenizer: Tokenizer, stops: Sequence[int], new: int, what: str
) -> Grammar:
    """Turn an automaton over bytes into one over tokens; raises UserError where no text of `new` tokens follows it."""
    next_SY, ends_S = machine
    states, pieces = len(ends_S), token_bytes(tokenizer)
    size = states * len(pieces)
    check(size <= ENTRIES, f"{what} has {states:,} states for {len(pieces):,} tokens: too many to follow; make it simpler")
    next_SC, class_V = classes(next_SY, pieces, what)
    far_S = distances(next_SC, ends_S)
    check(far_S[0] < FAR, f"{what}: no text of this tokenizer's tokens follows it")
    check(far_S[0] <= new, f"{what} takes at least {far_S[0]} tokens; raise --max_new_tokens={new}")
    check(far_S[0] > 0 or (next_SC[0] >= 0).any() or bool(stops), f"{what} is followed by the empty text only")
    # Padded to a bucket's size, as batches are: another expression then needs no compilation.
    wider_S, wider_C = (bucket(n) - n for n in next_SC.shape)
    next_SC = np.pad(next_SC, ((0, wider_S), (0, wider_C)), constant_values=-1)
    far_S = np.pad(far_S, (0, wider_S), constant_values=FAR)
    return Grammar(jnp.asarray(next_SC), jnp.asarray(class_V), jnp.asarray(far_S), tuple(stops))


def walk(next_SY: np.ndarray, pieces: Sequence[bytes]) -> np.ndarray:
    """Walk every token's bytes from every state: next states (S, V), -1 for rejection, always for a token without bytes."""
    states = len(next_SY)
    table = np.vstack([np.where(next_SY < 0, states, next_SY), np.full((1, 256), states)]).astype(np.int32)
    # Longest tokens first: those with a byte at index `at` are a prefix, walked together.
    order = np.array(sorted(range(len(pieces)), key=lambda i: -len(pieces[i])), np.int64)
    lengths = np.array([len(pieces[i]) for i in order])
    now_VS = np.repeat(np.arange(states, dtype=np.int32)[None], len(pieces), 0)
    for at in range(lengths.max(initial=0)):
        count = int((lengths > at).sum())
        byte_V = np.array([pieces[i][at] for i in order[:count]])
        now_VS[:count] = table[now_VS[:count], byte_V[:, None]]
    now_VS[lengths == 0] = states
    next_VS = np.empty_like(now_VS)
    next_VS[order] = np.where(now_VS == states, -1, now_VS)
    return next_VS.T


def classes(next_SY: np.ndarray, pieces: Sequence[bytes], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Group tokens that lead to the same states: next (S, C) and each token's class; class 0 is always rejected."""
    states = len(next_SY)
    block, most = max(1, BLOCK // states), CELLS // states
    known = {np.full(states, -1, np.int32).tobytes(): 0}
    class_V = np.empty(len(pieces), np.int32)
    for low in range(0, len(pieces), block):
        for i, column in enumerate(np.ascontiguousarray(walk(next_SY, pieces[low : low + block]).T)):
            class_V[low + i] = known.setdefault(column.tobytes(), len(known))
        check(len(known) <= most, f"{what} has {states:,} states and more kinds of tokens than {most:,}; make it simpler")
    columns = [np.frombuffer(column, np.int32) for column in known]
    return np.stack(columns, 1), class_V


def distances(next_SC: np.ndarray, ends_S: np.ndarray) -> np.ndarray:
    """Count the tokens from each state to the nearest accepting one; `FAR` where there is none."""
    before: list[list[int]] = [[] for _ in ends_S]
    for state, row in enumerate(next_SC):
        for to in np.unique(row[row >= 0]).tolist():
            before[to].append(state)
    far_S, level, count = np.full(len(ends_S), FAR, np.int32), np.flatnonzero(ends_S).tolist(), 0
    while level:  # breadth first, from the ends backward
        far_S[level] = count
        level = [state for state in {source for to in level for source in before[to]} if far_S[state] == FAR]
        count += 1
    return far_S


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes that each id adds to a text; none for special tokens."""
    saved = json.loads(tokenizer.core.to_str())
    check(
        saved["model"]["type"] != "WordPiece" and not saved["model"].get("end_of_word_suffix"),
        "constrained decoding needs tokens that are pieces of text; this tokenizer puts spaces between its tokens",
    )
    special = {token["id"] for token in saved["added_tokens"] if token["special"]}
    names = tokenizer.core.get_vocab(with_added_tokens=True)
    pieces = [b""] * tokenizer.vocab
    for name, i in names.items():
        if i not in special:
            pieces[i] = piece_bytes(name, tokenizer.byte_level)
    return pieces


def piece_bytes(name: str, byte_level: bool) -> bytes:
    """Return the bytes of one piece: byte-level symbols, SentencePiece's <0xE4> and its mark for a space, else the text."""
    table = symbol_bytes()
    if byte_level and all(symbol in table for symbol in name):
        return bytes(table[symbol] for symbol in name)
    if re.fullmatch("<0x[0-9A-Fa-f]{2}>", name):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()
