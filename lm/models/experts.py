"""The config of a mixture of experts; `lm.models.mixture` holds the layer."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from lm.errors import check, check_choices, check_range


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Number of experts (0: one plain feed-forward), `active` ones of a token, and how a router weighs and balances them.

    `weights`: "renormalised" probabilities of the chosen sum to 1 (Mixtral), "softmax" ones are of all experts (OLMoE,
    Switch). `balance`: coefficient of N sum f_e P_e, with f the share of choices and P the mean probability of an expert, over
    all tokens and layers of a (micro-)batch, or with `per_row` of each row and layer (Switch); `z_loss`: of the squared log of
    the router's partition function (Zoph et al. 2022). `capacity`: factor on the equal share of a row's tokens, 0: dropless.
    Experts have the activation and the size `mlp` of the model's feed-forward, and no biases.
    """

    count: int = 0  # of experts in place of each feed-forward; 0: one plain layer
    active: int = 2  # of a token
    weights: Literal["renormalised", "softmax"] = "renormalised"
    balance: float = 0.01
    per_row: bool = False
    z_loss: float = 0.0
    capacity: float = 0.0

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "count", "balance", "z_loss", "capacity")
        check(self.count != 1, "experts.count=1 is one feed-forward for all tokens: set 0")
        if self.count:
            check(1 <= self.active <= self.count, f"experts.active={self.active} must be from 1 to experts.count={self.count}")
        else:
            changed = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
            check(not changed, f"experts.{', experts.'.join(changed)}: of no effect without experts.count")
