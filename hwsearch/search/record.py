"""The record: the durable, append-only account of a search, from which everything else is rebuilt.

The record holds one JSON object per line. The first is the header. Then comes one entry when a candidate is asked for, and one
when it is scored or has failed at a fidelity. Scored and failed entries are on the disk (fsync) before anyone acts on them. Only
the driver that holds the folder writes to it. Every line carries a seal (`hwsearch.files.journal`).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from platform import python_version
from types import TracebackType
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from hwsearch.errors import UserError
from hwsearch.experiment import FLOAT_BITS, Fidelity
from hwsearch.files import locks
from hwsearch.files.journal import Journal, parse_line, read_lines
from hwsearch.files.reading import check_regular
from hwsearch.files.seals import unseal_lines
from hwsearch.search.objectives import QUALITY, Objective, implausible
from hwsearch.search.space import Point, SearchSpace
from hwsearch.separator.allocation import ACTIVATION_WIDTHS, WEIGHT_WIDTHS, is_weight
from hwsearch.version import VERSION

SCHEMA_VERSION = 7
RECORD_FILE = "record.jsonl"
LOCK_FILE = "search.lock"

_WHAT = "the record of a search"
_MEND = "wanted an undamaged record"
_BUSY = "is searching here; wanted a folder of its own"

REFERENCE = 0
"""Number of the candidate that is the full-precision base, scored first and outside the space."""
REFERENCE_STRATEGY = "full-precision"


def now() -> str:
    """Return the time in UTC, in ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _check_time(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not 1970 <= moment.year < 9000:
        raise ValueError(f"'{text[:40]}' is no time in ISO 8601 with its offset")
    return text


Finite = Annotated[float, Field(allow_inf_nan=False)]
Number = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Time = Annotated[str, AfterValidator(_check_time)]
State = Number | tuple[tuple[Number, ...], ...]
"""State that a proposer wants back: a number, or points."""
STATES = {"generation": int, "behind": tuple}
"""Type of each state by its name."""


def versions_here() -> dict[str, str]:
    """Return the versions of the packages that candidates depend on."""
    names = ("optuna", "ray", "numpy", "torch", "brevitas")
    return {"hwsearch": VERSION, "python": python_version()} | {name: metadata.version(name) for name in names}


class Entry(BaseModel):
    """A line of the record. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Header(Entry):
    """The first line: what the candidates of this folder mean."""

    event: Literal["header"] = "header"
    schema_version: int = SCHEMA_VERSION
    name: str
    experiment: str
    """Hash of the settings that define what a candidate means."""
    provenance: dict[str, str]
    """What else the candidates depend on, such as the hashes of the base and of the data."""
    seed: Number
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)]
    widths: dict[str, tuple[int, ...]]
    """Every site with the widths it may take, in rising order."""
    fixed: tuple[str, ...]
    """Sites that the experiment fixes by pattern."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Sites that share a width."""
    options: dict[str, tuple[int, ...]] = {}
    """What may be kept of each option of structure, in rising order; the last value is the whole."""
    inside: dict[str, str] = {}
    """The block, by its option, that a group of channels lies in, if both are options."""
    versions: dict[str, str]
    run: str | None = None
    """Drawn at random for this folder."""
    time: Time

    @model_validator(mode="after")
    def _check(self) -> Self:
        for site, widths in self.widths.items():
            known = WEIGHT_WIDTHS if is_weight(site) else ACTIVATION_WIDTHS
            if not widths or list(widths) != sorted(set(widths) & set(known)):
                raise ValueError(f"site '{site}' has the widths {list(widths)}")
        grouped = [site for group in self.groups for site in group]
        if foreign := set(grouped) - self.widths.keys():
            raise ValueError(f"a group holds '{min(foreign)}', no site of the header")
        if len(set(grouped)) < len(grouped) or not all(len({self.widths[site] for site in group}) == 1 for group in self.groups):
            raise ValueError("its groups share a site, or hold sites of different widths")
        if not {*self.inside, *self.inside.values()} <= self.options.keys():
            raise ValueError("a group of channels lies in a block that is no option")
        for name, values in self.options.items():
            if len(values) < 2 or list(values) != sorted(set(values)) or values[0] < 0:
                raise ValueError(f"option '{name}' is kept at {list(values)}")
        return self

    @property
    def space(self) -> SearchSpace:
        """The space of the search. It does not know the network, so it cannot tell the configuration of a point."""
        return SearchSpace(tuple(self.widths.items()), frozenset(self.fixed), self.groups, tuple(self.options.items()))

    @property
    def identity(self) -> str:
        """Tells this search from others of the same experiment, even if they began in the same millisecond."""
        return self.run or self.time


class Asked(Entry):
    """A candidate was proposed."""

    event: Literal["asked"] = "asked"
    candidate: Number
    strategy: str
    """The strategy that proposed it."""
    point: Point | None
    """The canonical point of the candidate; None for the full-precision reference."""
    state: dict[str, State]
    """State that the proposer gets back when the record is replayed."""
    time: Time


class Scored(Entry):
    """A candidate was scored at a fidelity. The entry is complete: readers need no other line."""

    event: Literal["scored"] = "scored"
    candidate: Number
    strategy: str
    seed: Number
    allocation: dict[str, int]
    """Bit-width of every site of what is kept."""
    structure: dict[str, int] = {}
    """What is kept of each option that is not whole."""
    metrics: dict[str, Finite]
    costs: dict[str, Finite | None]
    """None if a target has no finite cost, because the allocation does not run on it."""
    fidelity: Fidelity
    start: Number | None = None
    """The candidate whose trained weights its own training started from."""
    weights: Annotated[str, Field(pattern=r"^[0-9a-f]+\.safetensors$")] | None = None
    """File of its own trained weights, in the run's folder of those."""
    seconds: Seconds
    worker: str
    attempts: Number
    versions: dict[str, str] | None = None
    """Package versions; absent if they are the header's, with which the search began."""
    time: Time


class Failed(Entry):
    """A candidate could not be scored at a fidelity; it is not tried there again."""

    event: Literal["failed"] = "failed"
    candidate: Number
    strategy: str
    fidelity: Fidelity
    reason: str
    seconds: Seconds
    worker: str
    attempts: Number
    versions: dict[str, str] | None = None
    """Package versions; absent if they are the header's, with which the search began."""
    time: Time


Event = Asked | Scored | Failed

_LINE: TypeAdapter[Header | Event] = TypeAdapter(Annotated[Header | Asked | Scored | Failed, Field(discriminator="event")])


def read_record(folder: Path) -> tuple[Header, Iterator[Event]]:
    """Read the record of a run folder, even while a driver writes it: a torn last line is left out.

    Raises:
        UserError: there is no record, it has another schema, or a line is no valid entry (names file and line). Events are read
            lazily, so the iterator raises too.
    """
    path = folder / RECORD_FILE
    lines = read_lines(path, _WHAT)
    if not lines:
        raise UserError(f"{path}: empty; wanted {_WHAT}")
    entries = _present(lines, path)
    header = _parse_header(next(entries), path)
    return header, _parse_events(entries, path, header)


def has_begun(folder: Path) -> bool:
    """Whether a folder's record has its header. A torn header does not count: the next driver writes it again.

    Raises:
        UserError: the record cannot be read, for example because it is a folder.
    """
    path = folder / RECORD_FILE
    check_regular(path, _WHAT)
    try:
        with path.open("rb") as stream:
            return stream.readline().endswith(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); wanted {_WHAT}, or nothing") from None


class FolderLock(locks.Lock):
    """The lock of a run folder. A driver takes it before its first step, which may come hours before the record."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            UserError: another driver holds the folder (names its process), or it cannot be locked or written to.
        """
        super().__init__(folder / LOCK_FILE, _BUSY)


def lock_holder(folder: Path) -> locks.LockHolder | None:
    """Return the driver that is searching in a folder, if any; change nothing there."""
    return locks.lock_holder(folder / LOCK_FILE)


def check_unlocked(folder: Path) -> None:
    """Refuse a folder in which a driver is searching.

    Raises:
        UserError: names its process.
    """
    if (holder := lock_holder(folder)) is not None:
        raise locks.in_use(folder / LOCK_FILE, holder.process, _BUSY)


class Record:
    """A run folder's record, open for appending by the driver that holds the folder's lock."""

    def __init__(self, folder: Path, header: Header, lock: FolderLock | None = None) -> None:
        """Lock the folder, cut off a torn last line, and write the header if the record is new.

        Args:
            folder: the run folder.
            header: of the search.
            lock: of the folder, if the caller holds it. Otherwise the record holds it while it is open.

        Raises:
            UserError: another process holds the folder, or it belongs to another experiment.
        """
        with ExitStack() as opened:
            if lock is None:
                opened.enter_context(FolderLock(folder))
            found = _checked(folder, header) if has_begun(folder) else None
            self._journal = opened.enter_context(Journal(folder / RECORD_FILE, _WHAT))
            if found is None:
                self._journal.append([_line(header)])
            self.header = found or header
            self._opened = opened.pop_all()

    def append(self, event: Event) -> None:
        """Write one entry, as `extend` does."""
        self.extend([event])

    def extend(self, events: Sequence[Event]) -> None:
        """Write entries, with one disk sync for all. If any is scored or failed, all are on the disk when this returns.

        Raises:
            UserError: it cannot be written, for example because the disk is full. Earlier entries are unharmed.
        """
        self._journal.append(map(_line, events), durably=not all(isinstance(event, Asked) for event in events))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()


def _checked(folder: Path, header: Header) -> Header:
    """Return the header of the existing record.

    Raises:
        UserError: the record is damaged, or belongs to another search. Not a byte of it is changed.
    """
    path = folder / RECORD_FILE
    entries = list(_present(read_lines(path, _WHAT), path))  # every seal is checked before anything is appended
    found = _parse_header(entries[0], path)
    if found.experiment != header.experiment:
        raise UserError(
            f"{folder}: holds a search of experiment '{found.name}' ({found.experiment[:12]}), not of "
            f"'{header.name}' ({header.experiment[:12]}); wanted an empty folder or that experiment"
        )
    for key in sorted(found.provenance.keys() | header.provenance.keys()):
        before, here = found.provenance.get(key), header.provenance.get(key)
        if before != here:
            raise UserError(f"{folder}: its search was made with {key} {before}, not {here}; wanted the same one")
    return found


def _line(entry: Entry) -> bytes:
    return entry.model_dump_json().encode()


def _present(lines: Sequence[bytes], path: Path) -> Iterator[bytes]:
    """Refuse another schema version; then check the seals of the lines and take them off, lazily."""
    found = _schema_version(lines[0])
    if found not in {None, SCHEMA_VERSION}:
        raise UserError(
            f"{path}: schema version {found}, which another version of hwsearch writes; wanted {SCHEMA_VERSION}: search under "
            "another name"
        )
    return unseal_lines(lines, path, _MEND)


def _schema_version(header: bytes) -> int | None:
    """Return the schema version in a record's first line, if any."""
    try:
        entry = json.loads(header)
    except (ValueError, RecursionError):
        return None
    version = entry.get("schema_version") if isinstance(entry, dict) else None
    return version if type(version) is int else None


def _parse_header(line: bytes, path: Path) -> Header:
    entry = parse_line(_LINE, line, path, 1, _MEND)
    if not isinstance(entry, Header):
        raise UserError(f"{path}, line 1: found a '{entry.event}' entry; wanted the header")
    return entry


def _parse_events(lines: Iterable[bytes], path: Path, header: Header) -> Iterator[Event]:
    """Parse entries. Candidates must be numbered in the order of their asking, and finish at most once at each fidelity."""
    asked = 0
    finished: set[tuple[int, Fidelity]] = set()
    shape = header.space.shape
    for number, line in enumerate(lines, start=2):
        entry = parse_line(_LINE, line, path, number, _MEND)
        if isinstance(entry, Header):
            raise UserError(f"{path}, line {number}: found a second header; wanted one")
        if isinstance(entry, Asked):
            if entry.candidate != asked:
                raise UserError(f"{path}, line {number}: candidate {entry.candidate} asked; wanted {asked}")
            asked += 1
        elif entry.candidate >= asked or (entry.candidate, entry.fidelity) in finished:
            problem = "before it was asked" if entry.candidate >= asked else f"a second time at fidelity '{entry.fidelity.value}'"
            raise UserError(f"{path}, line {number}: candidate {entry.candidate} finished {problem}")
        else:
            finished.add((entry.candidate, entry.fidelity))
        misfit = _misfit_asked(entry, shape) if isinstance(entry, Asked) else _misfit(entry, header)
        if misfit is not None:
            raise UserError(f"{path}, line {number}: candidate {entry.candidate} {misfit}; {_MEND}")
        yield entry


def _misfit_asked(entry: Asked, shape: Sequence[int]) -> str | None:
    """Say why a candidate cannot belong to this search, or return None."""
    if entry.point is None:
        return None if entry.candidate == REFERENCE else "has no point"
    for name, value in entry.state.items():
        if not isinstance(value, STATES.get(name, object)):
            return f"has a state whose '{name}' is none"
    behind = [point for points in entry.state.values() if isinstance(points, tuple) for point in points]
    for point in (entry.point, *behind):
        if len(point) != len(shape) or any(not 0 <= index < count for index, count in zip(point, shape, strict=True)):
            return "has a point outside the space"
    return None


def _misfit(entry: Scored | Failed, header: Header) -> str | None:
    """Say why a candidate's result cannot belong to this search, or return None."""
    if isinstance(entry, Failed):
        return None
    if (wrong := _misfit_structure(entry, header)) is not None:
        return wrong
    for site, bits in entry.allocation.items():
        if bits not in header.widths[site] and (entry.candidate != REFERENCE or bits != FLOAT_BITS):
            return f"has {bits} bits at site '{site}'"
    if (nonsense := implausible(entry.metrics, entry.costs)) is not None:
        return f"has {nonsense}"
    columns = entry.metrics.keys() | {name for name, value in entry.costs.items() if value is not None}
    wanted = (objective.column for objective in header.objectives)
    for column in wanted if entry.candidate != REFERENCE else (QUALITY,):
        if column not in columns:
            return f"has no '{column}'"
    return None


def _misfit_structure(entry: Scored, header: Header) -> str | None:
    """Say why sites and structure of a candidate cannot belong to this search, or return None."""
    for name, kept in entry.structure.items():
        if kept not in header.options.get(name, ())[:-1]:
            return f"keeps {kept} of '{name}'"
    sites = entry.allocation.keys()
    if not sites or sites - header.widths.keys() or (sites < header.widths.keys() and 0 not in entry.structure.values()):
        return "has an allocation that is not of the header's sites"
    return None
