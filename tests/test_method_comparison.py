"""What the comparison of methods makes of the figures of its seeds: means, paired differences, and refusals."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hwsearch.errors import UserError

FOLDER = Path(__file__).parents[1] / "experiments" / "method_comparison"
MODULES = ("one_scale", "bench", "exact", "judging", "searches", "methods", "seeds", "report")
UTTERANCES = [f"utterance-{number // 2}" for number in range(24)]
CONDITIONS = {
    "steps": 300,
    "test_mixtures": len(UTTERANCES),
    "digits_mixtures": 0,
    "qat": {},
    "shared": {},
    "quantization": {},
    "provenance": {"base_sha256": "b", "shared_sha256": "s"},
}


@pytest.fixture(scope="module")
def comparison() -> Iterator[SimpleNamespace]:
    """The modules of the script, which import each other by their short names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            del sys.modules[name]


def figures(seed: int, more: float) -> dict[str, list[float | None]]:
    """Figures of every mixture. The first mixture has no PESQ."""
    quality = np.random.default_rng(seed).normal(8.0, 2.0, len(UTTERANCES)) + more
    return {
        "si_snr_improvement_db": quality.tolist(),
        "pesq": [None, *(2.0 + 0.1 * quality[1:]).tolist()],
        "stoi": (0.8 + 0.01 * quality).tolist(),
    }


def row(method: str, bits: float, size: int, **found: object) -> dict[str, object]:
    return {"kind": "trained", "method": method, "bits": bits, "bytes": size, "mean_bits": bits} | found


def write(folder: Path, seed: int, more: float, **made_by: object) -> None:
    """A seed in which the search on the shared network reaches `more` dB than two uniform allocations."""
    rows = [
        row("shared search, from shared", 2.5, 600, **figures(seed, more)),
        row("uniform, small at 8", 2.5, 500, **figures(seed, 0.0)),
        row("uniform, one scale", 2.5, 500, failed="the loss became nan"),
        {"kind": "full precision", "steps": 0, "bytes": 7000, "mean_bits": 32} | figures(seed, 1.0),
    ]
    content = {"seed": seed, "made_by": CONDITIONS | made_by, "utterances": UTTERANCES, "digits": [], "rows": rows}
    folder.mkdir(exist_ok=True)
    (folder / f"seed-{seed}.json").write_text(json.dumps(content))


def test_seeds_are_averaged_and_compared_mixture_by_mixture(comparison, tmp_path):
    # Each machine trains a shared network of its own.
    write(tmp_path, 0, 0.5)
    write(tmp_path, 3, 0.7, provenance={"base_sha256": "b", "shared_sha256": "another"})
    found = comparison.report.contents(comparison.seeds.read_seeds(tmp_path), [2.5])
    ours = next(each for each in found["rows"] if each["method"] == "shared search, from shared")
    wanted = np.mean([figures(0, 0.5)["si_snr_improvement_db"], figures(3, 0.7)["si_snr_improvement_db"]])
    assert ours["si_snr_improvement_db"][0] == pytest.approx(wanted)
    assert (ours["seeds"], ours["bytes"]) == (2, 600)
    uniform = next(each for each in found["tests"] if "uniform" in each["against"] and each["metric"] == "si_snr_improvement_db")
    assert (uniform["rival"], uniform["seeds"], uniform["mixtures"]) == ("uniform, small at 8", 2, len(UTTERANCES))
    assert uniform["difference"] == pytest.approx(0.6)
    assert uniform["p_holm"] == uniform["p_value"] < 0.01
    pesq = next(each for each in found["tests"] if "uniform" in each["against"] and each["metric"] == "pesq")
    assert (pesq["mixtures"], pesq["difference"]) == (len(UTTERANCES) - 1, pytest.approx(0.06))
    assert next(each for each in found["rows"] if each["method"] == "uniform, one scale")["failed"].keys() == {0, 3}
    text = comparison.report.markdown({"made_by": {0: CONDITIONS}} | found, [2.5])
    assert "| uniform, one scale | diverged |" in text
    assert "+0.600 to uniform, small at 8" in text


def test_seeds_of_other_conditions_are_refused(comparison, tmp_path):
    with pytest.raises(UserError, match="no seed is measured"):
        comparison.seeds.read_seeds(tmp_path)
    write(tmp_path, 0, 0.5)
    write(tmp_path, 1, 0.5, steps=50, provenance={"base_sha256": "another"})
    with pytest.raises(UserError, match="seeds 0 and 1 differ in steps, provenance; wanted equal conditions"):
        comparison.seeds.read_seeds(tmp_path)
