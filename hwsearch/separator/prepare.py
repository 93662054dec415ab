"""Prepare a base for quantization: load it, check it against the experiment, and calibrate it."""

import copy
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hwsearch.data.dataset import load_mixture, manifest_hash, open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, ModuleConfig, NetworkConfig, QuantizationConfig, Split
from hwsearch.files.reading import digest, indented_json
from hwsearch.files.seals import read_sealed_cache, write_sealed_json
from hwsearch.network.graph import Graph
from hwsearch.network.sites import Sites, find_sites, with_reads
from hwsearch.network.store import structure
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.base import base_digest, load_base
from hwsearch.separator.calibration import Calibration, calibrate
from hwsearch.separator.separator import Separator
from hwsearch.separator.traced import graph_file, kept_graph
from hwsearch.separator.weight_scales import WeightScales

_MEND = "delete it and it is made again"


@dataclass(frozen=True, eq=False)
class PreparedBase:
    """A base that bit allocations can be applied to."""

    separator: Separator
    graph: Graph
    calibration: Calibration
    quantization: QuantizationConfig
    base_sha256: str

    @cached_property
    def sites(self) -> Sites:
        """The graph's sites."""
        return find_sites(self.graph)

    @cached_property
    def scales(self) -> WeightScales:
        """The scales of the weights, which are searched when they are needed."""
        return WeightScales(self.graph, self.quantization)

    @property
    def device(self) -> torch.device:
        return self.separator.device

    def on(self, device: torch.device) -> "PreparedBase":
        """Copy the base to a device, with the weight scales that are known."""
        if device == self.device:
            return self
        moved = replace(self, separator=copy.deepcopy(self.separator).to(device), graph=self.graph.on(device))
        moved.scales.take(self.scales.to_json(), "a base")
        return moved


def load_checked_base(experiment: Experiment, path: Path) -> Separator:
    """Load a base that must fit the experiment.

    Raises:
        UserError: no base there, another network, array or sampling rate, or weights that are not finite.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path}: no base there; wanted one: run 'hwsearch train' on the experiment first")
    separator, description = load_base(path, experiment.separator)
    for what, found, wanted in (
        ("sampling rate", description.sample_rate, experiment.data.sample_rate),
        ("array", description.array, experiment.data.array),
        *_network_keys(description.separator, experiment.separator),
    ):
        if found != wanted:
            raise UserError(f"{path}: the base has {what} {found}; the experiment '{experiment.name}' wants {wanted}")
    return separator


def _network_keys(found: NetworkConfig, wanted: NetworkConfig) -> Iterator[tuple[str, object, object]]:
    """List what two descriptions of a network say, except for the location of a module's code."""
    if type(found) is not type(wanted):
        yield "network", getattr(found, "network", "of one's own"), getattr(wanted, "network", "of one's own")
        return
    for key in type(wanted).model_fields:
        if not (isinstance(wanted, ModuleConfig) and key in ("module", "weights")):
            yield f"separator.{key}", getattr(found, key), getattr(wanted, key)


def prepare_base(experiment: Experiment, path: Path, data_folder: Path, cache: Path, widths: Iterable[int] = ()) -> PreparedBase:
    """Load, trace and calibrate a base; keep the calibration and the weight scales in a file.

    This is done on the CPU, so that the grids are the same for every device (`PreparedBase.on`).

    Args:
        experiment: names the network, and says how it is quantized.
        path: the base file.
        data_folder: the data set, whose first validation mixtures are used for the calibration.
        cache: the file of calibration and weight scales.
        widths: of weights whose scales are searched now and written to the file.

    Raises:
        UserError: an unusable base, data set or cache.
    """
    separator = load_checked_base(experiment, path)
    base_sha256 = base_digest(path)
    graph = kept_graph(separator, cache.parent, base_sha256)
    graph = with_reads(graph) if experiment.search.wide_trunk else graph
    key = digest(
        {
            "base": base_sha256,
            "data": manifest_hash(data_folder, Split.VALIDATION),
            "mixtures": experiment.quantization.calibration_mixtures,
            "network": structure(graph),
        }
    )
    content = _content(cache)
    kept = _kept(content, key, "calibration")
    if kept is None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # with more threads, sums have another order and the last bits of the grids differ
        try:
            calibration = calibrate(graph, calibration_features(separator, experiment, data_folder))
        finally:
            torch.set_num_threads(threads)
    else:
        calibration = Calibration.from_json(kept, find_sites(graph).activations, str(cache))
    prepared = PreparedBase(separator, graph, calibration, experiment.quantization, base_sha256)
    _take_scales(prepared, content, cache)
    if prepared.scales.search(widths) or kept is None:
        _take_scales(prepared, _content(cache), cache)  # another process may have searched some meanwhile
        weights = {"key": _scales_key(prepared), "scales": prepared.scales.to_json()}
        write_sealed_json(cache, {"key": key, "calibration": calibration.to_json(), "weights": weights})
    return prepared


def prepared_files(path: Path, cache: Path) -> tuple[Path, ...]:
    """List the files that `prepare_base` reads for a base that it has prepared before, except for the user's own code."""
    return path, cache, graph_file(cache.parent, base_digest(path))


def calibration_digest(cache: Path) -> str:
    """Hash the calibration in a file, without the weight scales, which may be added later.

    Raises:
        UserError: no calibration.
    """
    content = _content(cache)
    if not {"key", "calibration"} <= content.keys():
        raise UserError(f"{cache}: holds no calibration; {_MEND}")
    alone = {name: content[name] for name in ("key", "calibration")}
    return hashlib.sha256(indented_json(alone).encode()).hexdigest()


def calibration_features(separator: Separator, experiment: Experiment, data_folder: Path) -> Sequence[torch.Tensor]:
    """Compute the normalised features [1, features, frames] of the mixtures of the calibration."""
    mixtures = open_dataset(data_folder, Split.VALIDATION)[: experiment.quantization.calibration_mixtures]
    collected = []
    for mixture in mixtures:
        checkpoint()
        sound, _ = load_mixture(data_folder, mixture)
        doa = torch.tensor([mixture.target.doa_deg])
        with torch.no_grad():
            collected.append(separator.analyse(torch.from_numpy(sound)[None], doa).normalised)
    return collected


def _scales_key(base: PreparedBase) -> str:
    """Hash what the weight scales depend on."""
    config = base.quantization.model_dump(mode="json", include={"weight_scale", "weight_scale_method"})
    return digest({"base": base.base_sha256, "quantization": config})


def _take_scales(base: PreparedBase, content: Mapping[str, Any], cache: Path) -> None:
    """Add the weight scales in a cache to those of the base."""
    if (scales := _kept(content.get("weights"), _scales_key(base), "scales")) is not None:
        base.scales.take(scales, str(cache))


def _content(cache: Path) -> Mapping[str, Any]:
    return read_sealed_cache(cache, "a calibration", _MEND) or {}


def _kept(content: Any, key: str, what: str) -> Any:
    """Return a part of a cache that was written for this key."""
    return content.get(what) if isinstance(content, dict) and content.get("key") == key else None
