"""The notebook runs, and what it prints and plays agrees with a formula of our own."""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import onnxruntime
import pytest
import soundfile as sf
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from numpy.typing import NDArray

from tests.tiny import snapshot

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "experiments" / "walkthrough.ipynb"

MOST_BYTES = 40_000
ROUNDED_DB = 0.005
"""Half the last digit that the notebook prints."""

FOLDERS = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
"""Places where Jupyter keeps settings, other kernels and its history."""

Cell = Any
"""A cell of nbformat, a dictionary with attributes."""


@dataclass(frozen=True)
class Executed:
    """The notebook after it ran, the folder that it ran in, and the one that temporary files went to."""

    cells: list[Cell]
    here: Path
    temporary: Path

    @property
    def printed(self) -> str:
        return "".join(output.text for output in self.outputs() if output.output_type == "stream" and output.name == "stdout")

    def outputs(self) -> list[Any]:
        return [output for cell in self.cells if cell.cell_type == "code" for output in cell.outputs]

    def shown(self, kind: str) -> list[str]:
        """Outputs of a MIME type."""
        return [output.data[kind] for output in self.outputs() if kind in output.get("data", {})]

    def clips(self) -> dict[str, tuple[NDArray[np.float64], int]]:
        """Samples and rate of every sound, by the name that is printed above it."""
        found, said = {}, ""
        for output in self.outputs():
            said = output.get("text", said)
            sound = re.search(r'src="data:audio/wav;base64,([^"]+)"', output.get("data", {}).get("text/html", ""))
            if sound:
                found[said.strip()] = sf.read(io.BytesIO(base64.b64decode(sound[1], validate=True)))
        return found


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def execute(cells: list[Cell], here: Path, temporary: Path) -> Executed:
    """Execute cells in a kernel of this Python that sees none of the user's settings."""
    notebook = read()
    notebook.cells = cells
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        for name in FOLDERS:
            patch.setenv(name, str(temporary / name.lower()))
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(here)}}).execute()
    return Executed(notebook.cells, here, temporary)


def si_snr(estimate: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Scale-invariant SNR by the angle between the two signals: 20 log10 of its cotangent."""
    cosine = np.corrcoef(estimate, target)[0, 1]
    return float(10 * np.log10(cosine**2 / (1 - cosine**2)))


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executed]:
    here, temporary = tmp_path_factory.mktemp("experiments"), tmp_path_factory.mktemp("temporary")
    shutil.copy(ROOT / "experiments" / "quickstart.toml", here)
    before = snapshot(here)
    yield execute(read().cells, here, temporary)
    assert snapshot(here) == before, "the notebook writes into its temporary folder only"


def test_it_is_valid_and_holds_no_outputs() -> None:
    notebook = read()
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], "it was run in place; clear its outputs before a commit"
            assert cell.execution_count is None
            assert cell.metadata == {}
    assert NOTEBOOK.stat().st_size < MOST_BYTES


def test_a_sentence_stands_above_every_step() -> None:
    cells = read().cells
    for above, cell in pairwise(cells):
        if cell.cell_type == "code":
            assert re.fullmatch(r"## [A-Z].*\n\n.*[.:]", above.source, re.DOTALL), cell.id


def test_it_uses_no_private_names_and_links_to_what_is_there() -> None:
    code = "\n".join(cell.source for cell in read().cells if cell.cell_type == "code")
    assert re.findall(r"[.\s]_[a-z]\w*", code) == []
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown"))
    assert len(links) > 2
    assert all((NOTEBOOK.parent / link).is_file() for link in links)


def test_every_cell_runs_without_an_error_or_a_warning(executed: Executed) -> None:
    assert [output for output in executed.outputs() if output.output_type == "error"] == []
    assert [output.text for output in executed.outputs() if output.get("name") == "stderr"] == []
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    assert len(executed.shown("image/png")) == 4  # the costs on two chips, the sensitivities and the front


def test_what_is_heard_has_the_improvements_that_are_printed(executed: Executed) -> None:
    clips = executed.clips()
    assert len(clips) == 4
    (mixture, rate), (target, _), *estimates = clips.values()
    assert all(clip.shape == target.shape and one_rate == rate for clip, one_rate in clips.values())
    assert rate == 8000
    assert len(target) / rate == pytest.approx(float(re.search(r"([\d.]+) s; the speakers", executed.printed)[1]), abs=0.05)
    printed = re.findall(r"^(.*): SI-SNR improvement (-?[\d.]+) dB$", executed.printed, re.MULTILINE)
    assert [name for name, _ in printed] == list(clips)[2:]
    for (estimate, _), (_, improvement) in zip(estimates, printed, strict=True):
        # 16 bits of a clip at full scale add noise 90 dB below it.
        assert si_snr(estimate, target) - si_snr(mixture, target) == pytest.approx(float(improvement), abs=ROUNDED_DB + 0.002)
    assert float(printed[0][1]) > 3, "full precision separates the two speakers"
    assert abs(float(printed[1][1]) - float(printed[0][1])) < 2


def test_the_exported_file_opens_and_runs(executed: Executed) -> None:
    path, kilobytes = re.search(r"^(/.*model\.onnx): (\d+) kB$", executed.printed, re.MULTILINE).groups()
    model = Path(path)
    assert model.is_relative_to(executed.temporary)
    assert model.stat().st_size / 1000 == pytest.approx(int(kilobytes), abs=0.5)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (features,) = session.get_inputs()
    (mask,) = session.run(None, {features.name: np.zeros((1, features.shape[1], 20), np.float32)})
    assert mask.shape[0] == 1
    assert mask.shape[-1] == 20
    assert np.isfinite(mask).all()
    size = re.search(r"^candidate \d+: (\d+) kB, loses (-?[\d.]+) dB$", executed.printed, re.MULTILINE)
    assert size[1] == kilobytes
    assert float(size[2]) <= 0.5


def test_a_failing_cell_would_be_noticed(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("raise ValueError('broken')")
    with pytest.raises(CellExecutionError, match="broken"):
        execute([cell], tmp_path, tmp_path)
