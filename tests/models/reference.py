"""What the tests compare against: parameters drawn with numpy, Hugging Face weights, and the stack written out in float64."""

import math

import jax
import numpy as np
from scipy.special import erf, expit

from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.sharding import unbox


def tiny(**changes) -> Transformer:
    """A stack that compiles in a second; odd sizes, so that no two axes can be mistaken for one another."""
    return Transformer(**{"vocab": 29, "context": 16, "width": 12, "depth": 2, "heads": 3, "mlp": 20, **changes})


def draw(config: Transformer, seed: int = 0, spread: float = 0.3) -> dict:
    """Every parameter random, norms around 1 and biases too: nothing hides behind a zero."""
    shapes = unbox(jax.eval_shape(Model(config).init, jax.random.key(0), np.zeros((1, config.context), np.int32)))
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        scale = path[-1].key == "scale"
        return (scale + (0.3 if scale else spread) * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, shapes["params"])


def documents(*sizes: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments and positions of one row that holds documents of these sizes, then padding."""
    segments, positions = np.zeros(length, np.int32), np.zeros(length, np.int32)
    at = 0
    for number, size in enumerate(sizes, 1):
        segments[at : at + size], positions[at : at + size] = number, np.arange(size)
        at += size
    return segments, positions


def visible(length: int, *, causal: bool = True, window: int = 0, segments=None) -> np.ndarray:
    """Who sees whom, pair by pair."""
    seen = np.zeros((length, length), bool)
    for t in range(length):
        for s in range(length):
            seen[t, s] = (
                (not causal or s <= t)
                and (not window or abs(t - s) < window)
                and (segments is None or (segments[t] == segments[s] != 0))
            )
    return seen


# -- the stack in float64 ----------------------------------------------------------------------------------------------


def normalise(config, p, x):
    centred = x - x.mean(-1, keepdims=True) if config.norm == "layer" else x
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.eps) * (p["scale"] + (config.norm == "rms_one"))
    return y + p["bias"] if "bias" in p else y


def gelu_exact(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def gelu_new(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


INNER = {
    "gelu": gelu_exact,
    "gelu_tanh": gelu_new,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "silu": lambda x: x * expit(x),
    "swiglu": lambda x: x * expit(x),
    "geglu": gelu_exact,
    "geglu_tanh": gelu_new,
    "reglu": lambda x: np.maximum(x, 0),
}


def linear(p, x, inputs=1):
    y = np.tensordot(x, p["kernel"], inputs)
    return y + p["bias"] if "bias" in p else y


def turn(x_TH, positions, rotary, window=0):
    """Rotate pairs (i, i + size/2) of the first `share` of a head as complex numbers."""
    base = rotary.local if rotary.local and window else rotary.base
    size = int(x_TH.shape[-1] * rotary.share)
    half = size // 2
    angle = positions[:, None] * base ** -(np.arange(half) * 2 / size)
    z = (x_TH[:, :half] + 1j * x_TH[:, half:size]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag, x_TH[:, size:]], -1)


def bucket(relative: int, causal: bool) -> int:
    """The T5 bucket in words: 32 of them, the far half logarithmic up to 128."""
    number, offset = 32, 0
    if not causal:
        number, offset = 16, 16 * (relative > 0)
        relative = -abs(relative)
    gap, exact = max(-relative, 0), number // 2
    if gap < exact:
        return offset + gap
    return offset + min(exact + int(math.log(gap / exact) / math.log(128 / exact) * (number - exact) + 1e-9), number - 1)


def attention_bias(config, params, head, length, causal):
    relative = np.arange(length)[None] - np.arange(length)[:, None]
    if config.positions == "alibi":
        assert config.heads in (2, 4, 8)
        return -(2.0 ** (-8 * (head + 1) / config.heads)) * np.abs(relative)
    if config.positions == "bucket":
        table = params["stack"]["buckets"]
        return np.array([[table[bucket(int(r), causal), head] for r in row] for row in relative])
    return 0.0


def attention(config, params, p, x, positions, segments, window, causal):
    """One row, one head at a time."""
    q, k, v = (linear(p[name], x) for name in ("query", "key", "value"))
    mixed = np.zeros((len(x), config.heads, config.head_size))
    for head in range(config.heads):
        shared = head // (config.heads // config.kv)
        qh, kh = q[:, head], k[:, shared]
        if config.qk_norm:
            qh, kh = normalise(config, p["query_norm"], qh), normalise(config, p["key_norm"], kh)
        if config.positions == "rotary":
            qh, kh = (turn(y, positions, config.rotary, window) for y in (qh, kh))
        scores = qh @ kh.T * (config.attention_scale if config.mup_base else 1 / math.sqrt(config.head_size))
        if config.attention_cap:
            scores = config.attention_cap * np.tanh(scores / config.attention_cap)
        scores = scores + attention_bias(config, params, head, len(x), causal)
        seen = visible(len(x), causal=causal, window=window, segments=segments)
        scores = np.where(seen, scores, -1e30)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, shared]
    return linear(p["out"], mixed, 2)


def feed_forward(config, p, x):
    inner = INNER[config.activation]
    up = linear(p["up"], x)
    return linear(p["down"], inner(linear(p["gate"], x)) * up if "gate" in p else inner(up))


def forward(config, params, tokens, positions=None, segments=None, causal=True):
    """One row of tokens (T,) -> (hidden (T, D), residual stream after each layer [(T, D)])."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    positions = np.arange(len(tokens)) if positions is None else positions
    x = params["embed"]["table"][tokens]
    if config.positions == "learned":
        x = x + params["input"]["places"]["table"][positions]
    if config.positions == "sinusoidal":
        angle = positions[:, None] / 10_000 ** (np.arange(0, config.width, 2) / config.width)
        x = x + np.concatenate([np.sin(angle), np.cos(angle)], -1)
    stream = []
    for layer in range(config.depth):
        p = jax.tree.map(lambda leaf: leaf[layer], params["stack"]["layers"])  # noqa: B023
        window = config.windows[layer % len(config.windows)]

        def attend(y):
            return attention(config, params, p["attention"], y, positions, segments, window, causal)  # noqa: B023

        if config.parallel:
            h = normalise(config, p["norm0"], x)
            x = x + attend(h) + feed_forward(config, p["mlp"], h)
        elif config.placement == "pre":
            x = x + attend(normalise(config, p["norm0"], x))
            x = x + feed_forward(config, p["mlp"], normalise(config, p["norm1"], x))
        elif config.placement == "sandwich":
            x = x + normalise(config, p["norm0_out"], attend(normalise(config, p["norm0"], x)))
            x = x + normalise(config, p["norm1_out"], feed_forward(config, p["mlp"], normalise(config, p["norm1"], x)))
        else:
            x = normalise(config, p["norm0"], x + attend(x))
            x = normalise(config, p["norm1"], x + feed_forward(config, p["mlp"], x))
        stream.append(x)
    return (normalise(config, params["stack"]["norm"], x) if config.placement != "post" else x), stream


def logits(config, params, hidden):
    table = np.asarray(params["embed" if config.tied else "output"]["table"], np.float64)[: config.vocab]
    result = hidden @ table.T / config.mup
    return config.logit_cap * np.tanh(result / config.logit_cap) if config.logit_cap else result


# -- Hugging Face weights in our layout (spec 0.3, 10.2) ---------------------------------------------------------------


def stirred(torch, model, seed: int):
    """A Hugging Face model in evaluation mode with noise on every parameter, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


def arrays(model) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def stacked(depth: int, one) -> dict:
    return jax.tree.map(lambda *layers: np.stack(layers), *[one(i) for i in range(depth)])


def gpt2_params(found: dict[str, np.ndarray], config: Transformer, names: tuple[str, str] = ("wte", "wpe")) -> dict:
    """GPT-1 and GPT-2: Conv1D kernels are (in, out) already; c_attn is q, k, v, each head's columns together."""
    d, n, h = config.width, config.heads, config.head_size

    def weights(name):
        return {"kernel": found[f"{name}.weight"], "bias": found[f"{name}.bias"]}

    def norm(name):
        return {"scale": found[f"{name}.weight"], "bias": found[f"{name}.bias"]}

    def layer(i):
        at = f"transformer.h.{i}"
        qkv = weights(f"{at}.attn.c_attn")
        attention = {
            name: {"kernel": kernel.reshape(d, n, h), "bias": bias.reshape(n, h)}
            for name, kernel, bias in zip(("query", "key", "value"), np.split(qkv["kernel"], 3, 1), np.split(qkv["bias"], 3))
        }
        out = weights(f"{at}.attn.c_proj")
        attention["out"] = {"kernel": out["kernel"].reshape(n, h, d), "bias": out["bias"]}
        return {
            "attention": attention,
            "mlp": {"up": weights(f"{at}.mlp.c_fc"), "down": weights(f"{at}.mlp.c_proj")},
            "norm0": norm(f"{at}.ln_1"),
            "norm1": norm(f"{at}.ln_2"),
        }

    stack = {"layers": stacked(config.depth, layer)}
    if config.placement == "pre":
        stack["norm"] = norm("transformer.ln_f")
    tokens, places = (found[f"transformer.{name}.weight"] for name in names)
    return {"embed": {"table": tokens}, "input": {"places": {"table": places}}, "stack": stack}


def bert_params(found: dict[str, np.ndarray], config: Transformer) -> dict:
    """BERT with both heads, or RoBERTa with its one: Linear kernels are (out, in)."""
    d, n, h = config.width, config.heads, config.head_size
    trunk = "bert" if "bert.embeddings.word_embeddings.weight" in found else "roberta"
    last = {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"}
    if trunk == "bert":
        last = {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm"}
        last["bias"] = "cls.predictions.bias"

    def dense(name):
        return {"kernel": found[f"{name}.weight"].T, "bias": found[f"{name}.bias"]}

    def norm(name):
        return {"scale": found[f"{name}.weight"], "bias": found[f"{name}.bias"]}

    def split(name):
        whole = dense(name)
        return {"kernel": whole["kernel"].reshape(d, n, h), "bias": whole["bias"].reshape(n, h)}

    def layer(i):
        at = f"{trunk}.encoder.layer.{i}"
        out = dense(f"{at}.attention.output.dense")
        attention = {name: split(f"{at}.attention.self.{name}") for name in ("query", "key", "value")}
        attention["out"] = {"kernel": out["kernel"].reshape(n, h, d), "bias": out["bias"]}
        return {
            "attention": attention,
            "mlp": {"up": dense(f"{at}.intermediate.dense"), "down": dense(f"{at}.output.dense")},
            "norm0": norm(f"{at}.attention.output.LayerNorm"),
            "norm1": norm(f"{at}.output.LayerNorm"),
        }

    tables = {name: found[f"{trunk}.embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    params = {
        "embed": {"table": tables["word"]},
        "input": {
            "places": {"table": tables["position"]},
            "types": {"table": tables["token_type"]},
            "norm": norm(f"{trunk}.embeddings.LayerNorm"),
        },
        "stack": {"layers": stacked(config.depth, layer)},
        "transform": {"dense": dense(last["dense"]), "norm": norm(last["norm"])},
        "head_bias": found[last["bias"]],
    }
    if trunk == "bert":
        params |= {"pooler": {"dense": dense("bert.pooler.dense")}, "pair": dense("cls.seq_relationship")}
    return params


def llama_params(found: dict[str, np.ndarray], config: Transformer) -> dict:
    """Llama: nn.Linear kernels are (out, in)."""
    d, h = config.width, config.head_size

    def layer(i):
        at = f"model.layers.{i}"
        heads = {"query": ("q_proj", config.heads), "key": ("k_proj", config.kv), "value": ("v_proj", config.kv)}
        attention = {
            name: {"kernel": found[f"{at}.self_attn.{theirs}.weight"].T.reshape(d, n, h)} for name, (theirs, n) in heads.items()
        }
        attention["out"] = {"kernel": found[f"{at}.self_attn.o_proj.weight"].T.reshape(config.heads, h, d)}
        feed = {ours: {"kernel": found[f"{at}.mlp.{ours}_proj.weight"].T} for ours in ("up", "gate", "down")}
        norms = ("input_layernorm", "post_attention_layernorm")
        scales = {f"norm{k}": {"scale": found[f"{at}.{name}.weight"]} for k, name in enumerate(norms)}
        return {"attention": attention, "mlp": feed, **scales}

    stack = {"layers": stacked(config.depth, layer), "norm": {"scale": found["model.norm.weight"]}}
    tables = {"embed": found["model.embed_tokens.weight"], "output": found["lm_head.weight"]}
    return {"stack": stack, **{name: {"table": table} for name, table in tables.items()}}
