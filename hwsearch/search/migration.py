"""Records of earlier schema versions, brought up to the present one line by line.

A step knows one version and makes the next one's line of a line; old records take all steps from theirs on. Steps work on JSON
values and never on the record's classes, which only describe the present version, so that an old step never has to change. A line
that is no JSON object passes unchanged: whoever reads it names it.

When `SCHEMA_VERSION` of the record is raised, a step is added here and a record of the version left behind to the tests.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Step = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes a line of the next version; the header's `schema_version` is raised for it."""


def _to_version_2(entry: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew one fidelity, named it in what was scored and left it out of what failed, and no groups of sites."""
    return {**entry, "fidelity": "post-training"} if entry.get("event") == "failed" else entry


def _to_version_3(entry: dict[str, Any]) -> dict[str, Any]:
    """Version 2 knew no versions but the header's, also of what was finished after these had changed."""
    return entry


def _to_version_4(entry: dict[str, Any]) -> dict[str, Any]:
    """Version 3 had no seals. They are no part of an entry, so that entries stay as they are."""
    return entry


def _to_version_5(entry: dict[str, Any]) -> dict[str, Any]:
    """Version 4 named the trunk after the block that read it. Now a site is named after the operation whose result it holds."""
    found = dict(entry)
    for key in ("widths", "allocation"):
        if isinstance(entry.get(key), dict):
            names = _names_of_version_5(entry[key])
            found[key] = {names.get(site, site): value for site, value in entry[key].items()}
    if isinstance(entry.get("widths"), dict):
        names = _names_of_version_5(entry["widths"])
        for key in ("fixed", "groups"):
            found[key] = _renamed(entry.get(key, []), names)
    return found


def _names_of_version_5(sites: Iterable[str]) -> dict[str, str]:
    """The sites of a network that have another name since version 5, and that name."""
    sites = list(sites)
    layers = [site.removesuffix(".weight") for site in sites if site.endswith(".weight")]
    read = [(site, found) for site in sites if (found := re.fullmatch(r"(.+)\.(\d+)\.input", site))]
    if not layers or not read or not {"mask_input", "masks"} <= set(sites):
        return {}
    written = [f"{layers[0]}.output", *(f"{found[1]}.{found[2]}.add.output" for _, found in read)]
    return dict(zip([site for site, _ in read] + ["mask_input"], written, strict=True)) | {"masks": f"{layers[-1]}.output"}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Names in a list, or in lists of a list."""
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    return names.get(value, value) if isinstance(value, str) else value


STEPS: Mapping[int, Step] = {1: _to_version_2, 2: _to_version_3, 3: _to_version_4, 4: _to_version_5}
"""What brings a record to the next version, by the version that the record has."""


def schema_version(header: bytes) -> int | None:
    """The version that a record's first line states; None where it states none."""
    entry = _object(header)
    version = None if entry is None else entry.get("schema_version")
    return version if type(version) is int else None


def upgrade(lines: Iterable[bytes], found: int, wanted: int, steps: Mapping[int, Step] = STEPS) -> list[bytes]:
    """Lines of a record of version `found` as lines of version `wanted`, without their newlines.

    Raises:
        KeyError: a version between them has no step.
    """
    path = [steps[version] for version in range(found, wanted)]
    return [_upgrade_line(line, path, wanted) for line in lines]


def can_upgrade(found: int, wanted: int, steps: Mapping[int, Step] = STEPS) -> bool:
    """Whether there is a step from every version between the two."""
    return found < wanted and all(version in steps for version in range(found, wanted))


def _upgrade_line(line: bytes, path: Iterable[Step], wanted: int) -> bytes:
    entry = _object(line)
    if entry is None:
        return line
    for step in path:
        entry = step(entry)
    if entry.get("event") == "header":
        entry = {**entry, "schema_version": wanted}
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode()


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
