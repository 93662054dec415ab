"""The chosen candidate, its export, and the verification."""

from pathlib import Path
from typing import TYPE_CHECKING

from hwsearch.export.folder import VERIFICATION_FILE, WEIGHTS_FILE, graph_file
from hwsearch.extensions import EXPORTERS
from hwsearch.files.reading import read_json
from hwsearch.view.terminal import say
from hwsearch.workflow.choose import Choice

if TYPE_CHECKING:
    from hwsearch.export.verify import VerificationReport


def print_export(report: "VerificationReport", folder: Path) -> None:
    """Print the exported file, its verification, and its speed if the format has one."""
    graph = next(folder / name for name in map(graph_file, EXPORTERS) if (folder / name).is_file())
    sizes = [f"{(folder / name).stat().st_size / 1e3:.0f} kB" for name in (graph.name, WEIGHTS_FILE)]
    say(f"model:  {graph}")
    say(f"        {sizes[0]}; the weights alone, in {WEIGHTS_FILE}, {sizes[1]}")
    say(
        f"        verified in {report.runtime}: {report.quantized_values} integers judged, {report.ties} ties; "
        f"output within {report.max_abs_difference:.2g} of the Brevitas network"
    )
    if speed := read_json(folder / VERIFICATION_FILE, "a verification report").get("speed"):
        own, expected, target = (speed[key] for key in ("real_time_factor", "modelled_real_time_factor", "modelled_target"))
        modelled = "" if expected is None else f"; {target} expects {1e3 * expected:.3g} ms"
        say(f"speed:  {speed['times_as_fast']:.1f} times that of float32 PyTorch, on one thread of this machine")
        say(f"        {1e3 * own:.3g} ms for a second of sound{modelled}")


def print_choice(choice: Choice) -> None:
    """Say which candidate was chosen, why, and where its drop is known less exactly than was asked for."""
    limits = " within search.limits" if choice.limited else ""
    if choice.near:
        why = f"the smallest{limits} that loses at most {choice.max_drop_db} dB"
    else:
        why = f"the best-sounding one{limits}: none loses at most {choice.max_drop_db} dB"
    say(f"chosen: candidate {choice.candidate}, {why}")
    counted = f"on {choice.mixtures} validation mixture" + ("s" if choice.mixtures != 1 else "")
    if choice.margin_db is None:
        say(f"        it loses {choice.drop_db:.2f} dB {counted}; no confidence interval of that is known")
    elif 2 * choice.margin_db > choice.max_drop_db:
        say(
            f"        it loses {choice.drop_db:.2f} ± {choice.margin_db:.2f} dB {counted}, an interval wider than the "
            f"{choice.max_drop_db:g} dB of export.max_drop_db; more mixtures may choose another candidate"
        )
