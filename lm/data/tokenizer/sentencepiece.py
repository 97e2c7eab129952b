"""Read a SentencePiece model file (T5, ALBERT, XLNet, Llama 2 ...) as a `tokenizers` object.

Kudo & Richardson 2018. The parity test compares ids with the sentencepiece library's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # piece types of the model file
UNIGRAM, BPE = 1, 2
SPACE = "\u2581"


def load_model(path: Path) -> Any:
    """Load the tokenizer of a `.model` file, unigram or BPE.

    A special piece written in a text is text for BPE; a unigram model finds it among its pieces, as transformers does
    with split_special_tokens=True. The sentencepiece library splits it in both.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise UserError(f"{path} is a SentencePiece model: pip install sentencepiece protobuf to read it") from None
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made when it is imported
    try:
        model.ParseFromString(path.read_bytes())
    except Exception:
        raise UserError(f"{path} is not a SentencePiece model file") from None
    return _build(model, path)


def _build(model: Any, path: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces, spec = model.pieces, model.trainer_spec
    if spec.model_type == UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in pieces]
        core = Tokenizer(models.Unigram(scores, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback))
    elif spec.model_type == BPE:
        vocab = {piece.piece: i for i, piece in enumerate(pieces)}
        unknown = pieces[spec.unk_id].piece
        core = Tokenizer(models.BPE(vocab, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=spec.byte_fallback))
    else:
        raise UserError(f"{path}: a SentencePiece word or character model; only unigram and BPE can be read")
    rule = model.normalizer_spec
    core.normalizer = _normalizer(rule)
    if rule.remove_extra_whitespaces:
        scheme = "always" if rule.add_dummy_prefix else "never"
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=spec.model_type == UNIGRAM)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    # The space that encoding puts before a text is taken away again.
    core.decoder = decoders.Sequence([*back, decoders.Strip(" ", int(rule.add_dummy_prefix), 0)])
    core.add_special_tokens([AddedToken(p.piece, special=True) for p in pieces if p.type in (UNKNOWN, CONTROL)])
    core.add_tokens([AddedToken(p.piece, normalized=False) for p in pieces if p.type == USER_DEFINED])
    return core


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    else:  # Metaspace would not put a prefix before a text's leading space
        steps += [normalizers.Prepend(SPACE)] if spec.add_dummy_prefix else []
        steps += [normalizers.Replace(" ", SPACE)]
    return normalizers.Sequence(steps) if steps else None


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """Recover the merges of a BPE model: every cut of a piece into two pieces, in the order the pieces were learnt."""
    rank = {piece.piece: i for i, piece in enumerate(pieces)}
    found = []
    for piece in pieces:
        text = piece.piece
        cuts = [(text[:k], text[k:]) for k in range(1, len(text)) if piece.type == NORMAL]
        cuts = [(a, b) for a, b in cuts if a in rank and b in rank]
        found += [(-piece.score, rank[text], cut) for cut in sorted(cuts, key=lambda c: (rank[c[0]], rank[c[1]]))]
    return [cut for _, _, cut in sorted(found, key=lambda f: f[:2])]
