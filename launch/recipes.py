"""Compile every published recipe for a TPU slice and write the table of configs/README.md: memory, and hours at least.

    pip install libtpu
    python -m launch.recipes [--only=gpt_small,bert_base] [--workdir=runs/recipes] [--readme]

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
README = flags.DEFINE_bool("readme", False, "write the table into configs/README.md, between its two marks")

PAGE = Path(__file__).parent.parent / "configs" / "README.md"
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


def compiled(recipe: Recipe) -> dict:
    """Return the figures of `lm.compile` for a recipe, compiling its step where they are missing."""
    file = Path(WORKDIR.value) / f"{recipe.config}.json"
    if not file.exists() or (COMPILE.value and "arguments_bytes" not in load_json(file, dict)):
        file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "lm.compile", f"--config=configs/{recipe.config}.py", f"--topology={recipe.topology}"]
        command += [f"--output={file}", "--overwrite", *(() if COMPILE.value else ("--nocompile",))]
        check(subprocess.run(command, check=False).returncode == 0, f"{recipe.config} did not compile; see above")
    return load_json(file, dict)


def row(recipe: Recipe, found: dict) -> tuple[str, ...]:
    """Return a line of the table: memory of arguments and temporaries, and all steps at the chips' peak."""
    memory = f"{(found['arguments_bytes'] + found['temporaries_bytes']) / 2**30:.1f}" if "arguments_bytes" in found else "–"
    hours = found["step_seconds_at_peak"] * found["steps"] / 3600
    cells = f"`{recipe.config}`", recipe.paper, recipe.figure, f"{recipe.topology}, {found['devices']} chips"
    return *cells, memory, "below 0.1" if hours < 0.1 else f"{hours:,.1f}" if hours < 10 else f"{hours:,.0f}", recipe.ours


def main(overrides: list[tuple[str, str]]) -> None:
    """Compile, print, write."""
    check(not overrides, "launch.recipes takes no --config.* flags: the configs are what it shows")
    names = [recipe.config for recipe in RECIPES]
    for name in ONLY.value:
        if name not in names:
            raise unknown("recipe", name, names)
    chosen = [recipe for recipe in RECIPES if not ONLY.value or recipe.config in ONLY.value]
    lines = markdown(HEADER, [row(recipe, compiled(recipe)) for recipe in chosen])
    print("\n".join(lines))
    if README.value:
        write_between(PAGE, "launch.recipes", lines)


if __name__ == "__main__":
    run(main)
