"""Compile recipes for TPU slices and write their tables: those of papers in configs/README.md, plans in lm/planning/README.md.

    pip install libtpu
    python -m launch.recipes [--only=gpt_small,bert_base] [--workdir=runs/recipes] [--readme]
    python -m launch.recipes --plans [--only=gpt_1b_v6e] [--readme]      # sizes and slices, by overrides of the same configs

No TPU is needed; a config takes minutes on two CPU cores, and one that was compiled already is not compiled again. Figures of
papers are those of the named task, † where they come from a secondary source; "run by us": a figure of this project's own run.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from launch.pages import markdown, write_between
from lm.errors import check, unknown
from lm.flags import run
from lm.strict_json import load_json

ONLY = flags.DEFINE_list("only", [], "names of configs, joined by commas (default: all)")
WORKDIR = flags.DEFINE_string("workdir", "runs/recipes", "folder for the outputs of lm.compile, one JSON file per config")
COMPILE = flags.DEFINE_bool("compile", True, "compile steps without a file; --nocompile shows a dash for their memory")
PLANNING = flags.DEFINE_bool("plans", False, "compile sizes against slices (lm/planning/README.md) and not the papers' recipes")
README = flags.DEFINE_bool("readme", False, "write the table into its page, between its two marks")

ROOT = Path(__file__).parent.parent
HEADER = ("config", "paper", "the paper's figure", "slice", "GiB a chip", "hours, at least", "run by us")


@dataclass(frozen=True)
class Recipe:
    """One published recipe: its config, the paper, a figure of the paper, and a slice that it fits."""

    config: str
    paper: str
    figure: str
    topology: str = "v5e:4x4"
    ours: str = "not yet"


RECIPES = (
    Recipe("gpt_small", "Radford et al. 2019; Brown et al. 2020", "LAMBADA perplexity 35.13 (GPT-2, 117M)"),
    Recipe("dialogpt_small", "Zhang et al. 2020", "–"),
    Recipe("bert_base", "Devlin et al. 2019", "SQuAD 1.1 dev F1 88.4"),
    Recipe("roberta_base", "Liu et al. 2019", "MNLI dev 87.6"),
    Recipe("macbert_base", "Cui et al. 2020", "CMRC 2018 dev F1 87.9"),
    Recipe("ernie_base", "Sun et al. 2019", "XNLI test 78.4"),
    Recipe("albert_base", "Lan et al. 2020", "–"),
    Recipe("electra_small", "Clark et al. 2020", "GLUE test 77.4"),
    Recipe("xlnet_base", "Yang et al. 2019", "MNLI dev 86.8"),
    Recipe("transformer_xl_base", "Dai et al. 2019", "WikiText-103 test perplexity 24.0", "v5e:2x2"),
    Recipe("t5_base", "Raffel et al. 2020", "GLUE test 82.7 †"),
    Recipe("ul2_base", "Tay et al. 2022", "–"),
    Recipe("bart_base", "Lewis et al. 2020", "–"),
    Recipe("transformer_base", "Vaswani et al. 2017", "WMT14 En-De BLEU 27.3 †"),
    Recipe("mask_predict_base", "Ghazvininejad et al. 2019", "WMT14 En-De BLEU 27.03 †"),
    Recipe("simcse_base", "Gao et al. 2021", "mean of seven STS tests 76.25 (unsupervised)"),
)


@dataclass(frozen=True)
class Plan:
    """A model on a slice: a config, its changed fields, and other flags of `lm.compile`."""

    name: str
    model: str
    config: str
    topology: str
    fields: tuple[str, ...]
    flags: tuple[str, ...] = ("--vocab=50257",)


FULL = "objective.model.remat=full"
BILLION = ("objective.model.width=2048", "objective.model.depth=20", "objective.model.heads=16", "objective.model.context=2048",
           FULL)  # fmt: skip
SEVEN = ("objective.model.width=4096", "objective.model.depth=32", "objective.model.heads=32", "objective.model.mlp=11008",
         "objective.model.activation=swiglu", "objective.model.bias=false", "objective.model.norm=rms",
         "objective.model.positions=rotary", "objective.model.tied=false", "objective.model.context=2048", FULL)  # fmt: skip
XL = tuple(f"objective.model.{stack}.{field}" for stack in ("encoder", "decoder")
           for field in ("width=2048", "mlp=5120", "heads=32", "depth=24", "remat=full"))  # fmt: skip
PLANS = (
    Plan("gpt_small_v5e", "GPT-2 small, 16 x 1,024", "gpt_small", "v5e:1x1", (FULL, "batch=16", "micro_batches=4")),
    Plan("gpt_small_v6e", "GPT-2 small, 32 x 1,024", "gpt_small", "v6e:1x1", (FULL, "batch=32", "micro_batches=2")),
    Plan("gpt_small_t4", "GPT-2 small in float32, 8 x 1,024", "gpt_small", "v5e:1x1",
         (FULL, "batch=8", "micro_batches=2", "objective.model.dtype=float32"), ("--vocab=50257", "--memory=14")),
    Plan("gpt_1b_v5e", "1.1 B, 4 x 2,048", "gpt_small", "v5e:1x1", (*BILLION, "batch=4", "micro_batches=4")),
    Plan("gpt_1b_v6e", "1.1 B, 4 x 2,048", "gpt_small", "v6e:1x1", (*BILLION, "batch=4", "micro_batches=4")),
    Plan("gpt_1b_t4", "1.1 B in float32, 4 x 2,048", "gpt_small", "v5e:1x1",
         (*BILLION, "batch=4", "micro_batches=4", "objective.model.dtype=float32"), ("--vocab=50257", "--memory=14")),
    Plan("gpt_7b_v5p", "7 B (32 x 4,096), 512 x 2,048", "gpt_small", "v5p:4x4x8",
         (*SEVEN, "mesh.data=2", "mesh.fsdp=64", "batch=512", "micro_batches=2"), ("--vocab=32000",)),
    Plan("bert_large_v5e", "BERT large, 256 x 128", "bert_base:size=large", "v5e:4x4", ("mesh.data=1", "mesh.fsdp=16"),
         ("--vocab=30522",)),
    Plan("t5_xl_v5e", "T5.1.1 XL, 128 x 512 and 114", "t5_base:version=1.1", "v5e:4x4",
         (*XL, "mesh.data=1", "mesh.fsdp=16", "micro_batches=8"), ("--vocab=32100",)),
    Plan("gpt_32k_v5e", "GPT-2 small, 16 x 32,768", "gpt_small", "v5e:4x4",
         (FULL, "objective.model.context=32768", "mesh.data=4", "mesh.context=4", "batch=16", "micro_batches=4")),
    Plan("gpt_32k_v5p", "GPT-2 small, 8 x 32,768", "gpt_small", "v5p:2x2x2",
         (FULL, "objective.model.context=32768", "mesh.data=1", "mesh.fsdp=8", "batch=8", "micro_batches=1")),
    Plan("moe_8x1b_v5e", "1.1 B with 8 experts, 2 of them active, 64 x 2,048", "gpt_small", "v5e:8x8",
         (*BILLION, "objective.model.experts.count=8", "objective.model.experts.active=2", "mesh.data=1", "mesh.fsdp=8",
          "mesh.expert=8", "batch=64", "micro_batches=1"), ("--vocab=50257",)),
)  # fmt: skip
PLAN_HEADER = ("plan", "model, rows x tokens a step", "slice, mesh", "parameters", "peak GiB a chip", "fits",
               "compiled FLOPs / formula", "s a step, at least", "bound by", "MFU, at most", "compiled in")  # fmt: skip


def compiled(name: str, config: str, topology: str, more: tuple[str, ...] = ()) -> dict:
    """Return the figures of `lm.compile`, compiling the step where they are missing."""
    file = Path(WORKDIR.value) / f"{name}.json"
    if not file.exists() or (COMPILE.value and "arguments_bytes" not in load_json(file, dict)):
        file.parent.mkdir(parents=True, exist_ok=True)
        head, colon, rest = config.partition(":")
        command = [sys.executable, "-m", "lm.compile", f"--config=configs/{head}.py{colon}{rest}", f"--topology={topology}"]
        command += [f"--output={file}", "--overwrite", *more, *(() if COMPILE.value else ("--nocompile",))]
        check(subprocess.run(command, check=False).returncode == 0, f"{name} did not compile; see above")
    return load_json(file, dict)


def plan_row(plan: Plan) -> tuple[str, ...] | None:
    """Return a line of the table of plans; None for a plan without figures, which --nocompile leaves out."""
    if not COMPILE.value and not (Path(WORKDIR.value) / f"{plan.name}.json").exists():
        return None
    found = compiled(plan.name, plan.config, plan.topology, (*(f"--config.{one}" for one in plan.fields), *plan.flags))
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items()) or "one chip"
    peak, hbm = found["peak_bytes"], found["hbm_bytes"] / 2**30
    memory = "unknown" if peak is None else f"{peak / 2**30:.1f}"
    cells = [f"`{plan.name}`", plan.model, f"{plan.topology}, {mesh}", f"{found['params'] / 1e6:,.0f} M", memory]
    cells.append(f"{'yes' if found['fits'] else 'no'}, of {hbm:.1f}")
    if found["compiled_flops"] is None:
        return *cells, "–", "–", "–", "–", f"{found['compile_seconds']:.0f} s"
    cells.append(f"{found['compiled_flops'] / found['model_flops']:.2f}")
    if any(flag.startswith("--memory=") for flag in plan.flags):  # another chip's memory: the time would be that of neither
        cells += ["–", "–", "–"]
    else:
        cells += [f"{found['step_seconds_estimate']:.2g}", found["roofline"]["limit"], f"{100 * found['mfu_estimate']:.0f}%"]
    return *cells, f"{found['compile_seconds']:.0f} s"


def row(recipe: Recipe) -> tuple[str, ...]:
    """Return a line of the table: memory of arguments and temporaries, and all steps at the chips' peak."""
    found = compiled(recipe.config, recipe.config, recipe.topology)
    memory = f"{(found['arguments_bytes'] + found['temporaries_bytes']) / 2**30:.1f}" if "arguments_bytes" in found else "–"
    hours = found["step_seconds_at_peak"] * found["steps"] / 3600
    cells = f"`{recipe.config}`", recipe.paper, recipe.figure, f"{recipe.topology}, {found['devices']} chips"
    return *cells, memory, "below 0.1" if hours < 0.1 else f"{hours:,.1f}" if hours < 10 else f"{hours:,.0f}", recipe.ours


def main(overrides: list[tuple[str, str]]) -> None:
    """Compile, print, write."""
    check(not overrides, "launch.recipes takes no --config.* flags: the configs are what it shows")
    table: dict[str, Recipe | Plan] = {plan.name: plan for plan in PLANS} if PLANNING.value else {r.config: r for r in RECIPES}
    for name in ONLY.value:
        if name not in table:
            raise unknown("plan" if PLANNING.value else "recipe", name, list(table))
    chosen = [one for name, one in table.items() if not ONLY.value or name in ONLY.value]
    rows = [plan_row(one) if isinstance(one, Plan) else row(one) for one in chosen]
    lines = markdown(PLAN_HEADER if PLANNING.value else HEADER, [one for one in rows if one is not None])
    if missing := [one.name for one, cells in zip(chosen, rows, strict=True) if isinstance(one, Plan) and cells is None]:
        lines += ["", f"Not compiled yet: {', '.join(f'`{name}`' for name in missing)}."]
    print("\n".join(lines))
    if README.value:
        page = ROOT / ("lm/planning" if PLANNING.value else "configs") / "README.md"
        write_between(page, "launch.recipes", lines)


if __name__ == "__main__":
    run(main)
