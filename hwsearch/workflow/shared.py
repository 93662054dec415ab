"""The shared network of an experiment: trained once, and kept in the run folder."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hwsearch.data.dataset import load_mixture, open_dataset
from hwsearch.data.example import Example
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, Split
from hwsearch.files.reading import digest
from hwsearch.files.writing import check_writable
from hwsearch.network.options import Structure
from hwsearch.process.device import open_device
from hwsearch.search.driver_account import Step
from hwsearch.search.experiment_space import experiment_space
from hwsearch.search.mixture_batches import improvements, mixture_batches
from hwsearch.search.record import FolderLock
from hwsearch.search.space import SearchSpace, uniform_weights
from hwsearch.search.structure import structure_values
from hwsearch.sensitivity.recoverability import check_trainable
from hwsearch.separator.allocation import BitAllocation
from hwsearch.separator.fast import KeptInput
from hwsearch.separator.prepare import PreparedBase
from hwsearch.separator.separator import MaskFunction
from hwsearch.separator.shared import KeptValues, SharedState, load_shared, network_digest, save_shared
from hwsearch.separator.trained import trained_mask_function
from hwsearch.training.pool import build_pool, load_pool
from hwsearch.training.shared import Quality, SharedTraining, train_shared
from hwsearch.workflow.caller import SILENT, Listener
from hwsearch.workflow.checks import check
from hwsearch.workflow.training import build, prepare
from hwsearch.workspace import Workspace

CHECKPOINT_FILE = "shared-network-checkpoint.safetensors"


def train_shared_network(workspace: Workspace, processes: int, listener: Listener = SILENT) -> SharedState:
    """Train the shared network of an experiment with all that it needs, or go on training it.

    Args:
        workspace: the experiment and its folders.
        processes: number of processes that make data.
        listener: hears of data, of steps, and of the quality of the uniform allocations.

    Raises:
        UserError: the experiment is refused before any work, the loss diverges, or another network is in its place.
    """
    check_trainable(workspace.experiment, "the shared network trains")
    check(workspace, may_train=False)
    with FolderLock(workspace.folder):
        build(workspace, processes, listener)
        pool = build_pool(workspace, processes, listener.progress(Step.POOL.value))
        return ensure_shared(workspace, pool, listener)


def ensure_shared(workspace: Workspace, pool: Path, listener: Listener = SILENT) -> SharedState:
    """Return the shared network of an experiment, after training it if it is missing.

    Args:
        workspace: the experiment, whose data and base exist.
        pool: training mixtures.
        listener: hears of steps, and of the quality of the uniform allocations.

    Raises:
        UserError: the loss diverges, or the network there is damaged, or that of another experiment.
    """
    experiment, path = workspace.experiment, workspace.shared_path
    space = experiment_space(experiment)
    base = prepare(workspace, experiment.search.weight_bits)
    training = _training(experiment, base, space, pool)
    if path.is_file():
        state = load_shared(path, base, training.widths, training.structure)
        if state.made_by.get("training") != training.key:
            raise UserError(
                f"{path}: trained by an experiment '{experiment.name}' whose data, search space, [shared] or [qat] differ from "
                "the file given; wanted the same content, another name, or another --runs-dir"
            )
        listener.said(f"shared network: {path} (trained before)")
        return state
    check_writable(path)
    torch.set_num_threads(experiment.workers.threads)
    base = base.on(open_device(experiment.workers.device))
    checkpoint = workspace.folder / CHECKPOINT_FILE

    def on_report(step: int, quality: Quality) -> None:
        found = ", ".join(f"{value:.2f} at {name}" for name, value in quality.items())
        listener.said(f"shared network, step {step}/{training.config.steps}: validation SI-SNR improvement in dB {found}")

    def on_step(step: int, steps: int, loss: float) -> None:
        del loss
        listener.advanced(Step.SHARED.value, step, steps)

    quality = _quality(workspace, base, space, training.structure)
    state = train_shared(base, training, load_pool(pool), checkpoint, quality, on_step, on_report)
    save_shared(path, base, state)
    checkpoint.unlink(missing_ok=True)
    listener.said(f"shared network: {path}")
    return state


def _training(experiment: Experiment, base: PreparedBase, space: SearchSpace, pool: Path) -> SharedTraining:
    config, qat, patterns = experiment.shared, experiment.qat, experiment.search.structure
    structure = structure_values(patterns, base.options) if patterns else {}
    key = digest(
        {
            "base": base.base_sha256,
            "network": network_digest(base),
            "calibration": digest(base.calibration.to_json()),
            "widths": dict(space.widths),
            "groups": space.groups,
            "shared": config.model_dump(mode="json", exclude={"report_steps"}),
            "qat": qat.model_dump(mode="json", include={"distillation", "gradient_clip"}),
            "pool": pool.stem,
            "seed": experiment.seed,
        }
        | ({"structure": structure} if structure else {})
    )
    return SharedTraining(dict(space.widths), space.groups, config, qat, experiment.seed, key, structure)


def _quality(
    workspace: Workspace, base: PreparedBase, space: SearchSpace, structure: KeptValues
) -> Callable[[SharedState], Quality]:
    """Make the function that measures the uniform allocations of a shared network, on the first validation mixtures.

    It measures uniform structures, too, with the widest weights.
    """
    folder, wanted = workspace.data_folder, uniform_weights(space)
    mixtures = open_dataset(folder, Split.VALIDATION)[: workspace.experiment.search.validation_mixtures]
    sounds = [Example(*load_mixture(folder, mixture), mixture.doa_deg) for mixture in mixtures]
    batches = mixture_batches(base.separator, sounds)
    widest = max(wanted, default=0)

    def quality(state: SharedState) -> Quality:
        found = {}

        def measure(name: str, bits: int, kept: Structure) -> None:
            narrow = base.narrowed(kept, state.orders)
            allocation = BitAllocation.of({site: wanted[bits].by_site[site] for site in narrow.sites.all})
            mask = _unkept(trained_mask_function(narrow, state.narrowed(base, kept).at(allocation)))
            found[name] = float(improvements(base.separator, mask, batches).mean())

        for bits in wanted:
            measure(f"{bits} bits", bits, {})
        if wanted:
            for name, kept in uniform_structures(structure).items():
                measure(f"{widest} bits, {name}", widest, kept)
        return found

    return quality


def uniform_structures(structure: KeptValues) -> dict[str, Structure]:
    """Return structures that keep the same of each option, by what they keep: all channels at a share, or half of the blocks."""
    groups = {name: values for name, values in structure.items() if values[0] > 0}
    blocks = [name for name in structure if name not in groups]
    shares = sorted({round(value / values[-1], 2) for values in groups.values() for value in values[:-1]}, reverse=True)
    found: dict[str, Structure] = {}
    for share in shares:
        kept = {name: min(values, key=lambda value: abs(value / values[-1] - share)) for name, values in groups.items()}
        found[f"{share:g} of channels"] = kept
    if blocks:
        found["half of blocks"] = dict.fromkeys(blocks[1::2] or blocks, 0)
    return found


def _unkept(mask: MaskFunction) -> Callable[[KeptInput], Tensor]:
    """Make a network read inputs without the outputs that were kept, which are those of other weights."""
    return lambda kept: mask(kept.normalised)
