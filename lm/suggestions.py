"""Suggestions for unknown config fields: names of other frameworks, then the nearest spelling."""

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

from lm.errors import UserError, unknown

# Names in PyTorch, transformers, Megatron, fairseq and T5X -> the field here, as a plain config has it.
SYNONYMS = {
    **dict.fromkeys(("learning_rate", "max_lr", "peak_lr", "base_lr", "optimizer.rate"), "optimizer.lr"),
    **dict.fromkeys(("weight_decay", "wd"), "optimizer.decay"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "clip_norm", "gradient_clipping", "clip_grad"), "optimizer.clip"),
    **dict.fromkeys(("adam_epsilon", "adam_eps", "epsilon"), "optimizer.eps"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "beta1", "beta2"), "optimizer.betas"),
    **dict.fromkeys(("ema", "ema_decay"), "optimizer.average"),
    **dict.fromkeys(("optim", "optimizer_name", "optimizer_type"), "optimizer.name"),
    **dict.fromkeys(("warmup_steps", "num_warmup_steps", "warmup_iters", "lr_warmup_steps"), "schedule.warmup"),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "lr_schedule", "lr_decay_style"), "schedule.shape"),
    **dict.fromkeys(("min_lr", "final_lr"), "schedule.final"),
    **dict.fromkeys(("batch_size", "train_batch_size", "global_batch_size", "per_device_train_batch_size"), "batch"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "accumulation_steps"), "micro_batches"),
    **dict.fromkeys(("max_steps", "max_iters", "train_iters", "num_steps", "num_train_steps", "total_steps"), "steps"),
    **dict.fromkeys(("logging_steps", "log_interval", "log_every"), "every.log"),
    **dict.fromkeys(("eval_steps", "eval_interval", "eval_every", "every.eval"), "every.evaluate"),
    **dict.fromkeys(("save_steps", "save_interval", "save_every", "checkpoint_interval"), "every.save"),
    **dict.fromkeys(("save_total_limit", "max_to_keep"), "keep.last"),
    **dict.fromkeys(("patience", "early_stopping_patience"), "stop.patience"),
    **dict.fromkeys(("init_from", "resume_from", "pretrained", "checkpoint", "model_name_or_path"), "start"),
    "random_seed": "seed",
    "use_wandb": "wandb",
    **dict.fromkeys(("layers", "n_layer", "n_layers", "num_layers", "num_hidden_layers"), "objective.model.depth"),
    **dict.fromkeys(("hidden_size", "hidden_dim", "d_model", "n_embd", "dim", "embed_dim"), "objective.model.width"),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "num_attention_heads"), "objective.model.heads"),
    **dict.fromkeys(("n_kv_heads", "num_kv_heads", "num_key_value_heads"), "objective.model.kv_heads"),
    **dict.fromkeys(("head_dim", "d_kv"), "objective.model.head"),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "n_inner", "mlp_dim"), "objective.model.mlp"),
    **dict.fromkeys(("vocab_size", "n_vocab"), "objective.model.vocab"),
    **dict.fromkeys(("hidden_act", "activation_function"), "objective.model.activation"),
    **dict.fromkeys(("context_length", "max_length", "block_size", "seq_len", "seq_length"), "objective.model.context"),
    **dict.fromkeys(("n_positions", "n_ctx", "max_seq_len", "max_seq_length"), "objective.model.context"),
    **dict.fromkeys(("max_position_embeddings", "sequence_length", "length"), "objective.model.context"),
    **dict.fromkeys(("rope", "rotary", "use_rope"), "objective.model.positions=rotary"),
    "alibi": "objective.model.positions=alibi",
    **dict.fromkeys(("rope_theta", "rotary.theta"), "objective.model.rotary.base"),
    **dict.fromkeys(("position_embedding", "position_embedding_type", "pos_emb"), "objective.model.positions"),
    **dict.fromkeys(("rmsnorm", "rms_norm"), "objective.model.norm=rms"),
    **dict.fromkeys(("layer_norm_eps", "rms_norm_eps", "layer_norm_epsilon"), "objective.model.eps"),
    **dict.fromkeys(("sliding_window", "window"), "objective.model.windows"),
    **dict.fromkeys(("tie_word_embeddings", "tie_embeddings", "weight_tying"), "objective.model.tied"),
    **dict.fromkeys(("hidden_dropout_prob", "resid_pdrop", "dropout_rate"), "objective.model.dropout"),
    **dict.fromkeys(("attention_probs_dropout_prob", "attn_pdrop"), "objective.model.attention_dropout"),
    "initializer_range": "objective.model.init",
    **dict.fromkeys(("gradient_checkpointing", "checkpoint_activations"), "objective.model.remat"),
    **dict.fromkeys(("bf16", "fp16", "mixed_precision", "precision"), "objective.model.dtype"),
    **dict.fromkeys(("mask_rate", "mlm_probability", "masked_lm_prob", "mask_prob", "mask_ratio"), "objective.rate"),
    **dict.fromkeys(("lora_rank", "lora_r", "lora.r"), "objective.model.lora.rank"),
    "lora_alpha": "objective.model.lora.alpha",
    **dict.fromkeys(("train_file", "dataset", "dataset_name", "data_path"), "data.source"),
}
MOST = 3  # names in one suggestion


def paths(config: Any) -> Iterator[str]:
    """Yield the dotted path of every field of a dataclass tree, groups included; of a class, of its defaults."""
    for field in (f for f in dataclasses.fields(config) if "derived" not in f.metadata):
        yield field.name
        value = getattr(config, field.name, None)
        if value is None and field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if dataclasses.is_dataclass(value):
            yield from (f"{field.name}.{inner}" for inner in paths(value))


def ends(path: str, tail: str) -> int:
    """Return the length of the common suffix of two dotted paths, in parts."""
    pairs = zip(reversed(path.split(".")), reversed(tail.split(".")), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(path.count("."), tail.count(".")) + 1)


def best(valid: list[str], wanted: str) -> list[str]:
    """Return the paths with the last part of `wanted`: longest common suffix, then longest common prefix, then shortest."""
    candidates = [path for path in valid if ends(path, wanted)]

    def rank(path: str) -> tuple[int, int, int]:
        first = ends(".".join(reversed(path.split("."))), ".".join(reversed(wanted.split("."))))
        return -ends(path, wanted), -first, path.count(".")

    lowest = min(map(rank, candidates), default=None)
    return [path for path in candidates if rank(path) == lowest][:MOST]


def meant(config: Any, path: str) -> list[str]:
    """Return the fields with the last part of `path`, or of that name in another framework; [] without a match.

    `config` may be the class, whose objective is then assumed to be a plain one.
    """
    # Of the class alone the objective is unknown; the fields of a plain one stand among the synonyms' targets.
    plain = [target.partition("=")[0] for target in SYNONYMS.values()] if isinstance(config, type) else []
    valid, parts = list(dict.fromkeys([*paths(config), *plain])), path.lower().split(".")
    # Two parts first ("lora.r"), then a field that exists by that name here, then one part alone.
    name = SYNONYMS.get(".".join(parts[-2:])) or (not best(valid, path) and SYNONYMS.get(parts[-1])) or path
    field, equals, value = name.partition("=")
    return [candidate + equals + value for candidate in best(valid, field)]


def no_field(config: Any, path: str) -> UserError:
    """Return the error for an unknown dotted path, with suggestions as full paths."""
    parent, _, name = path.rpartition(".")
    valid = list(paths(config))
    # List the siblings of the deepest group that exists: "objective.modell.width" is about `objective`.
    while parent and parent not in valid:
        parent = parent.rpartition(".")[0]
    siblings = [field for field in valid if field.rpartition(".")[0] == parent]
    suggested = meant(config, path)
    # A typo is more likely beside its siblings than anywhere in the tree.
    for choices in (siblings, valid):
        near = difflib.get_close_matches(name, [field.rpartition(".")[2] for field in choices], 1, cutoff=0.7)
        suggested = suggested or (near and best(choices, f"{parent}.{near[0]}"))
    return unknown("config field", path, siblings, suggested)


def flag(config: Any, name: str) -> str:
    """Format the config fields that an unknown flag may mean, as flags; "" without a match."""
    return " or ".join(f"--config.{one}" if "=" in one else f"--config.{one}=VALUE" for one in meant(config, name))
