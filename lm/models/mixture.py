"""Mixtures of experts in place of the feed-forward layer: routers, their losses, dispatch with and without capacity.

A router sends each token to a few of many feed-forward layers. Dropless dispatch sorts the tokens by expert and multiplies
group by group (MegaBlocks, Gale et al. 2023); with a capacity, each row gives an expert at most so many tokens and later ones
pass by on the residual (Switch, Fedus et al. 2022). Over the mesh's `expert` axis each device holds some of the experts: rows
travel by all-to-all with a capacity, and are gathered and summed without.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lm.models import auxiliary
from lm.models.experts import Experts
from lm.models.layers import named, normal
from lm.models.mlp import ACTIVATIONS
from lm.models.transformer import Transformer
from lm.sharding import constrain, platform, spec

ROWS = 128  # tokens of a block on a CPU


class Routing(struct.PyTreeNode):
    """A router's statistics of each row, for its losses: sums over the row's real tokens."""

    choices_BE: jax.Array
    probabilities_BE: jax.Array
    z_B: jax.Array
    tokens_B: jax.Array


class Choice(NamedTuple):
    """Tokens, the experts that each of them chose, and how these are weighed; `real_BT`: False for padding."""

    x_BTD: jax.Array
    chosen_BTK: jax.Array
    weights_BTK: jax.Array
    real_BT: jax.Array


Product = Callable[[jax.Array, jax.Array], jax.Array]  # of tokens and the kernels of all experts


class MixtureOfExperts(nn.Module):
    """A router and its experts; `config` is a `lm.models.transformer.Transformer`."""

    config: Transformer

    @nn.compact
    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array | None) -> tuple[jax.Array, Routing]:
        """Return the weighted sum of each token's experts and the router's statistics; `real_BT`: False for padding."""
        c, e = self.config, self.config.experts
        gated = ACTIVATIONS[c.activation][1]
        shapes = {"up": (c.width, c.mlp_size), "gate": (c.width, c.mlp_size), "down": (c.mlp_size, c.width)}
        kernels = {}
        for name in ("up", "gate", "down") if gated else ("up", "down"):
            init = c.linear(shapes[name][0], out=name == "down")
            axes = ("experts", "mlp", "embed") if name == "down" else ("experts", "embed", "mlp")
            kernels[name] = self.param(f"{name}_kernel", named(normal(**init), axes), (e.count, *shapes[name]))
        router = self.param("router_kernel", named(normal(**c.linear(c.width)), ("embed", None)), (c.width, e.count))

        # In float32, as close probabilities would tie (Fedus et al. 2022, 2.4); of equal ones the first expert is taken.
        logits_BTE = x_BTD.astype(jnp.float32) @ router
        probabilities_BTE = jax.nn.softmax(logits_BTE, -1)
        weights_BTK, chosen_BTK = jax.lax.top_k(probabilities_BTE, e.active)
        if e.weights == "renormalised":
            weights_BTK = weights_BTK / weights_BTK.sum(-1, keepdims=True)
        real_BT = jnp.ones(x_BTD.shape[:2], bool) if real_BT is None else real_BT
        routing = statistics(logits_BTE, probabilities_BTE, chosen_BTK, real_BT)
        kernels = {name: kernel.astype(x_BTD.dtype) for name, kernel in kernels.items()}
        dispatch = with_capacity if e.capacity else dropless
        return dispatch(c, kernels, Choice(x_BTD, chosen_BTK, weights_BTK.astype(x_BTD.dtype), real_BT)), routing


def statistics(logits_BTE: jax.Array, probabilities_BTE: jax.Array, chosen_BTK: jax.Array, real_BT: jax.Array) -> Routing:
    real_BT1 = real_BT[..., None].astype(jnp.float32)
    choices_BTE = jax.nn.one_hot(chosen_BTK, logits_BTE.shape[-1]).sum(2)
    z_BT = jax.nn.logsumexp(logits_BTE, -1) ** 2
    return Routing(
        choices_BE=(choices_BTE * real_BT1).sum(1),
        probabilities_BE=(probabilities_BTE * real_BT1).sum(1),
        z_B=(z_BT * real_BT1[..., 0]).sum(1),
        tokens_B=real_BT1[..., 0].sum(1),
    )


def add_losses(experts: Experts, routing: Routing) -> None:
    """Add the losses of all layers' routers, arrays with a leading axis L, to the objective's."""
    layers, count = routing.choices_BE.shape[0], experts.count
    tokens = jnp.maximum(routing.tokens_B.sum(), 1)  # of all layers together
    if experts.per_row:
        each_LB1 = jnp.maximum(routing.tokens_B, 1)[..., None]
        terms_LB = count * (routing.choices_BE / each_LB1 * routing.probabilities_BE / each_LB1).sum(-1)
        rows = jnp.maximum((routing.tokens_B > 0).sum(), 1)
        balance = jnp.where(routing.tokens_B > 0, terms_LB, 0).sum() / rows
    else:
        share_E, mean_E = (x.sum((0, 1)) / tokens for x in (routing.choices_BE, routing.probabilities_BE))
        balance = count * (share_E * mean_E).sum()
    auxiliary.add("balance", experts.balance, balance)
    if experts.z_loss:
        auxiliary.add("router_z", experts.z_loss, routing.z_B.sum() / tokens)
    # The busiest expert of a layer over the equal share: 1 is balance, count / active one expert for all.
    load_L = routing.choices_BE.sum(1).max(-1) / jnp.maximum(routing.tokens_B.sum(1), 1)
    auxiliary.add("load", 0.0, load_L.sum() / layers * count / experts.active)


def feed(c: Transformer, kernels: dict[str, jax.Array], x: jax.Array, product: Product) -> jax.Array:
    """Run tokens, in whatever order `product` wants them, through their experts."""
    function, gated = ACTIVATIONS[c.activation]
    h = product(x, kernels["up"])
    h = function(product(x, kernels["gate"])) * h if gated else function(h)
    return product(h, kernels["down"])


# -- dropless ----------------------------------------------------------------------------------------------------------


def dropless(c: Transformer, kernels: dict[str, jax.Array], choice: Choice) -> jax.Array:
    """Give every expert exactly its tokens; on a mesh, each device sorts the tokens of its rows."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return grouped(c, kernels, choice)
    matrices = {name: spec(("experts", "mlp", None) if name == "down" else ("experts", None, "mlp")) for name in kernels}
    local = functools.partial(grouped, c, expert_devices=mesh.shape["expert"], tensor_devices=mesh.shape["tensor"])
    tokens = jax.tree.map(lambda y: spec(("batch", "length", None)[: y.ndim]), choice)
    mapped = jax.shard_map(local, in_specs=(matrices, tokens), out_specs=tokens.x_BTD, check_vma=False)
    return mapped(kernels, choice)


def grouped(
    c: Transformer, kernels: dict[str, jax.Array], choice: Choice, expert_devices: int = 1, tensor_devices: int = 1
) -> jax.Array:
    """Multiply the tokens of this device, sorted by expert, group by group; all experts, or this device's part of them."""
    x_BTD, chosen_BTK, weights_BTK, _ = choice  # padding takes nothing from others
    if expert_devices > 1:  # every device sees the tokens of all that share its rows' experts, and serves its own experts
        x_BTD, chosen_BTK, weights_BTK = (
            jax.lax.all_gather(y, "expert", axis=0, tiled=True) for y in (x_BTD, chosen_BTK, weights_BTK)
        )
        chosen_BTK = chosen_BTK - jax.lax.axis_index("expert") * len(kernels["up"])
    own, active, width = len(kernels["up"]), chosen_BTK.shape[-1], x_BTD.shape[-1]
    chosen = jnp.where((chosen_BTK >= 0) & (chosen_BTK < own), chosen_BTK, own).reshape(-1)
    order = jnp.argsort(chosen, stable=True)
    sizes_E = jnp.bincount(chosen, length=own + 1)[:own].astype(jnp.int32)
    x = x_BTD.reshape(-1, width)[order // active]

    def product(x: jax.Array, kernel_EIO: jax.Array) -> jax.Array:
        # XLA multiplies ragged groups on a CPU as so many whole products, one an expert.
        return in_blocks(x, kernel_EIO, sizes_E) if platform() == "cpu" else jax.lax.ragged_dot(x, kernel_EIO, sizes_E)

    y = feed(c, kernels, x, product)
    # Rows behind the last group are other devices' tokens: whatever the product leaves there.
    y = jnp.where((chosen[order] < own)[:, None], y, 0)
    y = y[jnp.argsort(order)].reshape(*chosen_BTK.shape, width)
    y_BTD = jnp.einsum("btkd,btk->btd", y, weights_BTK)
    if tensor_devices > 1:
        y_BTD = jax.lax.psum(y_BTD, "tensor")
    return jax.lax.psum_scatter(y_BTD, "expert", tiled=True) if expert_devices > 1 else y_BTD


def in_blocks(x: jax.Array, kernel_EIO: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Multiply rows (N, I), sorted by group, with their group's matrix: (N, O); 0 behind the last group.

    Each group is padded to blocks of equal size, which are multiplied one after the other.
    """
    rows, count = len(x), len(kernel_EIO)
    ends_E = jnp.cumsum(sizes_E)
    blocks_E = jnp.cumsum(-(-sizes_E // ROWS))  # number of blocks up to the end of each group
    group = jnp.searchsorted(ends_E, jnp.arange(rows), side="right")
    own = jnp.minimum(group, count - 1)
    begin, first = ends_E[own] - sizes_E[own], blocks_E[own] - -(-sizes_E[own] // ROWS)
    blocks = -(-rows // ROWS) + count
    place = jnp.where(group < count, first * ROWS + jnp.arange(rows) - begin, blocks * ROWS)  # out of range: left out
    laid = jnp.zeros((blocks * ROWS, x.shape[1]), x.dtype).at[place].set(x, mode="drop").reshape(blocks, ROWS, -1)
    numbers = jnp.minimum(jnp.searchsorted(blocks_E, jnp.arange(blocks), side="right"), count - 1)
    y = block_products(laid, kernel_EIO, numbers).reshape(blocks * ROWS, -1)
    return jnp.take(y, place, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def block_products(x_CPI: jax.Array, kernel_EIO: jax.Array, numbers_C: jax.Array) -> jax.Array:
    """Multiply each block (P, I) with the matrix of its number: (C, P, O)."""
    return jax.lax.map(lambda xs: xs[0] @ kernel_EIO[xs[1]], (x_CPI, numbers_C))


def block_forward(x_CPI: jax.Array, kernel_EIO: jax.Array, numbers_C: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return block_products(x_CPI, kernel_EIO, numbers_C), (x_CPI, kernel_EIO, numbers_C)


def block_backward(saved: tuple[jax.Array, ...], g_CPO: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    """Add each block's product up in place: by itself jax would add a whole stack of matrices for every block."""
    x_CPI, kernel_EIO, numbers_C = saved

    def step(total_EIO: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x_PI, g_PO, number = xs
        new_IO = total_EIO[number] + jnp.matmul(x_PI.T, g_PO, preferred_element_type=jnp.float32)
        return total_EIO.at[number].set(new_IO), g_PO @ kernel_EIO[number].T

    zeros = jnp.zeros(kernel_EIO.shape, jnp.float32)
    d_kernel, d_x = jax.lax.scan(step, zeros, (x_CPI, g_CPO, numbers_C))
    return d_x, d_kernel.astype(kernel_EIO.dtype), None


block_products.defvjp(block_forward, block_backward)


# -- with a capacity ---------------------------------------------------------------------------------------------------


def with_capacity(c: Transformer, kernels: dict[str, jax.Array], choice: Choice) -> jax.Array:
    """Give every expert at most a capacity of each row's tokens, first choices first, then in order; others get 0."""
    x_BTD, chosen_BTK, weights_BTK, real_BT = choice
    e, (batch, length) = c.experts, x_BTD.shape[:2]
    capacity = math.ceil(e.active * length / e.count * e.capacity)
    hits_BTKE = jax.nn.one_hot(chosen_BTK, e.count) * real_BT[..., None, None]  # padding takes no place
    queue_BXE = hits_BTKE.swapaxes(1, 2).reshape(batch, -1, e.count)
    place_BXE = jnp.cumsum(queue_BXE, 1) - 1
    kept = queue_BXE[..., None] * jax.nn.one_hot(place_BXE.astype(jnp.int32), capacity)
    kept_BTKEC = kept.reshape(batch, e.active, length, e.count, capacity).swapaxes(1, 2).astype(x_BTD.dtype)
    # "rows" leaves the expert axis to the experts: the exchange between the two layouts is an all-to-all.
    x_EBCD = jnp.einsum("btkec,btd->ebcd", kept_BTKEC, x_BTD)
    x_EBCD = constrain(x_EBCD, "experts", "rows", None, None)
    y_EBCD = feed(c, kernels, x_EBCD, functools.partial(jnp.einsum, "ebci,eio->ebco"))
    y_EBCD = constrain(y_EBCD, "experts", "rows", None, None)
    y_BTD = jnp.einsum("btkec,btk,ebcd->btd", kept_BTKEC, weights_BTK, y_EBCD)
    return constrain(y_BTD, "batch", "length", None)
