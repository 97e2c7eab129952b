"""XLNet beside the reference where it reads in an order, predicts from the query stream, and remembers."""

import numpy as np
import pytest

from lm.convert.convert import load
from lm.models.two_stream import TwoStream
from tests.convert.test_families import make

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("name", ["xlnet", "xlnet, odd"])
def test_orders_queries_and_memory(name, tmp_path):
    theirs, loaded = make(name, tmp_path), load(tmp_path)
    model, rng = TwoStream(loaded.objective.model), np.random.default_rng(0)
    before, tokens, types = rng.integers(3, 50, (2, 7)), rng.integers(3, 50, (2, 11)), rng.integers(0, 2, (2, 11))
    rank = np.stack([rng.permutation(11) for _ in range(2)])
    places = np.stack([np.flatnonzero(row > 5)[:3] for row in rank])
    hidden = (rank[:, :, None] <= rank[:, None]).astype(np.float32)  # a token sees what comes before it in the order
    given = {
        "token_type_ids": torch.tensor(types),
        "perm_mask": torch.tensor(hidden),
        "target_mapping": torch.tensor(np.eye(11, dtype=np.float32)[places]),
    }
    with torch.no_grad():
        memory = theirs.transformer(torch.tensor(before), use_mems=True).mems
        found = theirs(torch.tensor(tokens), mems=memory, use_mems=True, **given)
    memory, expected = (np.stack([one.numpy().swapaxes(0, 1) for one in mems], 1) for mems in (memory, found.mems))
    order = {"rank_BT": rank, "reach_BT": rank, "places_BP": places}
    variables = {"params": loaded.params}
    _, g_BPD, later = model.apply(variables, tokens, types_BT=types, memory_BLMD=memory, **order)
    np.testing.assert_allclose(model.apply(variables, method="head").logits(g_BPD), found.logits, atol=1e-4)
    np.testing.assert_allclose(later, expected[:, :, -7:], atol=1e-4)
