"""Is an encoder better pre-trained by masked tokens, by next tokens, or by next tokens and then masked ones?

    python -m launch.sweep --study=clm_mlm --go

Equal compute in all arms (Gisserot-Boukhlef et al. 2025); judged by fine-tuning as a bidirectional classifier.
"""

from configs.studies import small
from lm.config import load
from lm.objectives.causal import Causal
from lm.studies.arms import changed
from lm.studies.study import Arm, Budget, Study


def study(seeds: int = 6, flops: float = 4e12, tuning: int = 150) -> Study:
    masked = changed(small("bert_nano", 500, system="roberta"), {"objective.model.positions": "rotary"})
    # The same network and tokenizer; without the types of sentences, which a next-token model has no use for.
    masked = changed(masked, {"objective.model.types": 0})
    causal = changed(masked, {"objective": Causal(model=masked.objective.model)})
    fields = {"optimizer.lr": 1e-3, "every.evaluate": tuning, "every.sample": 0, "keep.last": 1, "keep.best": 0}
    topic = changed(load("classify_nano", {"steps": tuning}), fields)
    return Study(
        question="Does an encoder gain from next-token prediction before masked-token prediction?",
        arms=(
            Arm(name="mlm", stages=(masked,)),
            Arm(name="clm", stages=(causal,)),
            Arm(name="clm then mlm", stages=(causal, masked)),
            Arm(name="mostly clm then mlm", stages=(causal, masked), shares=(3, 1)),
        ),
        seeds=seeds,
        budget=Budget(flops=flops),
        downstream={"topic": topic},
        metrics=("topic/eval/validation/examples/accuracy", "topic/eval/validation/loss"),
    )
