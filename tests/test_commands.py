"""The other commands, as a user starts them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import command as start

TINY = "tests/configs/tiny.py"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(f"line {i} says that {i} and {i} make {2 * i}\n" for i in range(400)))
    return path


def test_bench_measures_every_part(text, tmp_path):
    output = tmp_path / "bench.json"
    done = start("launch.bench", f"--config={TINY}:text={text}", "--steps=2", "--tokens=4", f"--output={output}")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    for name in ("matmul_float32_flops", "memory_bytes_per_second", "step_seconds", "batch_tokens_per_second"):
        assert found[name] > 0
        assert name in done.stdout
    assert found["tokens_per_second"] == pytest.approx(8 * 32 / found["step_seconds"])
    assert found["share_of_matmul"] < 1.5
    assert found["decode_8_tokens_per_second"] > 0


def test_bench_checks_its_output_before_the_work(tmp_path):
    done = start("launch.bench", f"--output={tmp_path}/none/x.json")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --output={tmp_path}/none/x.json: there is no folder")
    assert done.stdout == ""


def test_compile_writes_its_figures(tmp_path):
    """A CPU has no collectives; the bound is the formula's FLOPs over the measured rate of the CPU."""
    done = start("lm.compile", f"--config={TINY}", f"--output={tmp_path}/f.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert (found["devices"], found["device_kind"], found["mesh"], found["collectives"]) == (1, "cpu", {}, {})
    assert found["arguments_bytes"] >= 3 * 4 * found["params"] > 0  # parameters and two moments
    assert found["step_seconds_at_peak"] > 0
    assert found["model_flops"] > 6 * found["params"]


def test_a_recipe_becomes_a_row(tmp_path):
    """3.6 s a step and 1,000 steps are an hour; the memory is that of arguments and temporaries."""
    found = {"devices": 16, "arguments_bytes": 2**30, "temporaries_bytes": 2**31, "step_seconds_at_peak": 3.6, "steps": 1000}
    (tmp_path / "gpt_small.json").write_text(json.dumps(found))
    done = start("launch.recipes", "--only=gpt_small", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "| v5e:4x4, 16 chips | 3.0 | 1.0 | not yet |" in done.stdout
    assert start("launch.recipes", "--only=gpt_smal", f"--workdir={tmp_path}").returncode == 2


def test_a_plan_becomes_a_row(tmp_path):
    """What the compiler refused has dashes; a plan without figures is left out."""
    found = {
        "devices": 1, "mesh": {}, "params": 10**9, "arguments_bytes": 2**30, "peak_bytes": 2**35, "hbm_bytes": 2**34,
        "fits": False, "compiled_flops": None, "model_flops": 1e15, "compile_seconds": 5.2,
    }  # fmt: skip
    (tmp_path / "gpt_1b_v5e.json").write_text(json.dumps(found))
    run = {"compiled_flops": 1.1e15, "step_seconds_estimate": 2.0, "mfu_estimate": 0.31, "roofline": {"limit": "memory"}}
    (tmp_path / "gpt_1b_v6e.json").write_text(json.dumps({**found, "fits": True, **run}))
    done = start("launch.recipes", "--plans", "--nocompile", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    _, _, *rows, _, missing = done.stdout.splitlines()
    assert len(rows) == 2
    assert missing.startswith("Not compiled yet: `gpt_small_v5e`, ")
    assert "gpt_1b" not in missing.replace("gpt_1b_t4", "")
    assert rows[0].endswith("| 1,000 M | 32.0 | no, of 16.0 | – | – | – | – | 5 s |")
    assert rows[1].endswith("| 1,000 M | 32.0 | yes, of 16.0 | 1.10 | 2 | memory | 31% | 5 s |")


def test_every_published_config_is_a_recipe():
    text = Path("launch/recipes.py").read_text()
    for path in [*Path("configs").glob("*_base.py"), *Path("configs").glob("*_small.py")]:
        assert f'Recipe("{path.stem}"' in text, path


def test_compile_refuses_an_unknown_slice_in_one_line():
    done = start("lm.compile", f"--config={TINY}", "--topology=v9z:2x2")
    assert done.returncode == 2, done.stderr
    assert "v9z:2x2" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_objective_is_a_command_of_its_own(text, tmp_path):
    done = start("lm.objectives.causal", f"--config={TINY}:text={text}", f"--workdir={tmp_path}", "--config.steps=2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "summary.json").is_file()


def test_a_large_run_on_a_cpu_is_told_how_long_it_takes(text, tmp_path):
    done = start(
        "lm.main",
        f"--config={TINY}:text={text}",
        f"--workdir={tmp_path}",
        "--config.steps=1000000000",
        "--config.optimizer.lr=1e30",
        "--config.optimizer.clip=0",
        "--config.skip_limit=1",
    )
    assert done.returncode == 2  # it diverges at once
    assert "this CPU will need about" in done.stdout
    assert "gpt_nano" in done.stdout


def test_samples_are_written_while_training(text, tmp_path):
    done = start(
        "lm.main", f"--config={TINY}:text={text}", f"--workdir={tmp_path}", "--config.steps=2", "--config.every.sample=1"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["1.txt", "2.txt"]


def test_plots_draws_a_run_again(text, tmp_path):
    done = start("lm.main", f"--config={TINY}:text={text}", f"--workdir={tmp_path}", "--config.steps=2")
    assert done.returncode == 0, done.stderr
    (tmp_path / "loss.png").unlink()
    done = start("lm.plots", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


HELP = """
import os, runpy, sys
for module in sys.argv[1:]:
    child = os.fork()
    if not child:
        sys.argv = [module, "--help"]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, (module, end.code)
        assert "jax" not in sys.modules, f"{module} --help imports jax, which takes more than a second"
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, module
"""


def test_help_of_every_command_starts_no_jax_and_shows_every_flag():
    """But for the objectives' own entry points, whose files are the objectives themselves."""
    sources = {path: path.read_text(encoding="utf-8") for room in ("lm", "launch") for path in Path(room).rglob("*.py")}
    commands = [
        str(path.with_suffix("")).replace("/", ".").removesuffix(".__main__")
        for path, text in sources.items()
        if re.search(r"^    (run\(main|sys\.exit\(main\(|main\(\)$)", text, re.MULTILINE) and "__name__ ==" in text
    ]
    assert len(commands) >= 17
    done = subprocess.run([sys.executable, "-c", HELP, *commands], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    for flag in ("--output=TEXT", "--overwrite ", "--modules=A,B"):
        assert done.stdout.count(f"\n  {flag}") >= 6
