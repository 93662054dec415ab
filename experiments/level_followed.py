"""What it costs to follow the level of a recording instead of measuring the whole (`separator.level_seconds`).

    OMP_NUM_THREADS=1 python experiments/level_followed.py [--experiment FILE --runs-dir DIR --mixtures N --output FILE]

Wants the data (`hwsearch data build`). The full-precision base, which was trained with the level of the whole recording,
separates the same test mixtures with levels of several time constants; it is not trained again. The loss is the SI-SNR with the
level of the whole less that with the followed one: mean, 95 % interval, and the p-value of a paired permutation test.

Writes experiments/results/level_followed.json and prints a table in Markdown.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from scoring_speed import processor

import hwsearch
from hwsearch.data.dataset import load_mixture, manifest_hash, open_dataset
from hwsearch.experiment import SpectralConfig, Split, load_experiment
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.si_snr import si_snr
from hwsearch.metrics.statistics import mean_interval, paired_permutation_test
from hwsearch.separator.base import load_base
from hwsearch.separator.front_end import SpectralFrontEnd
from hwsearch.separator.separator import Separator
from hwsearch.workspace import Workspace

SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
RESULT = Path(__file__).parent / "results" / "level_followed.json"


def followed(separator: Separator, seconds: float | None) -> Separator:
    """Return the separator with the same weights and another level."""
    before = separator.front_end
    config = SpectralConfig.model_validate({**before.form.config.model_dump(), "level_seconds": seconds})
    front_end = SpectralFrontEnd(config, before.array, before.sample_rate)
    front_end.load_state_dict(before.state_dict())
    return Separator(front_end, separator.network).eval()


def main() -> None:
    """Separate the test mixtures with each level."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiment", type=Path, default=Path(__file__).parent / "comparison.toml")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--mixtures", type=int, default=60)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    workspace = Workspace(arguments.runs_dir, load_experiment(arguments.experiment))
    base, _ = load_base(workspace.base_path)
    chosen = open_dataset(workspace.data_folder, Split.TEST)[: arguments.mixtures]
    scores: dict[float | None, list[float]] = {None: [], **{seconds: [] for seconds in SECONDS}}
    for mixture in chosen:
        sound, target = load_mixture(workspace.data_folder, mixture)
        for seconds, found in scores.items():
            with torch.inference_mode():
                estimate = followed(base, seconds)(torch.from_numpy(sound)[None], torch.tensor([mixture.target.doa_deg]))
            found.append(float(si_snr(estimate[0].numpy(), target)))
    whole = np.array(scores.pop(None))
    rows = []
    for seconds, found in scores.items():
        lost = mean_interval(whole - np.array(found))
        p_value = paired_permutation_test(np.array(found), whole, workspace.experiment.seed).p_value
        rows.append({"level_seconds": seconds, "lost_db": [lost.value, lost.low, lost.high], "p": p_value})
    made_by = {
        "experiment": workspace.experiment.name,
        "seed": workspace.experiment.seed,
        "data_manifest": manifest_hash(workspace.data_folder, Split.TEST),
        "mixtures": len(chosen),
        "si_snr_db_with_the_level_of_the_whole": float(whole.mean()),
        "processor": processor(),
        "hwsearch": hwsearch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
    atomic_write_json(arguments.output, {"made_by": made_by, "rows": rows})
    print("| level_seconds | lost, dB | p |\n|---|---|---|")
    for row in rows:
        print("| {:g} | {:.3f} [{:.3f}, {:.3f}] | {:.2g} |".format(row["level_seconds"], *row["lost_db"], row["p"]))


if __name__ == "__main__":
    main()
