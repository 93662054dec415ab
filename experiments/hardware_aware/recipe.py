"""How fast and how long a narrowed network should learn: half the channels of every block, 8 bits, judged on validation."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from bench import BOTH, WHOLE_BITS, Bench
from numpy.typing import NDArray

from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.data.example import Example
from hwsearch.experiment import FLOAT_BITS, Split
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_json
from hwsearch.metrics.statistics import mean_interval, paired_permutation_test
from hwsearch.search.mixture_batches import improvements, mixture_batches
from hwsearch.separator.allocation import uniform
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.trained import TrainedState, initial_state, trained_mask_function
from hwsearch.training.qat import train_quantized

SHARE = 0.5
"""Share of the channels that every block keeps."""

RATES = (1.0, 2.0, 4.0, 8.0)
"""Learning rates, as factors of `qat.learning_rate`."""

LONGER = 3
"""Factor of the steps of the last variant."""

Scores = NDArray[np.float64]


def recipe(bench: Bench, seed: int) -> dict[str, Any]:
    """Train every variant once, and judge it on all validation mixtures. What is measured already is kept."""
    whole = bench.networks(BOTH).base
    full = _judged(bench, "full", whole, lambda: initial_state(whole, uniform(whole.sites, FLOAT_BITS)))
    variants = {(factor, bench.settings.steps) for factor in RATES} | {(1.0, LONGER * bench.settings.steps)}
    rows = []
    for factor, steps in [(0.0, 0), *sorted(variants, key=lambda variant: variant[::-1])]:
        lost = full - _variant(bench, factor, steps, seed)
        rows.append({"rate": factor, "steps": steps, "lost_db": lost.tolist()})
    return {"share_of_channels": SHARE, "mixtures": len(full), "seed": seed, "rows": rows}


def markdown(found: Mapping[str, Any]) -> str:
    """Write the table."""
    lines = [
        f"**{found['share_of_channels']:.0%} of the channels of every block, 8 bits, {found['mixtures']} validation mixtures**\n",
        "| learning rate | steps | loss against full precision | less that of `qat.learning_rate` |",
        "|---|---|---|---|",
    ]
    rows = found["rows"]
    compared = next(row for row in rows if row["rate"] == 1.0)
    for row in rows:
        lost, plain = np.array(row["lost_db"]), np.array(compared["lost_db"])
        estimate, test = mean_interval(lost), paired_permutation_test(lost, plain, 0)
        rate = f"{row['rate']:g} times `qat.learning_rate`" if row["steps"] else "before any training of its own"
        against = "" if row is compared else f"{test.difference:+.2f} dB, p = {test.p_value:.2g}"
        interval = f"{estimate.value:.2f} dB [{estimate.low:.2f}, {estimate.high:.2f}]"
        lines.append(f"| {rate} | {row['steps']} | {interval} | {against} |")
    return "\n".join(lines) + "\n"


def _variant(bench: Bench, factor: float, steps: int, seed: int) -> Scores:
    options = bench.networks(BOTH).base.options
    kept = bench.networks(BOTH).at({group.name: int(SHARE * len(group.classes)) for group in options.groups})
    if kept.shared is None:
        raise ValueError("wanted a shared network")
    start = kept.shared.at(uniform(kept.base.sites, WHOLE_BITS, WHOLE_BITS, bench.loaded.search.widest_trunk))
    rate = bench.loaded.qat.learning_rate * factor

    def trained() -> TrainedState:
        if not steps:
            return start
        qat = bench.loaded.qat.model_copy(update={"learning_rate": rate})
        return train_quantized(kept.base, start.allocation, bench.pool, qat, steps, seed, start=start)

    return _judged(bench, f"{factor:g}-{steps}-{bench.key(BOTH, None, seed)}", kept.base, trained)


def _judged(bench: Bench, name: str, base: PreparedBase, state: Callable[[], TrainedState]) -> Scores:
    """SI-SNR improvement of every validation mixture, `[mixtures]`, measured once."""
    path = bench.folder("recipe", f"{name}.json")
    if not path.is_file():
        function, folder = trained_mask_function(base, state()), bench.workspace(BOTH).data_folder
        scores = []
        for mixture in open_dataset(folder, Split.VALIDATION):
            example = Example(*load_mixture(folder, mixture), mixture.target.doa_deg)
            batches = mixture_batches(base.separator, [example])
            scores += improvements(base.separator, lambda kept: function(kept.normalised), batches).tolist()
        atomic_write_json(path, scores)
    return np.array(read_json(path, "scores"), np.float64)
