"""Compile the real train step ahead of time: memory, operations, collectives; no device of that kind is needed.

    python -m lm.compile --config=configs/gpt_small.py [--topology=v5e:4x4] [--config.mesh.fsdp=16] [--output=F.json]
    python -m lm.compile --config=configs/gpt_small.py --topology=2xv5e:4x4 --nocompile
    python -m lm.compile --config=configs/gpt_small.py --topology=v5p:2x2x2 --search [--candidates=3]

`--topology` takes libtpu's names (v4:2x2x2, v5e:4x4, v5p:2x2x1, v6e:4x4 ...), which need `pip install libtpu`, several
slices (2xv5e:4x4), simulated devices (cpu:8) and GPUs (cuda:HOSTSxGPUS with --target); without it the step is compiled for
the devices here. `--search` ranks the meshes, micro-batches and remat policies that fit.
"""

import json

from absl import flags

from lm.config import Config, load, override
from lm.errors import check
from lm.flags import define_output, output, run

CONFIG = flags.DEFINE_string("config", None, "config file and its arguments: FILE.py[:key=value,...]")
TOPOLOGY = flags.DEFINE_string("topology", None, "hardware to compile for: v5e:4x4, 2xv5e:4x4, cpu:8, cuda:1x8")
TARGET = flags.DEFINE_string("target", None, "properties of the GPU of a cuda topology: FILE.txtpb of XLA's target configs")
MEMORY = flags.DEFINE_float("memory", None, "memory of a device in GiB, in place of the topology's own")
VOCAB = flags.DEFINE_integer("vocab", 32768, "vocabulary where the config leaves it to the tokenizer")
COMPILE = flags.DEFINE_bool("compile", True, "--nocompile counts parameters, operations and time only, in seconds")
SEARCH = flags.DEFINE_bool("search", False, "rank meshes, micro-batches, remat and attention kernels, and compile the best")
CANDIDATES = flags.DEFINE_integer("candidates", 3, "candidates of a search to compile", lower_bound=1)
OUTPUT = define_output("write the figures to this file as JSON; bytes are of one device")


def main(overrides: list[tuple[str, str]]) -> None:
    check(CONFIG.value is not None, "which config? --config=configs/gpt_small.py")
    check(MEMORY.value is None or MEMORY.value > 0, f"--memory={MEMORY.value} is a size in GiB")
    check(COMPILE.value or not SEARCH.value, "--search compiles its best candidates: leave out --nocompile")
    from lm.planning import topologies

    topologies.prepare(TOPOLOGY.value)  # before a config file imports jax
    config = load(CONFIG.value)
    config = override(config, overrides)
    file = output("lm.compile")  # checked before minutes of compilation
    if config.start:
        from lm.start.adopt import adopt

        config, _ = adopt(config, [name for name, _ in overrides])
    from lm.planning import pages, step
    from lm.planning.search import search

    config, corpus = step.stand_in(config, VOCAB.value)
    devices = topologies.devices(TOPOLOGY.value, TARGET.value)
    if SEARCH.value:
        found = search(config, corpus, devices, CANDIDATES.value, MEMORY.value)
        print(pages.ranking(found["search"]), end="\n\n")
    else:
        plan = step.step_of(config, corpus, devices)
        found = step.measure(plan, MEMORY.value) if COMPILE.value else step.sized(plan)
    print(pages.report(found))
    if file:
        file.write(json.dumps(found, indent=2) + "\n")
    warnings = found.get("warnings", ())
    check(
        not warnings,
        f"{len(warnings)} arrays are copied whole to every device to be laid out anew, which costs memory and time: change "
        f"the mesh or the sizes that do not divide; the first: {warnings[0] if warnings else ''}",
    )


if __name__ == "__main__":
    run(main, Config)
