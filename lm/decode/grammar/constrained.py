"""Text that must follow a regular expression or a JSON schema: an automaton over the vocabulary, on the device.

The expression becomes a deterministic automaton over bytes, that one over tokens. Each state knows how
many tokens it is away from an end, so that what cannot be finished in the tokens left is not begun: every text that
comes out follows the expression, whatever the model.
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
from lm.decode.prefill import bucket
from lm.decode.processors import LOWEST
from lm.errors import check, one_line
from lm.strict_json import load_json, parse_json

FAR = 1 << 30  # away from an end that is never reached
ENTRIES = 1 << 28  # states x vocabulary: some ten seconds of work
CELLS = 1 << 26  # states x classes of tokens: 256 MB
BLOCK = 1 << 22  # states x tokens that are followed at a time


class Grammar(struct.PyTreeNode):
    """States of an automaton, begun in 0, as tables for the loop.

    `next_SC`: the state after a token of class C, -1 where it may not come; `class_V`: each id's class; `far_S`: tokens
    from a state to the nearest one where a text may end, 0 there.
    """

    next_SC: jax.Array
    class_V: jax.Array
    far_S: jax.Array
    stops: tuple[int, ...] = struct.field(pytree_node=False, default=())

    def allow(self, scores_BV: jax.Array, logits_BV: jax.Array, places_B: jax.Array, left) -> jax.Array:
        """Ban what does not follow, or cannot be finished in `left` tokens, this one included.

        Where the rules banned all that may follow, the grammar wins: the model's logits then decide.
        """
        may_BC = self.open(places_B, left)
        class_V = jnp.pad(self.class_V, (0, scores_BV.shape[1] - len(self.class_V)))  # class 0 never comes
        may_BV = may_BC[:, class_V]
        if self.stops:
            ends_B1 = (self.far_S[places_B] == 0)[:, None]
            stops_V = np.isin(np.arange(scores_BV.shape[1]), self.stops)
            may_BV = jnp.where(stops_V, ends_B1, may_BV)
        ruled_BV = jnp.where(may_BV, scores_BV, -jnp.inf)
        alive_B1 = (ruled_BV > LOWEST).any(-1, keepdims=True)
        return jnp.where(alive_B1, ruled_BV, jnp.where(may_BV, logits_BV, -jnp.inf))

    def follow(self, places_B: jax.Array, tokens_B: jax.Array, done_B: jax.Array, left) -> tuple[jax.Array, jax.Array]:
        """Go on by a token, with `left` more to come; also tell which rows end there, for nothing may follow."""
        after_B = self.next_SC[places_B, self.class_V[jnp.minimum(tokens_B, len(self.class_V) - 1)]]
        places_B = jnp.where(done_B | (after_B < 0), places_B, after_B)  # a stop leads nowhere
        return places_B, ~self.open(places_B, left).any(-1)

    def open(self, places_B: jax.Array, left) -> jax.Array:
        """Tell which classes may come next (B, C)."""
        next_BC = self.next_SC[places_B]
        return (next_BC >= 0) & (self.far_S[next_BC] <= left - 1)


def from_regex(expression: str, tokenizer: Tokenizer, stops: Sequence[int], new: int) -> Grammar:
    """Compile a regular expression (Python's syntax, see lm.decode.grammar.automaton) that the whole new text must match.

    Raises UserError where it is wrong, or cannot be matched in `new` tokens.
    """
    what = f"--regex={one_line(expression, 60)}"
    return compiled(automaton(expression, what), tokenizer, stops, new, what)


def from_json_schema(schema: str, tokenizer: Tokenizer, stops: Sequence[int], new: int) -> Grammar:
    """Compile a JSON schema, given as text or as the path of a file, that the new text must be an instance of."""
    from lm.decode.grammar.schema import to_regex

    if schema.lstrip().startswith("{"):
        parsed = parse_json(schema, "--json_schema")
    else:
        check(Path(schema).is_file(), f"--json_schema={schema[:200]}: no such file, and no JSON object")
        parsed = load_json(schema)
    return compiled(automaton(to_regex(parsed), "--json_schema"), tokenizer, stops, new, "--json_schema")


def compiled(machine: tuple[np.ndarray, np.ndarray], tokenizer: Tokenizer, stops, new: int, what: str) -> Grammar:
    """Turn an automaton over bytes into one over tokens, and see that it can be followed."""
    next_SY, ends_S = machine
    states, pieces = len(ends_S), token_bytes(tokenizer)
    size = states * len(pieces)
    check(
        size <= ENTRIES, f"{what} has {states:,} states for {len(pieces):,} tokens: too many to follow; make it simpler"
    )
    next_SC, class_V = classes(next_SY, pieces, what)
    far_S = distances(next_SC, ends_S)
    check(far_S[0] < FAR, f"{what}: no text of this tokenizer's tokens follows it")
    check(far_S[0] <= new, f"{what} takes at least {far_S[0]} tokens; raise --max_new_tokens={new}")
    check(far_S[0] > 0 or (next_SC[0] >= 0).any() or bool(stops), f"{what} is followed by the empty text only")
    # Of a bucket's size, as batches are: another expression then needs no compilation.
    wider_S, wider_C = (bucket(n) - n for n in next_SC.shape)
    next_SC = np.pad(next_SC, ((0, wider_S), (0, wider_C)), constant_values=-1)
    far_S = np.pad(far_S, (0, wider_S), constant_values=FAR)
    return Grammar(jnp.asarray(next_SC), jnp.asarray(class_V), jnp.asarray(far_S), tuple(stops))


def walk(next_SY: np.ndarray, pieces: Sequence[bytes]) -> np.ndarray:
    """Follow every token from every state: (S, V), -1 where it may not come. A token without bytes never may."""
    states = len(next_SY)
    table = np.vstack([np.where(next_SY < 0, states, next_SY), np.full((1, 256), states)]).astype(np.int32)
    order = np.array(sorted(range(len(pieces)), key=lambda i: -len(pieces[i])), np.int64)
    lengths = np.array([len(pieces[i]) for i in order])
    now_VS = np.repeat(np.arange(states, dtype=np.int32)[None], len(pieces), 0)
    for at in range(lengths.max(initial=0)):
        count = int((lengths > at).sum())
        byte_V = np.array([pieces[i][at] for i in order[:count]])
        now_VS[:count] = table[now_VS[:count], byte_V[:, None]]
    now_VS[lengths == 0] = states
    found_VS = np.empty_like(now_VS)
    found_VS[order] = np.where(now_VS == states, -1, now_VS)
    return found_VS.T


def classes(next_SY: np.ndarray, pieces: Sequence[bytes], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Put tokens that lead to the same states together: next (S, C) and each token's class; class 0 never comes."""
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
    """Count the tokens from each state to the nearest where a text may end; `FAR` where there is none."""
    before: list[list[int]] = [[] for _ in ends_S]
    for state, row in enumerate(next_SC):
        for to in np.unique(row[row >= 0]).tolist():
            before[to].append(state)
    far_S, level, count = np.full(len(ends_S), FAR, np.int32), np.flatnonzero(ends_S).tolist(), 0
    while level:  # breadth first, from the ends backward
        far_S[level] = count
        level = [state for state in {one for to in level for one in before[to]} if far_S[state] == FAR]
        count += 1
    return far_S


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Give the bytes that each id adds to a text; none for special tokens."""
    saved = json.loads(tokenizer.core.to_str())
    check(
        saved["model"]["type"] != "WordPiece" and not saved["model"].get("end_of_word_suffix"),
        "constrained decoding needs tokens that are pieces of text; this tokenizer puts spaces between its tokens",
    )
    special = {token["id"] for token in saved["added_tokens"] if token["special"]}
    names = tokenizer.core.get_vocab(with_added_tokens=True)
    found = [b""] * tokenizer.vocab
    for name, i in names.items():
        if i not in special:
            found[i] = piece_bytes(name, tokenizer.byte_level)
    return found


def piece_bytes(name: str, byte_level: bool) -> bytes:
    """Give the bytes of one piece: byte-level symbols, SentencePiece's <0xE4> and its mark for a space, else the text."""
    table = symbol_bytes()
    if byte_level and all(symbol in table for symbol in name):
        return bytes(table[symbol] for symbol in name)
    if re.fullmatch("<0x[0-9A-Fa-f]{2}>", name):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()
