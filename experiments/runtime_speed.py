"""Times separation on this machine, from features to mask and from sound to sound: PyTorch and exported files side by side.

    python experiments/runtime_speed.py

One thread. All forms of a network take turns in every round, on the same ten seconds of noise; a ratio is the geometric mean of
those of the rounds, with Student's 95% interval. A frame of a stream is timed alone. Memory is the largest of a process that
separates ten minutes with `hwsearch separate`. Results with VNNI and without stand side by side in
experiments/results/runtime_speed.json and .md, and a run replaces those of its own kind.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import hwsearch  # noqa: F401 - before ONNX Runtime, which reports to its makers where nobody has switched that off

# isort: split
import numpy as np
import onnxruntime
import soundfile as sf
import torch
from scoring_speed import processor
from turns import in_turns

from hwsearch.data.arrays import ARRAYS
from hwsearch.experiment import FLOAT_BITS, QuantizationConfig, SeparatorConfig
from hwsearch.export.description import INPUT, ExportDescription
from hwsearch.export.network import ExportedNetwork
from hwsearch.export.onnx_export import export_onnx, export_sound
from hwsearch.export.runtime import OnnxSeparator, open_session
from hwsearch.export.saturation import kernels_saturate
from hwsearch.files.reading import read_json
from hwsearch.files.writing import atomic_write_json, atomic_write_text
from hwsearch.metrics.statistics import mean_interval
from hwsearch.network.sites import find_sites, with_reads
from hwsearch.separator.allocation import BitAllocation, is_weight
from hwsearch.separator.base import EMBEDDED_BASE, load_base
from hwsearch.separator.calibration import calibrate
from hwsearch.separator.quantized import build_quantized
from hwsearch.separator.separator import Separator, build_separator
from hwsearch.separator.traced import traced

SECONDS = 10
LONG_MINUTES = 10
MIXED = (2, 3, 4, 5, 6)
"""Widths of the mixed network's weights, in turns: the kernels are the same whichever a search chooses."""

PYTORCH, FLOAT, UNIFORM, CHOSEN = "float32 PyTorch", "float32 ONNX", "8 bits ONNX", "mixed ONNX"
NETWORK, WHOLE = "features to mask", "sound to sound"
PROGRAM = """
from pathlib import Path
from hwsearch.cli import main
try:
    main()
finally:
    status = Path("/proc/self/status").read_text().split()
    print(status[status.index("VmHWM:") + 1])
"""
"""The command line, which prints the largest memory of its process in kB at the end."""

PAPER = SeparatorConfig(n_fft=512, hop_length=256, ipd="angle", beam=False, B=256, H=512, X=8, R=4)


@dataclass(frozen=True, eq=False)
class Subject:
    """A separator in every form.

    Attributes:
        name: of the separator.
        calls: by part and form.
        megabytes: of the files, by form.
        loads: opens the file of a form.
        stream: milliseconds of each frame of a stream of the causal twin.
        hop_ms: milliseconds of sound in a frame.
    """

    name: str
    calls: Mapping[tuple[str, str], Callable[[], object]]
    megabytes: Mapping[str, float]
    loads: Mapping[str, float]
    stream: Sequence[float]
    hop_ms: float
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)


def exported(separator: Separator, widths: Sequence[int], folder: Path, trunk_bits: int = 16) -> Path:
    """Export a separator, and return the file from sound to sound.

    Weights take turns in the widths. Activations have 8 bits, the trunk has others.
    """
    plain = traced(separator)
    floating = widths == (FLOAT_BITS,)
    graph = plain if floating else with_reads(plain)
    sites = find_sites(graph)
    turns = cycle(widths)
    activation = FLOAT_BITS if floating else 8
    chosen = {site: next(turns) if is_weight(site) else activation for site in sites.all}
    chosen |= dict.fromkeys(() if floating else sites.carried, trunk_bits)
    noise = torch.randn(1, separator.front_end.inputs, 200, generator=torch.Generator().manual_seed(0))
    quantized = build_quantized(graph, BitAllocation.of(chosen), calibrate(graph, [noise]), QuantizationConfig())
    network = ExportedNetwork(quantized, separator.front_end).eval()
    about = ExportDescription.of(quantized.graph, quantized.allocation, separator.front_end, "0" * 64)
    folder.mkdir()
    export_onnx(network, folder / "model.onnx", about)
    export_sound(folder / "model.onnx", folder / "separator.onnx")
    return folder / "separator.onnx"


def subject(name: str, separator: Separator, twin: Separator, folder: Path) -> Subject:
    """Make every form of a separator; `twin` is one of the same size that streams."""
    front_end = separator.front_end
    mics = front_end.array.microphones
    sound = 0.1 * np.random.default_rng(0).standard_normal((mics, SECONDS * front_end.sample_rate)).astype(np.float32)
    mixture, direction = torch.from_numpy(sound)[None], torch.tensor([60.0])
    with torch.no_grad():
        raw = front_end.raw(mixture, direction)
        normalised = front_end.normalise(raw)
    calls: dict[tuple[str, str], Callable[[], object]] = {
        (NETWORK, PYTORCH): lambda: separator.network(normalised),
        (WHOLE, PYTORCH): lambda: separator(mixture, direction),
    }
    megabytes, loads = {}, {}
    for form, widths in ((FLOAT, (FLOAT_BITS,)), (UNIFORM, (8,)), (CHOSEN, MIXED)):
        path = exported(separator, widths, folder / form.replace(" ", "-"))
        session = open_session(path.with_name("model.onnx").read_bytes())
        begun = time.perf_counter()
        open_session(path.read_bytes())
        loads[form] = 1e3 * (time.perf_counter() - begun)
        whole = OnnxSeparator(path, threads=1)
        megabytes[form] = path.stat().st_size / 1e6
        calls[NETWORK, form] = lambda session=session: session.run(None, {INPUT: raw.numpy()})
        calls[WHOLE, form] = lambda whole=whole: whole.separate(sound, 60.0)
    live = OnnxSeparator(exported(twin, MIXED, folder / "live"), threads=1)
    hop = front_end.frame_samples
    return Subject(name, calls, megabytes, loads, _frames(live, sound, hop), 1e3 * hop / front_end.sample_rate)


def _frames(live: OnnxSeparator, sound: np.ndarray[Any, Any], hop: int) -> list[float]:
    """Milliseconds of each call of a stream, frame by frame."""
    stream, found = live.stream(60.0), []
    for start in range(0, sound.shape[1] - hop, hop):
        begun = time.perf_counter()
        list(stream.push(sound[:, start : start + hop]))
        found.append(1e3 * (time.perf_counter() - begun))
    return found[20:]


def time_all(subjects: Sequence[Subject], rounds: int) -> None:
    """Time every form of every subject once a round."""
    calls = {(number, form): call for number, each in enumerate(subjects) for form, call in each.calls.items()}
    with torch.inference_mode():
        for (number, form), seconds in in_turns(calls, rounds).items():
            subjects[number].seconds[form] = seconds


def peak_megabytes(model: Path, minutes: int) -> float:
    """The largest memory of a process that separates so many minutes of six channels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        with sf.SoundFile(path, "w", 8000, 6, "FLOAT") as stream:
            for minute in range(minutes):
                stream.write(0.1 * np.random.default_rng(minute).standard_normal((60 * 8000, 6)).astype(np.float32))
        arguments = ["separate", model, "--input", path, "--doa", "60", "--output", Path(folder) / "target.wav"]
        command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return float(ended.stdout) / 1024


def rows(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """A row of the results for each subject, part and form."""
    found = []
    for each in subjects:
        for (part, form), seconds in each.seconds.items():
            own, float32 = np.array(seconds), np.array(each.seconds[part, PYTORCH])
            ratio = mean_interval(np.log(float32 / own))
            found.append(
                {
                    "separator": each.name,
                    "part": part,
                    "form": form,
                    "median_ms": 1e3 * float(np.median(own)),
                    "real_time_factor": float(np.median(own)) / SECONDS,
                    f"times as fast as {PYTORCH}": [float(np.exp(value)) for value in (ratio.value, ratio.low, ratio.high)],
                    "megabytes": each.megabytes.get(form),
                    "load_ms": each.loads.get(form),
                }
            )
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """Two tables for each kind of kernels."""
    lines = []
    for kernels, entry in sorted(results.items()):
        made = entry["made_by"]
        setting = f"{made['processor']}, ONNX Runtime {made['onnxruntime']}, PyTorch {made['torch']}, one thread"
        counted = (
            f"{SECONDS} s of noise, {made['rounds']} rounds; load {made['load']:.1f} on {made['cores']} cores, {made['date']}"
        )
        lines += [f"### {kernels}", "", f"{setting}, {counted}. In brackets: 95% intervals.", ""]
        lines += [f"| separator | part | form | ms | real-time factor | times as fast as {PYTORCH} | MB | load, ms |"]
        lines.append("|---" * 8 + "|")
        for row in entry["rows"]:
            low_to_high = "{:.2f} [{:.2f}, {:.2f}]".format(*row[f"times as fast as {PYTORCH}"])
            ratio = "" if row["form"] == PYTORCH else low_to_high
            file = "" if row["megabytes"] is None else f"{row['megabytes']:.2f}"
            load = "" if row["load_ms"] is None else f"{row['load_ms']:.0f}"
            times = f"{row['median_ms']:.1f} | {row['real_time_factor']:.4f} | {ratio}"
            lines.append(f"| {row['separator']} | {row['part']} | {row['form']} | {times} | {file} | {load} |")
        lines += ["", "| stream, frame by frame | median, ms | 99th percentile, ms | a frame's sound, ms |", "|---" * 4 + "|"]
        for row in entry["streams"]:
            lines.append(f"| {row['separator']} | {row['median_ms']:.2f} | {row['p99_ms']:.2f} | {row['hop_ms']:.0f} |")
        peak = entry["peak_megabytes"]
        lines += ["", f"`hwsearch separate` of {LONG_MINUTES} minutes of six channels took {peak:.0f} MB at most.", ""]
    return "\n".join(lines)


def main() -> None:
    """Time the embedded base and a separator of the paper's size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "runtime_speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    embedded, _ = load_base(EMBEDDED_BASE)
    live = {"causal": True, "level_seconds": 4.0}
    spectral = embedded.front_end.spectral
    small = SeparatorConfig.model_validate({**(spectral.model_dump() if spectral else {}), "X": 6, "R": 2, **live})
    array = ARRAYS["linear15"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in ("embedded", "paper"):
            (folder / each).mkdir()
        twin = build_separator(small, embedded.front_end.array, embedded.front_end.sample_rate).eval()
        paper = build_separator(PAPER, array, 16000).eval()
        paper_twin = build_separator(PAPER.model_copy(update=live), array, 16000).eval()
        subjects = [
            subject("embedded base", embedded.eval(), twin, folder / "embedded"),
            subject("the paper's size, untrained", paper, paper_twin, folder / "paper"),
        ]
        time_all(subjects, arguments.rounds)
        peak = peak_megabytes(folder / "embedded" / CHOSEN.replace(" ", "-") / "separator.onnx", LONG_MINUTES)
    streams = [
        {
            "separator": each.name,
            "median_ms": float(np.median(each.stream)),
            "p99_ms": float(np.percentile(each.stream, 99)),
            "hop_ms": each.hop_ms,
        }
        for each in subjects
    ]
    made_by = {
        "processor": processor(),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    results = read_json(arguments.output, "results of this benchmark") if arguments.output.is_file() else {}
    kernels = "AVX2 kernels" if kernels_saturate() else "VNNI kernels"
    results[kernels] = {"made_by": made_by, "rows": rows(subjects), "streams": streams, "peak_megabytes": peak}
    atomic_write_json(arguments.output, results)
    atomic_write_text(arguments.output.with_suffix(".md"), markdown(results))
    print(markdown({kernels: results[kernels]}))


if __name__ == "__main__":
    main()
