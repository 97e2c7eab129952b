"""Which pre-training objective gives the best network to fine-tune for the same compute?

    python -m launch.sweep --study=objectives --go

Seven objectives, equal FLOPs (ELECTRA's generator, XLNet's two streams and both halves of an encoder-decoder are counted),
judged by fine-tuning on the package that a paragraph of Python's documentation is from, and by a probe: the same with a frozen
network.
"""

from collections.abc import Mapping

from configs.studies import small
from lm.config import Config, load
from lm.models.two_stream import XLNet
from lm.studies.arms import changed
from lm.studies.study import Arm, Budget, Study

FIGURES = ("accuracy", "macro_f1")


def topic(model: object, steps: int, causal: bool = False) -> Mapping[str, Config]:
    """Return a fine-tuning and a probe of a network of this kind."""
    pack = not isinstance(model, XLNet)  # its attention knows no documents within a row
    fields = {
        "objective.rows.pack": pack,
        "objective.model": model,
        "optimizer.lr": 1e-3,
        "every.evaluate": steps,
        "every.sample": 0,
    }
    tuned = changed(load("classify_nano", {"steps": steps, "causal": causal}), fields | {"keep.last": 1, "keep.best": 0})
    return {"topic": tuned, "probe": changed(tuned, {"optimizer.groups.freeze": ("embed", "stack"), "optimizer.lr": 1e-2})}


def study(seeds: int = 6, flops: float = 4e12, tuning: int = 150) -> Study:
    rotary = {"objective.model.positions": "rotary"}
    configs = {
        "masked": changed(small("bert_nano", 500, system="roberta"), rotary),
        "causal": small("gpt_nano", 500),
        "replaced": small("electra_nano", 500),
        "prefix": small("prefix_nano", 500),
        "permuted": small("xlnet_nano", 500),
        "span": small("t5_nano", 500),
        "denoise": small("bart_nano", 500),
    }
    arms = [
        Arm(name=name, stages=(one,), downstream=topic(one.objective.model, tuning, name in ("causal", "prefix")))
        for name, one in configs.items()
    ]
    return Study(
        question="Which objective gives the network that is best to fine-tune, for equal compute?",
        arms=tuple(arms),
        seeds=seeds,
        budget=Budget(flops=flops),
        downstream=arms[0].downstream,
        metrics=tuple(f"{name}/eval/validation/examples/{figure}" for name in ("topic", "probe") for figure in FIGURES),
    )
