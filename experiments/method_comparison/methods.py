"""What each method proposes at each size."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from bench import ONE_SCALE, PER_LAYER, POST_TRAINING, SHARED, Bench, Choice
from exact import exact
from searches import measured, nas_choice, scorer, search, search_choice, validation_count

from hwsearch.files.reading import digest, read_json
from hwsearch.files.writing import atomic_write_json
from hwsearch.search.priors import separable_loss
from hwsearch.separator.allocation import BitAllocation
from hwsearch.workflow.checks import provenance

SIZES = (2.5, 3.0, 2.0, 4.0, 2.25, 6.0)
"""Mean widths of the weights, in the order in which they are measured."""

UNIFORM = ("uniform, one scale", "uniform, per layer", "uniform, per channel", "uniform, small at 8")
SMALL_AT_8 = UNIFORM[-1]
TABLES = {
    "curvature": (POST_TRAINING, "curvature"),
    "kl": (POST_TRAINING, "kl"),
    "output noise": (POST_TRAINING, "output-noise-ratio"),
    "recoverability": (SHARED, "output-noise-ratio"),
}
"""Methods that solve the allocation problem under a sensitivity: the network that it is measured on, and its name."""

NAS, SEARCH, OURS = "nas", "post-training search", "shared search"
FROM_SHARED = {"uniform, from shared": SMALL_AT_8} | {
    f"{name}, from shared": name for name in ("output noise", "recoverability", OURS)
}
"""Methods whose allocations are those of another one, and whose training starts from the shared network."""

UNTRAINED = {"without training": POST_TRAINING, "on the shared network": SHARED}
"""How allocations are also judged, with no training of their own: by the network that gives the weights."""

METHODS = (*UNIFORM, *TABLES, NAS, SEARCH, OURS, *FROM_SHARED)
PEERS = Path(__file__).resolve().parents[1] / "results" / "peers.json"

Choices = dict[tuple[str, float], Choice]
"""Choice by method and size."""


def uniform_choices(bench: Bench, sizes: Sequence[float]) -> Choices:
    """Return the uniform allocations. At a size between two widths, they have the narrower one."""
    found: Choices = {}
    for bits in sizes:
        widest = max(width for width in bench.experiment.search.weight_bits if width <= bits)
        plain, small = bench.uniform(widest), bench.uniform(widest, small_at_8=True)
        choices = (Choice(plain, ONE_SCALE), Choice(plain, PER_LAYER), Choice(plain), Choice(small))
        found |= {(method, bits): choice for method, choice in zip(UNIFORM, choices, strict=True)}
    return found


def peer_choices(bench: Bench, sizes: Sequence[float], path: Path = PEERS) -> Choices:
    """Return the allocations of other tools at these sizes, if there are any."""
    entries = read_json(path, "the allocations of peers")["allocations"] if path.is_file() else []
    widest = bench.uniform(max(bench.experiment.search.weight_bits)).by_site
    return {
        (entry["method"], entry["bits"]): Choice(BitAllocation.of(widest | entry["weights"]))
        for entry in entries
        if entry["bits"] in sizes
    }


def propose(bench: Bench, kind: str, seed: int, sizes: Sequence[float]) -> None:
    """Find and keep what the methods propose that read the rounded base, or those that read the shared network.

    The search on the shared network also scores what single methods have found on the base, if that is there.
    """
    tables = measured(bench, kind)
    path = _kept(bench, kind, seed, sizes)
    if path.is_file():
        return
    score = scorer(bench, kind, validation_count(bench))
    found: dict[tuple[str, float], BitAllocation] = {}
    for (name, (network, method)), bits in product(TABLES.items(), sizes):
        if network == kind:
            found[name, bits] = exact(bench, separable_loss(tables[method], bench.space), bits)
    if kind == POST_TRAINING:
        found |= {(NAS, bits): nas_choice(bench, seed, bits, score) for bits in sizes}
    small = [choice.allocation for (name, _), choice in uniform_choices(bench, sizes).items() if name == SMALL_AT_8]
    others = _read(bench, POST_TRAINING, seed, sizes) if kind == SHARED else {}
    others = {place: allocation for place, allocation in others.items() if place[0] != SEARCH}
    folder = search(bench, kind, seed, tables, [*small, *found.values(), *others.values()])
    name = OURS if kind == SHARED else SEARCH
    found |= {(name, bits): search_choice(bench, folder, tables, seed, bits, score) for bits in sizes}
    rows = [{"method": method, "bits": bits, "allocation": one.to_json()} for (method, bits), one in found.items()]
    atomic_write_json(path, {"choices": rows})


def all_choices(bench: Bench, seed: int, sizes: Sequence[float]) -> Choices:
    """Return what is known of what all methods propose, those first whose rows tell most."""
    found = uniform_choices(bench, sizes)
    for kind in (POST_TRAINING, SHARED):
        found |= {place: Choice(allocation) for place, allocation in _read(bench, kind, seed, sizes).items()}
    if bench.workspace.shared_path.is_file():
        for (name, other), bits in product(FROM_SHARED.items(), sizes):
            if (other, bits) in found:
                found[name, bits] = Choice(found[other, bits].allocation, start=SHARED)
    found |= peer_choices(bench, sizes)
    order = (OURS, SMALL_AT_8, SEARCH, "recoverability", "output noise", *FROM_SHARED, NAS, "kl", "curvature", *UNIFORM)
    rank = {name: place for place, name in enumerate(dict.fromkeys(order))}
    return dict(sorted(found.items(), key=lambda item: (sizes.index(item[0][1]), rank.get(item[0][0], len(rank)))))


def untrained_choices(bench: Bench, choices: Choices) -> Choices:
    """Return what is judged without training of its own: one uniform kind and the two searches, on each network."""
    kinds = {name: kind for name, kind in UNTRAINED.items() if kind == POST_TRAINING or bench.workspace.shared_path.is_file()}
    return {
        (f"{method}, {name}", bits): Choice(choice.allocation, start=kind)
        for name, kind in kinds.items()
        for (method, bits), choice in choices.items()
        if method in (SMALL_AT_8, SEARCH, OURS)
    }


def _read(bench: Bench, kind: str, seed: int, sizes: Sequence[float]) -> dict[tuple[str, float], BitAllocation]:
    """Return what was proposed on a network so far."""
    path = _kept(bench, kind, seed, sizes)
    rows: list[Mapping[str, Any]] = read_json(path, "choices")["choices"] if path.is_file() else []
    return {(row["method"], row["bits"]): BitAllocation.of(row["allocation"]) for row in rows}


def _kept(bench: Bench, kind: str, seed: int, sizes: Sequence[float]) -> Path:
    """Return the file of what the methods propose."""
    depends = [dict(provenance(bench.workspaces[kind])), bench.settings.evaluations, bench.settings.searched_on, sorted(sizes)]
    return bench.folder / "choices" / f"{kind}-{seed}-{digest(depends)[:12]}.json"
