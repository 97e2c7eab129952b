"""What a layer keeps for its backward pass, on the device or in the host's memory; the rest is computed again."""

from collections.abc import Callable
from typing import Any

import jax


def kept(remat: str, names: tuple[str, ...], offload: bool) -> Callable[..., Any] | None:
    """Return the policy of `jax.checkpoint` that keeps matrix products ("dots") or the outputs of dense layers."""
    policies, host = jax.checkpoint_policies, ("device", "pinned_host")
    if remat == "dots":
        return policies.offload_dot_with_no_batch_dims(*host) if offload else policies.dots_with_no_batch_dims_saveable
    if not names:
        return None
    if not offload:
        return policies.save_only_these_names(*names)
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=list(names), offload_src=host[0], offload_dst=host[1]
    )
