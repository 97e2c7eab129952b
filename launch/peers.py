"""Steps and decoding beside `transformers` on torch in eager mode: equal shapes, in turns, in one process.

A counterpart is built from the config.json that `lm.convert` writes for our network, so both have the same layers; their
parameters are counted. Rows are full and of one document; float32, AdamW without clipping, no dropout.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from lm.config import Config, Optimizer
from lm.convert.families import family_named
from lm.decode.search.beam import Beams
from lm.decode.speed import decoder, random_params
from lm.errors import UserError, unknown
from lm.models import flops, presets
from lm.models.encoder_decoder import EncoderDecoder
from lm.objectives.base import Objective
from lm.objectives.causal import Causal
from lm.objectives.denoise import Denoise
from lm.objectives.masked import Masked
from lm.objectives.permuted import Permuted
from lm.objectives.replaced import Replaced
from lm.objectives.span import Span
from lm.studies.slots import available_cores
from lm.timing import stepper

Arrays = dict[str, np.ndarray]
SIZES = {"vocab": 2048, "context": 128, "width": 256, "depth": 4, "heads": 4, "unroll": 0}
BATCH, PROMPT, BEAMS, ROWS = 16, 16, 4, (1, 8)  # rows of a step; of decoding: tokens of a prompt, beams, rows
HEADER = ("", "parameters", "here", "transformers", "times as fast", "processor time", "of the matmul rate")


@dataclass(frozen=True)
class Peer:
    """An objective, a published network to scale, and the arguments of the network's counterpart by our keys.

    `family`: `model_type` of config.json. Without arguments the counterpart is ELECTRA's pair of networks.
    """

    family: str
    objective: Callable[..., Objective]
    model: Any
    arguments: Mapping[str, str]
    places: bool = False  # predictions at some positions only

    def sized(self, sizes: Mapping[str, int]) -> Objective:
        """Return the objective with a network of these sizes."""
        if not isinstance(self.model, EncoderDecoder):
            return self.objective(model=replace(self.model, **sizes))
        encoder, decoder = (replace(side, **sizes) for side in (self.model.encoder, self.model.decoder))
        return self.objective(model=EncoderDecoder(encoder=encoder, decoder=decoder))

    def batch(self, objective: Objective, rows: int) -> Arrays:
        """Draw full rows of random tokens, every row one document."""
        rng, model = np.random.default_rng(0), objective.model
        source, length = getattr(objective, "limits", None) or (0, model.context)

        def ids(size: int) -> np.ndarray:
            return rng.integers(0, model.vocab, (rows, size), np.int32)

        def chosen(count: int) -> np.ndarray:
            return np.array([rng.permutation(length)[:count] for _ in range(rows)], np.int32)

        places = np.sort(chosen(length * 5 // 32))  # 0.156, or 20 of 128
        targets = ids(places.shape[1] if self.places else length)
        ones, zeros = np.ones((rows, length), np.int32), np.zeros((rows, length), np.int32)
        batch = {"tokens": ids(length), "targets": targets, "weights": np.ones(targets.shape, np.float32)}
        batch |= {"segments": ones, "positions": np.cumsum(ones, 1, np.int32) - 1}
        if source:
            whole = np.ones((rows, source), np.int32)
            batch |= {"source": ids(source), "source_segments": whole}
            batch |= {"source_positions": np.cumsum(whole, 1, np.int32) - 1}
        if self.places:
            order = chosen(length)
            batch |= {"places": places, "types": zeros, "original": ids(length), "seed": np.arange(rows, dtype=np.int32)}
            batch |= {"rank": order, "reach": order, "backward": zeros[:, 0]}
        return batch


READS, PAIR = {"input_ids": "tokens", "token_type_ids": "types"}, {"input_ids": "source", "decoder_input_ids": "tokens"}
PERMUTED = {**READS, "perm_mask": "hidden", "target_mapping": "one_hot"}
PEERS = {
    "gpt": Peer("gpt2", Causal, presets.GPT2_SMALL, {"input_ids": "tokens"}),
    "bert": Peer("bert", Masked, presets.BERT_BASE, READS, places=True),
    "electra": Peer("electra", Replaced, presets.ELECTRA_BASE, {}, places=True),
    "xlnet": Peer("xlnet", partial(Permuted, mirrored=False), replace(presets.XLNET_BASE, memory=0), PERMUTED, places=True),
    "t5": Peer("t5", Span, presets.t5(256, 1024, 64, 4, 4), PAIR),
    "bart": Peer("bart", Denoise, presets.BART_BASE, PAIR),
}


def libraries() -> tuple[ModuleType, ModuleType]:
    """Import torch, with a thread for each core, and transformers; raises UserError where one is missing."""
    try:
        import torch
        import transformers
    except ImportError as error:
        text = "--peers compares with transformers on torch: pip install torch transformers, or leave --peers out"
        raise UserError(f"{error.name} is not installed; {text}") from error
    torch.set_num_threads(len(available_cores()))
    transformers.logging.set_verbosity_error()
    return torch, transformers


def counterpart(family: str, objective: Objective) -> Any:
    """Build the network of transformers that has the config.json of ours."""
    _, transformers = libraries()
    settings = {"pad_token_id": None} | family_named(family).settings(objective)
    config = transformers.AutoConfig.for_model(**settings)
    return getattr(transformers, settings["architectures"][0])(config).train()


def torch_step(peer: Peer, objective: Objective, batch: Arrays) -> tuple[Callable[[], None], int]:
    """Return a function that takes one step of the counterpart with AdamW, and the counterpart's number of parameters."""
    torch, _ = libraries()
    here = {name: torch.from_numpy(np.asarray(x)).long() for name, x in batch.items() if name != "weights"}
    if "rank" in here:  # of XLNet
        here["hidden"] = (here["rank"][:, None] >= here["reach"][:, :, None]).float()
        here["one_hot"] = torch.nn.functional.one_hot(here["places"], batch["tokens"].shape[1]).float()

    def entropy(logits: Any) -> Any:
        """Cross-entropy of the targets: the labels of all positions, -100 for those without one, as users have them."""
        labels = here["targets"]
        if labels.shape != logits.shape[:2]:
            labels = torch.full(logits.shape[:2], -100).scatter(1, here["places"], labels)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    if peer.arguments:
        networks = [counterpart(peer.family, objective)]
        inputs = {name: here[key] for name, key in peer.arguments.items()}

        def loss() -> Any:
            return entropy(networks[0](**inputs).logits)
    else:
        # Tables shared as in the paper (Clark et al. 2020, 3.2), samples by the Gumbel-max trick at the masked positions.
        networks = small, large = [counterpart(peer.family, one) for one in (Masked(model=objective.generator), objective)]
        small.electra.embeddings = large.electra.embeddings
        small.generator_lm_head.weight = large.electra.embeddings.word_embeddings.weight

        def loss() -> Any:
            logits, places = small(here["tokens"], token_type_ids=here["types"]).logits, here["places"]
            with torch.no_grad():
                chosen = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
                sampled = (chosen - torch.log(-torch.log(torch.rand_like(chosen) + 1e-9) + 1e-9)).argmax(-1)
                fake = here["original"].scatter(1, places, sampled)
            judged = large(fake, token_type_ids=here["types"]).logits
            wrong = (fake != here["original"]).float()
            return entropy(logits) + 50 * torch.nn.functional.binary_cross_entropy_with_logits(judged, wrong)

    parameters = {id(p): p for network in networks for p in network.parameters()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)

    def once() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return once, sum(p.numel() for p in parameters.values())


class Times(NamedTuple):
    """Medians of wall and processor time, seconds, ours first, and the quartiles of the ratio of neighbours."""

    wall: tuple[float, float]
    processor: tuple[float, float]
    low: float
    high: float


def in_turns(functions: tuple[Callable[[], Any], Callable[[], Any]], rounds: int) -> Times:
    """Time two functions A B A B ..., after two calls each to warm up: other work on the machine slows both alike."""
    for _ in range(2):
        for function in functions:
            function()
    times = np.zeros((rounds, 2, 2))
    for round, side in np.ndindex(rounds, 2):
        start = time.perf_counter(), time.process_time()
        functions[side]()
        times[round, side] = time.perf_counter() - start[0], time.process_time() - start[1]
    wall, processor = np.median(times, 0).T
    low, high = np.quantile(times[:, 1, 0] / times[:, 0, 0], (0.25, 0.75))
    return Times(tuple(wall), tuple(processor), low, high)


def row(name: str, count: str, times: Times, share: float | None = None) -> tuple[str, ...]:
    """Format a line of the table; `share`: our part of the rate of one large product."""
    here, there = (f"{1000 * seconds:,.1f} ms" for seconds in times.wall)
    ratio = f"{times.wall[1] / times.wall[0]:.2f} ({times.low:.2f} to {times.high:.2f})"
    return (
        name,
        count,
        here,
        there,
        ratio,
        f"{times.processor[1] / times.processor[0]:.2f}",
        "" if share is None else f"{share:.2f}",
    )


def steps(name: str, rounds: int, sizes: Mapping[str, int], rows: int, rate: float) -> tuple[str, ...]:
    """Compare the training steps of one peer."""
    peer = PEERS[name]
    objective = peer.sized(sizes)
    batch = peer.batch(objective, rows)
    ours = stepper(Config(objective=objective, batch=rows, optimizer=Optimizer(clip=0.0)), batch)
    theirs, there = torch_step(peer, objective, batch)
    here = flops.parameter_count(ours.abstract.params)
    times = in_turns((ours.once, theirs), rounds)
    count = f"{here:,}" if here == there else f"{here:,} (transformers {there:,})"
    return row(f"{name}, step", count, times, rows * objective.flops() / times.wall[0] / rate)


def decoding(rounds: int, sizes: Mapping[str, int], new: int) -> Iterator[tuple[str, ...]]:
    """Compare greedy and beam search of the causal network, which has random weights; every text has `new` tokens."""
    torch, _ = libraries()
    objective = PEERS["gpt"].sized(sizes)
    params, network = random_params(objective.model), counterpart("gpt2", objective).eval()
    count = flops.parameter_count(params)
    for rows, beams in ((rows, beams) for beams in (1, BEAMS) for rows in ROWS):
        prompts = torch.randint(0, objective.model.vocab, (rows, PROMPT))
        how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
        theirs = partial(network.generate, prompts, attention_mask=torch.ones_like(prompts), **how)
        search = Beams(count=beams) if beams > 1 else None
        ours = decoder(objective.model, params, rows, new=new, prompt=PROMPT, beams=search)
        times = in_turns((ours, theirs), rounds)
        yield row(
            f"gpt, {new} tokens, {'greedy' if beams == 1 else f'{beams} beams'}, {rows} {'row' if rows == 1 else 'rows'}",
            f"{count:,}",
            times,
        )


def known(names: Sequence[str]) -> list[str]:
    """Return the peers to compare, all where none is named; raises UserError for an unknown one or without the libraries."""
    for name in names:
        if name not in PEERS:
            raise unknown("peer", name, list(PEERS))
    libraries()
    return list(names) or list(PEERS)


def compare(names: Sequence[str], rounds: int, rate: float, new: int) -> Iterator[tuple[str, ...]]:
    """Yield the lines of the table: a step of each peer, and decoding where GPT is among them."""
    for name in names:
        yield steps(name, rounds, SIZES, BATCH, rate)
    if "gpt" in names:
        yield from decoding(max(3, rounds // 3), SIZES, new)
