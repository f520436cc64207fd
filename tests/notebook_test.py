"""The notebook: stored without what it printed, and running from top to bottom."""

import json
import os

import pytest

from tests.conftest import REPOSITORY

FILE = REPOSITORY / "notebooks" / "vgg_jax_colab.ipynb"


def test_it_is_stored_without_outputs_and_without_an_address_that_is_not_known():
    cells = json.loads(FILE.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 10
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    sources = ["".join(cell["source"]) for cell in cells]
    assert sum("REPOSITORY = " in source for source in sources) == 1
    assert "SAVE_TO_DRIVE = False" in sources[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("fully_optimised")
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    # What this test prints is no concern of pytest's: warnings of the notebook's machinery are not ours.
    notebook = nbformat.read(FILE, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 2 + 1 + 3  # curves, filters, score maps
    for run, most in (("small", 0.4), ("mine", 0.4)):  # guessing: 0.9 and 0.67
        assert json.loads((tmp_path / "runs" / run / "summary.json").read_text())["best_top1_error"] < most
    printed = "".join(output.get("text", "") for output in outputs)
    assert "center_crop" in printed or "centre crop" in printed
    assert printed.count("my_images/validation/") == 4
