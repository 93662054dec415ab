"""Cycles and energy of pointwise layers by BitFusion's own simulator.

`BITFUSION_ROOT` names a checkout of github.com/hsharma35/bitfusion. The simulator is Python 2; only the parts that
Python 3 reads are loaded, and the energy figures come from the tables in the checkout, chosen as its
`Simulator.get_energy_cost` chooses them.

    BITFUSION_ROOT=... python tools/bitfusion.py cases.json results.json
"""

import configparser
import csv
import json
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from types import ModuleType, SimpleNamespace

TECHNOLOGY_UM = 0.045
PJ_PER_NJ = 1e3


def main() -> None:
    """Write the simulator's answer to every case."""
    cases = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    root = Path(os.environ["BITFUSION_ROOT"])
    sys.path.insert(0, str(root))
    # The instruction printer is Python 2; the optimizer imports it without needing it for statistics.
    loop_stack = ModuleType("bitfusion.src.simulator.loop_stack")
    vars(loop_stack)["LoopStack"] = object
    sys.modules[loop_stack.__name__] = loop_stack
    from bitfusion.src.optimizer.optimizer import _optimize_for_order
    from bitfusion.src.simulator.accelerator import Accelerator

    config = configparser.ConfigParser()
    config.read(root / "bf_e_conf.ini")
    chip = {key: int(value) for key, value in config["accelerator"].items()}
    sram = {"wgt": chip["wgt_sram"], "act": chip["act_sram"], "out": chip["out_sram"]}
    size = (chip["a"], chip["c"], chip["high_prec"], chip["low_prec"])
    accelerator = Accelerator(*size, sram, config.getint("system", "if_width"), chip["frequency"])
    energy = energy_costs(root, *size, sram)

    results = []
    for case in cases:
        layer = (case["in_channels"], case["out_channels"], case["frames"], case["activation_bits"], case["weight_bits"])
        conv_params = (accelerator, 1, 1, 1, *layer, False, energy)  # frames as a batch of 1 x 1 images
        # A loop over one tile changes nothing, so the two loops over pixels may stay outermost.
        orders = [("OW/ow", "OH/oh", *order) for order in permutations(("B/b", "IC/ic", "OC/oc"))]
        best = [_optimize_for_order(conv_params, order)[2:] for order in orders]
        cycles, energy_nj = min(found for found in best if found[0] is not None)
        results.append({"cycles": float(cycles), "energy_pj": energy_nj * PJ_PER_NJ})
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    versions = {"bitfusion": commit.stdout.strip() or "unknown", "python": sys.version.split()[0]}
    Path(sys.argv[2]).write_text(json.dumps({"versions": versions, "results": results}), "utf-8")


def energy_costs(root: Path, rows: int, columns: int, high: int, low: int, sram: dict[str, int]) -> SimpleNamespace:
    """Energies in nJ, per bit and per cycle, under the names the simulator's `Stats.get_energy` asks for."""
    width = high * high // low
    banks = {"wbuf": ("wgt", rows * columns, width, 0), "ibuf": ("act", rows, width, 0), "obuf": ("out", columns, 32, 1)}
    tables = list(csv.DictReader((root / "bitfusion/sram/cacti_sweep.csv").open()))
    costs = {}
    for buffer, (tensor, count, bits, ports) in banks.items():
        wanted = {
            "size (bytes)": sram[tensor] / count,
            "block size (bytes)": bits / 8,
            "read-write port": ports,
            "technology (u)": TECHNOLOGY_UM,
        }
        row = next(row for row in tables if all(row[key] and float(row[key]) == value for key, value in wanted.items()))
        costs[f"{buffer}_read_energy"] = float(row["read_energy_nJ"]) / bits
        costs[f"{buffer}_write_energy"] = float(row["write_energy_nJ"]) / bits
    synthesis = list(csv.DictReader((root / "results/systolic_array_synth.csv").open()))
    array = {"N": "4", "M": "4", "Max Precision (bits)": str(high), "Min Precision (bits)": str(low)}
    row = next(row for row in synthesis if all(row[key] == value for key, value in array.items()))
    units = rows * columns / 16  # the array is not among the synthesised ones: the simulator scales the one of 4 x 4
    return SimpleNamespace(core_dynamic_energy=float(row["Dynamic Power (nW)"]) * units / float(row["Frequency"]), **costs)


if __name__ == "__main__":
    main()
