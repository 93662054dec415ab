"""Prepare a base for quantization: load it, check it against the experiment, and calibrate it."""

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache as cache_result
from functools import cached_property
from pathlib import Path

import torch

from hwsearch.data.dataset import load_mixture, manifest_hash, open_dataset
from hwsearch.errors import UserError
from hwsearch.experiment import Experiment, ModuleConfig, NetworkConfig, QuantizationConfig, Split
from hwsearch.files.reading import digest, indented_json
from hwsearch.files.seals import read_sealed_cache, write_sealed_json
from hwsearch.files.tensors import read_tensors, write_tensors
from hwsearch.network.conditioned import centred, channel_ranges, equalised
from hwsearch.network.graph import Graph
from hwsearch.network.importance import channel_orders
from hwsearch.network.narrowed import KeptChannels, narrowed_mean
from hwsearch.network.options import ENOUGH_FRAMES, Options, Order, Structure, find_options
from hwsearch.network.sites import WEIGHT, Sites, find_sites, tied, with_reads
from hwsearch.network.structure import structure
from hwsearch.process.interrupts import checkpoint
from hwsearch.separator.base import base_digest, load_base
from hwsearch.separator.calibration import Calibration, calibrate
from hwsearch.separator.rounded_weights import RoundedWeights, Statistics, one_thread
from hwsearch.separator.second_order import input_statistics, mean_output
from hwsearch.separator.separator import Separator
from hwsearch.separator.traced import graph_file, kept_graph

_WHAT, _MEND = "a calibration", "delete it and it is made again"
_WEIGHTS_KEY = "hwsearch_prepared"
_FORMAT = 2
_GRAPH, _MEAN, _SQUARE, _ROUNDED = "graph", "mean", "square", "rounded"
_UNTRAINED = {"rounding": "nearest", "bias_correction": False, "centre_trunk": False}
"""How training starts. `experiments/training_recipe.py` compares other starts."""


@dataclass(frozen=True, eq=False)
class PreparedBase:
    """A base that bit allocations can be applied to."""

    separator: Separator
    graph: Graph
    calibration: Calibration
    quantization: QuantizationConfig
    base_sha256: str
    statistics: Callable[[], Statistics] | None = None
    """Measures the inputs of the layers. None: weights are rounded to the nearest integers, and biases stay."""
    untrained: "PreparedBase | None" = None
    """The base that training starts from; None: this one."""
    means: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Mean inputs [groups, values] by layer (`InputStatistics`), if training starts from this base."""
    squares: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Mean squares of the same inputs, on the CPU, if parts of the network may be left out."""
    whole: "PreparedBase | None" = None
    """The base that this one was narrowed from; None: nothing is left out."""

    @cached_property
    def sites(self) -> Sites:
        """The graph's sites."""
        return sites_of(self.graph, self.quantization)

    @cached_property
    def weights(self) -> RoundedWeights:
        """The rounded weights, which are made when they are needed."""
        return RoundedWeights(self.graph, self.quantization, self.statistics)

    @cached_property
    def options(self) -> Options:
        """What can be left out of the network."""
        return find_options(self.graph, {self.graph.inputs[0]: (self.separator.front_end.inputs, ENOUGH_FRAMES)})

    @cached_property
    def orders(self) -> Mapping[str, Order]:
        """The classes of each group of channels, the most important first (`channel_orders`)."""
        if self.untrained is not None:  # its inputs are the ones that are measured
            return self.untrained.orders
        return channel_orders(self.graph, self.options, self.squares)

    def narrowed(self, structure: Structure, orders: Mapping[str, Order] | None = None) -> "PreparedBase":
        """Leave out what a structure does not keep; without a structure, return this base.

        It is made from the base that training starts from: weights are rounded to the nearest integers, and trunks are not
        centred. Biases make up for the mean of the channels that are left out. Rounding to second order would want the inputs of
        the narrower network, which only a process with the calibration mixtures can measure, again for every structure. And a
        block that is left out would take along what its bias does to centre the trunk.

        Args:
            structure: what is kept.
            orders: which channels of a group are kept first; without, the most important ones.

        Raises:
            ValueError: an unknown option, or a number that it cannot have.
        """
        if not structure:
            return self
        start, orders = self.to_train, self.orders if orders is None else orders
        graph, channels = self.options.narrowed(start.graph, structure, orders), self.options.kept_channels(structure, orders)
        layers = {layer.name: layer for layer in start.graph.operations if layer.name in graph.by_name}
        return replace(
            self,
            graph=_with_means_folded(graph, start, channels),
            calibration=Calibration({site: start.calibration.grids[site] for site in find_sites(graph).activations}),
            statistics=None,
            untrained=None if self.untrained is None else self.untrained.narrowed(structure, orders),
            means={
                name: narrowed_mean(layers[name], mean, channels[layers[name].inputs[0]])
                for name, mean in self.means.items()
                if name in layers
            },
            squares={},
            whole=self.whole or self,
        )

    @property
    def to_train(self) -> "PreparedBase":
        """The base that training starts from: with plain rounding and trunks as they are."""
        return self if self.untrained is None else self.untrained

    @property
    def device(self) -> torch.device:
        return self.separator.device

    def on(self, device: torch.device) -> "PreparedBase":
        """Copy the base to a device, with the weights that are rounded."""
        if device == self.device:
            return self
        separator = copy.deepcopy(self.separator).to(device)
        untrained = None if self.untrained is None else self.untrained.on(device)
        means = {name: mean.to(device) for name, mean in self.means.items()}
        whole = None if self.whole is None else self.whole.on(device)
        moved = replace(self, separator=separator, graph=self.graph.on(device), untrained=untrained, means=means, whole=whole)
        moved.weights.take(self.weights.to_tensors(), Path("a base"))
        return moved


def _with_means_folded(narrow: Graph, whole: PreparedBase, channels: Mapping[str, KeptChannels]) -> Graph:
    """Add what the channels that are left out contribute to each layer in the mean to its bias."""
    parameters = dict(narrow.parameters)
    for name, mean in whole.means.items():
        if name in narrow.by_name:
            layer, weight, bias = whole.graph.by_name[name], name + WEIGHT, f"{name}.bias"
            before = mean_output(whole.graph.parameters[weight], mean)
            after = mean_output(narrow.parameters[weight], narrowed_mean(layer, mean, channels[layer.inputs[0]]))
            parameters[bias] = parameters[bias] + (channels[name].of(before) - after)
    return replace(narrow, parameters=parameters)


def sites_of(graph: Graph, config: QuantizationConfig) -> Sites:
    """Return the sites of a graph, tied if the configuration ties them."""
    sites = find_sites(graph)
    return tied(graph, sites) if config.tied_adds else sites


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
    """Load, trace, condition and calibrate a base, and round its weights; keep all this in files.

    This is done on one thread of the CPU, so that the numbers are the same for every device (`PreparedBase.on`).

    Args:
        experiment: names the network, and says how it is quantized.
        path: the base file.
        data_folder: the data set, whose first validation mixtures are measured.
        cache: the file of the calibration; the files of the conditioned graph and of the weights lie beside it.
        widths: of weights that are rounded now and written to the file.

    Raises:
        UserError: an unusable base, data set or cache.
    """
    separator = load_checked_base(experiment, path)
    base_sha256 = base_digest(path)
    traced = kept_graph(separator, cache.parent, base_sha256)
    elastic = bool(experiment.search.structure)
    traced = with_reads(traced, sums=elastic) if experiment.search.wide_trunk else traced

    @cache_result
    def features() -> Sequence[torch.Tensor]:
        return calibration_features(separator, experiment, data_folder)

    def prepared(config: QuantizationConfig, cache: Path, untrained: PreparedBase | None = None) -> PreparedBase:
        trains = untrained is None
        key = digest(
            {
                "base": base_sha256,
                "data": manifest_hash(data_folder, Split.VALIDATION),
                "quantization": config.model_dump(mode="json"),
                "network": structure(traced),
                "format": _FORMAT,
            }
            | ({_MEAN: True} if trains else {})
            | ({_SQUARE: True} if trains and elastic else {})
        )
        calibration, kept = _conditioned(traced, config, features, key, cache, trains=trains, elastic=elastic)

        @cache_result
        def statistics() -> Statistics:
            with one_thread():
                return input_statistics(kept.graph, features())

        parts = separator, kept.graph, calibration, config, base_sha256, statistics, untrained, kept.means, kept.squares
        found = PreparedBase(*parts)
        _round(found, widths, key, cache, traced)
        return found

    config = experiment.quantization
    plain = config.model_copy(update=_UNTRAINED)
    untrained = None if plain == config else prepared(plain, training_cache(cache))
    return prepared(config, cache, untrained)


def training_cache(cache: Path) -> Path:
    """Return the file of the calibration of `PreparedBase.to_train`, beside that of the base."""
    return cache.with_name(f"{cache.stem}-training.json")


def weights_file(cache: Path) -> Path:
    """Return the file of the conditioned graph's parameters and the rounded weights beside that of the calibration."""
    return cache.with_name(f"{cache.stem}-weights.safetensors")


def prepared_files(path: Path, cache: Path) -> tuple[Path, ...]:
    """List the files that `prepare_base` reads for a base that it has prepared before, except for the user's own code."""
    return path, *cache_files(cache), graph_file(cache.parent, base_digest(path))


def cache_files(cache: Path) -> tuple[Path, ...]:
    """List the files that `prepare_base` keeps: calibration and weights, also those of the base that training starts from."""
    return tuple(file for each in (cache, training_cache(cache)) for file in (each, weights_file(each)))


def calibration_digest(cache: Path) -> str:
    """Hash a calibration and the key of all that it depends on.

    Raises:
        UserError: no calibration.
    """
    content = read_sealed_cache(cache, _WHAT, _MEND)
    if content is None or not {"key", "calibration"} <= content.keys():
        raise UserError(f"{cache}: holds no calibration; {_MEND}")
    return hashlib.sha256(indented_json(content).encode()).hexdigest()


def calibration_features(separator: Separator, experiment: Experiment, data_folder: Path) -> Sequence[torch.Tensor]:
    """Compute the normalised features [1, features, frames] of the mixtures of the calibration."""
    mixtures = open_dataset(data_folder, Split.VALIDATION)[: experiment.quantization.calibration_mixtures]
    collected = []
    for mixture in mixtures:
        checkpoint()
        sound, _ = load_mixture(data_folder, mixture)
        doa = torch.tensor([mixture.doa_deg])
        with torch.no_grad():
            collected.append(separator.analyse(torch.from_numpy(sound)[None], doa).normalised)
    return collected


def _conditioned(
    traced: Graph,
    config: QuantizationConfig,
    features: Callable[[], Sequence[torch.Tensor]],
    key: str,
    cache: Path,
    *,
    trains: bool,
    elastic: bool,
) -> tuple[Calibration, "_Kept"]:
    """Rewrite a graph for finer grids and calibrate it, or read what was made before.

    If it `trains`, its mean inputs are kept; if it is `elastic` as well, also their mean squares.
    """
    kept = _kept_weights(cache, key, traced)
    if kept is not None and (calibration := _kept_calibration(cache, key, kept.graph)) is not None:
        return calibration, kept
    with one_thread():
        graph = _rewritten(traced, config, features())
        calibration = calibrate(graph, features(), sites_of(graph, config).ties)
        statistics = input_statistics(graph, features()) if trains else {}
    write_sealed_json(cache, {"key": key, "calibration": calibration.to_json()})
    kept = _kept_weights(cache, key, traced)  # another process may have made the same meanwhile
    if kept is None:
        means = {name: found.mean.float() for name, found in statistics.items()}
        squares = {name: found.mean_square.float() for name, found in statistics.items()} if elastic else {}
        kept = _Kept(graph, means, squares, {})
        _keep_weights(cache, key, kept)
    return calibration, kept


def _rewritten(graph: Graph, config: QuantizationConfig, features: Sequence[torch.Tensor]) -> Graph:
    """Rewrite a graph as the experiment wants it."""
    if config.equalise and config.weight_scale == "per_channel":
        graph = equalised(graph, channel_ranges(graph, features))
    return centred(graph, channel_ranges(graph, features)) if config.centre_trunk else graph


def _round(base: PreparedBase, widths: Iterable[int], key: str, cache: Path, traced: Graph) -> None:
    """Take the rounded weights that are kept, and round and keep those at some widths that are missing."""
    path = weights_file(cache)

    def take() -> None:
        kept = _kept_weights(cache, key, traced)
        base.weights.take({} if kept is None else kept.rounded, path)

    take()
    if base.weights.round(widths):
        take()  # another process may have rounded some meanwhile
        _keep_weights(cache, key, _Kept(base.graph, base.means, base.squares, base.weights.to_tensors()))


def _kept_calibration(cache: Path, key: str, graph: Graph) -> Calibration | None:
    content = read_sealed_cache(cache, _WHAT, _MEND)
    if content is None or content.get("key") != key:
        return None
    return Calibration.from_json(content.get("calibration"), find_sites(graph).activations, str(cache))


@dataclass(frozen=True, eq=False)
class _Kept:
    """What is kept of a prepared base beside its calibration: the conditioned graph, inputs' means, and rounded weights."""

    graph: Graph
    means: Mapping[str, torch.Tensor]
    squares: Mapping[str, torch.Tensor]
    rounded: Mapping[str, torch.Tensor]


def _kept_weights(cache: Path, key: str, traced: Graph) -> _Kept | None:
    """Read what is kept; None if there is nothing for the key."""
    path = weights_file(cache)
    if not path.is_file():
        return None
    content, mapped = read_tensors(path, _WEIGHTS_KEY, "the weights of a prepared base", _MEND)
    if content.get("key") != key:
        return None
    parts: dict[str, dict[str, torch.Tensor]] = {_GRAPH: {}, _MEAN: {}, _SQUARE: {}, _ROUNDED: {}}
    for name, tensor in mapped.items():
        part, _, rest = name.partition("/")
        if part not in parts:
            raise UserError(f"{path}: holds an unknown '{name}'; {_MEND}")
        parts[part][rest] = tensor.clone()
    parameters = {name: parts[_GRAPH].get(name) for name in traced.parameters}
    for name, found in parameters.items():
        if found is None or found.shape != traced.parameters[name].shape:
            raise UserError(f"{path}: '{name}' is missing or has another shape; {_MEND}")
    return _Kept(replace(traced, parameters=parts[_GRAPH]), parts[_MEAN], parts[_SQUARE], parts[_ROUNDED])


def _keep_weights(cache: Path, key: str, kept: _Kept) -> None:
    parts = {_GRAPH: kept.graph.parameters, _MEAN: kept.means, _SQUARE: kept.squares, _ROUNDED: kept.rounded}
    tensors = {f"{part}/{name}": tensor.clone() for part, named in parts.items() for name, tensor in named.items()}
    write_tensors(weights_file(cache), tensors, _WEIGHTS_KEY, {"key": key})
