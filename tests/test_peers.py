"""Comparison with transformers: the networks beside ours have the same parameters, and each side takes its steps."""

import sys

import pytest

from launch import peers
from lm.errors import UserError
from lm.models import flops
from lm.sharding import unbox
from lm.training.state import abstract_params

TINY = {"vocab": 61, "context": 32, "width": 32, "depth": 1, "heads": 2}


LATER = pytest.mark.slow  # seconds of compilation each; the default tests have two of them


@pytest.mark.parametrize("name", peers.PEERS)
def test_both_sides_have_the_same_parameters(name):
    peer = peers.PEERS[name]
    objective = peer.sized(TINY)
    batch = peer.batch(objective, 2)
    once, count = peers.torch_step(peer, objective, batch)
    once()
    assert count == flops.parameter_count(unbox(abstract_params(objective, batch)))


@pytest.mark.parametrize("name", ["gpt", "xlnet", *(pytest.param(n, marks=LATER) for n in ("bert", "electra", "t5", "bart"))])
def test_both_sides_take_steps(name):
    what, count, here, there, ratio, processor, share = peers.steps(name, 1, TINY, 8, 1e12)
    assert what == f"{name}, step"
    assert int(count.replace(",", "")) > 10_000
    assert all(float(cell.split()[0].replace(",", "")) > 0 for cell in (here, there, ratio, processor))
    assert 0 <= float(share) < 1


@pytest.mark.slow
def test_both_sides_decode():
    rows = list(peers.decoding(1, TINY, new=4))
    expected = [f"gpt, 4 tokens, {how}, {count}" for how in ("greedy", "4 beams") for count in ("1 row", "8 rows")]
    assert [row[0] for row in rows] == expected


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="transformers is not installed; --peers"):
        peers.known([])


def test_an_unknown_peer_is_refused():
    with pytest.raises(UserError, match="brt"):
        peers.known(["brt"])


def test_turns_alternate():
    called = []
    times = peers.in_turns((lambda: called.append("a"), lambda: called.append("b")), rounds=3)
    assert "".join(called) == "ab" * 5
    assert times.low <= times.high
