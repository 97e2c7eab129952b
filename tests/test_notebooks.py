"""The notebooks run from top to bottom: with tiny settings under today's versions, and as they are under Colab's."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.processes import xla_flags

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent.absolute()
NOTEBOOKS = sorted((ROOT / "launch").glob("*.ipynb"))
TINY = {
    "colab": {"STEPS": 4, "ARM_STEPS": 4, "TUNING_STEPS": 4, "FIELDS": {"evaluate_batches": 2}},
    "tour": {"CONTEXT": 16},
}
# Colab's packages as listed on 2026-08-19 (googlecolab/backend-info), for Python 3.13.
COLAB = (
    "jax==0.7.2 jaxlib==0.7.2 flax==0.11.2 optax==0.2.8 orbax-checkpoint==0.12.4 grain==0.2.18 tensorflow-datasets==4.9.10 "
    "array_record==0.8.3 tensorstore==0.1.85 numpy==2.1.3"
)
BROUGHT = (
    "tokenizers",
    "safetensors",
    "matplotlib",
    "scikit-learn",
    "scipy",
    "pandas",
    "pyarrow",
    "rich",
    "jinja2",
    "absl-py",
)


def tagged(cell, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


def prepared(path: Path, settings: dict, install: bool = False):
    """Read a notebook; insert a cell with settings after its cell of parameters, and leave the installation out."""
    notebook = nbformat.read(path, 4)
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    if not install:
        lines += ["import sys", f"sys.path.insert(0, {str(ROOT)!r})"]
    cells = []
    for cell in notebook.cells:
        if install or not tagged(cell, "install"):
            cells.append(cell)
        if tagged(cell, "parameters"):
            cells.append(nbformat.v4.new_code_cell("\n".join(lines)))
    notebook.cells = cells
    return notebook


def execute(notebook, folder: Path, seconds: float = 600):
    """Run all cells in a folder; an error in a cell is raised with its traceback."""
    client = nbclient.NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": str(folder)}})
    return client.execute()


def printed(notebook) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    """Readable as JSON, with names of cells that stay: a change of a line is a change of a line."""
    text = path.read_text(encoding="utf-8")
    stored = json.loads(text)
    assert text == json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
    nbformat.validate(stored)
    for cell in stored["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert cell["id"].replace("-", "").isalnum()
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in stored["cells"]) == 1


def test_the_repository_has_one_address():
    """The address stands in the settings; badge and citation follow it."""
    notebook = nbformat.read(ROOT / "launch" / "colab.ipynb", 4)
    (settings,) = [cell.source for cell in notebook.cells if tagged(cell, "parameters")]
    address = settings.split('REPOSITORY = "https://github.com/')[1].split('"')[0]
    badge = f"https://colab.research.google.com/github/{address}/blob/main/launch/colab.ipynb"
    assert badge in notebook.cells[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XLA_FLAGS", xla_flags(1))
    done = execute(prepared(path, TINY[path.stem]), tmp_path)
    if path.stem == "colab":
        text = printed(done)
        assert "going on from step 20" in text
        assert "logged losses are equal to the last bit" in text
        assert (tmp_path / "exported" / "model.safetensors").exists()
        # The last cell prints the text of transformers, then ours; either may hold line ends.
        last = [cell for cell in done.cells if cell.cell_type == "code"][-1]
        both = "".join(output.text for output in last.outputs if output.get("name") == "stdout")
        assert len(both) > 2
        assert both[: len(both) // 2] == both[len(both) // 2 :]
    pictures = [output for cell in done.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]
    assert len(pictures) == (2 if path.stem == "colab" else 13)


def python313() -> str | None:
    """Return a command of Python 3.13, or None where there is none."""
    for command in (os.environ.get("PYTHON313"), "python3.13"):
        if command and shutil.which(command):
            shown = subprocess.run(
                [command, "-c", "import sys, venv; print(sys.version_info[:2])"], capture_output=True, text=True
            )
            if shown.stdout.strip() == "(3, 13)":
                return command
    return None


DRIVER = """
import json, sys, time
from pathlib import Path
import nbformat
from nbclient import NotebookClient

notebook, folder, seconds = nbformat.read(sys.argv[1], 4), sys.argv[2], {}
began = time.monotonic()
client = NotebookClient(
    notebook, timeout=1800, resources={"metadata": {"path": folder}},
    on_cell_executed=lambda cell, **_: seconds.update({cell["id"]: time.monotonic() - began}),
)
try:
    client.execute()
finally:
    nbformat.write(notebook, sys.argv[1])
    Path(folder, "seconds.json").write_text(json.dumps(seconds))
"""


@pytest.mark.slow
def test_under_colabs_versions(tmp_path):
    """Python 3.13, Colab's versions, the installation for real: nothing that Colab brings changes, and all cells run.

    LM_NOTEBOOK_STEPS=0 takes the notebook's own settings, to measure the seconds from the first cell to the first sample.
    """
    python = python313()
    if python is None:
        pytest.skip("no Python 3.13: put python3.13 on the PATH, or its path into PYTHON313")
    here = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [here, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *COLAB.split(), *BROUGHT, "nbclient", "nbformat", "ipykernel"], check=True)

    settings: dict = {"REPOSITORY": f"file://{ROOT}"}
    if os.environ.get("LM_NOTEBOOK_STEPS") != "0":
        settings |= TINY["colab"]
    notebook = prepared(ROOT / "launch" / "colab.ipynb", settings, install=True)
    stored, driver = tmp_path / "colab.ipynb", tmp_path / "driver.py"
    nbformat.write(notebook, stored)
    driver.write_text(DRIVER)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XLA_FLAGS"))}
    path = os.pathsep.join([str(tmp_path / "venv" / "bin"), kept["PATH"]])
    began = time.monotonic()
    done = subprocess.run(
        [here, str(driver), str(stored), str(tmp_path)],
        env=kept | {"PATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    print(f"{time.monotonic() - began:.0f} s in all; at the end of each cell: {seconds}")
    text = printed(nbformat.read(stored, 4))
    assert "'jax': '0.7.2'" in text
    assert "'flax': '0.11.2'" in text
    assert "'numpy': '2.1.3'" in text
    assert "logged losses are equal to the last bit" in text
    frozen = subprocess.run([here, "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert {name for name in COLAB.split() if name.partition("==")[0] != "tensorstore"} <= {
        line.replace("array-record", "array_record") for line in frozen
    }
