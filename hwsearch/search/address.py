"""Addresses of shared studies, and how what is secret in them stays so.

An address is shown without user, password and options, everywhere. Only the standard library is imported here, so that the
command line can redact an error at no cost.
"""

import ctypes
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, quote_plus, unquote, urlsplit

from hwsearch.errors import UserError

STORAGE_VARIABLE = "HWSEARCH_STORAGE"
"""Environment variable that holds the address, so that it need not stand on the command line."""

POSTGRESQL = "postgresql"
REDIS, REDIS_TLS = "redis", "rediss"
SCHEMES = {POSTGRESQL: POSTGRESQL, "postgresql+psycopg": POSTGRESQL, REDIS: REDIS, REDIS_TLS: REDIS_TLS}
"""What an address may begin with; the second is how Optuna's own tools name the same server."""

REDIS_OPTIONS = frozenset({"ssl_ca_certs"})

HIDDEN = "***"

WANTED = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE or redis://:PASSWORD@HOST:PORT/NUMBER"

_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)\S*@")
_PASSWORD_OPTION = re.compile(r"(password=)[^&\s]+", re.IGNORECASE)


@dataclass(frozen=True)
class StorageAddress:
    """Where a shared study lies. Only scheme, host, port and database are ever shown."""

    scheme: str
    host: str
    """Empty for the driver's default, such as a socket of this machine."""
    port: int | None
    database: str
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What else the driver is told, such as `sslmode` or `passfile`."""

    def __str__(self) -> str:
        """The address without what is secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port is None else f":{self.port}") + f"/{self.database}"

    def redact(self, text: str) -> str:
        """A text from elsewhere, such as a server's answer, without the password in any of its spellings."""
        secrets = [self.password, *(value for name, value in self.options.items() if "password" in name.lower())]
        spellings = {spell(secret) for secret in secrets if secret for spell in (str, _percent, quote_plus)}
        for spelling in sorted(spellings, key=len, reverse=True):
            text = text.replace(spelling, HIDDEN)
        return redact(text)


def parse_address(text: str) -> StorageAddress:
    """Read the address of a shared study.

    Raises:
        UserError: an unknown scheme, or no address; the text is not repeated, because a password may be anywhere in it.
    """
    scheme, separator, _ = text.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise UserError(f"storage: not an address; wanted {WANTED}")
    if scheme.lower() not in SCHEMES:
        raise UserError(f"storage: unknown scheme '{scheme}'; wanted {WANTED}")
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname or ""
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise _unreadable(scheme) from None
    kind = SCHEMES[scheme.lower()]
    database = unquote(parts.path.removeprefix("/"))
    # A user or password with one of these unencoded takes the rest of the address apart.
    if parts.fragment or "/" in database or "@" in database or "@" in _userinfo(parts) or any("@" in value for value in options):
        raise _unreadable(scheme)
    if kind != POSTGRESQL:
        database = database or "0"
        if not (database.isascii() and database.isdigit()):
            raise UserError(f"storage: a Redis database is a number; wanted {WANTED}")
        if unknown := options.keys() - REDIS_OPTIONS:
            raise UserError(f"storage: {len(unknown)} unknown options; wanted none but {', '.join(sorted(REDIS_OPTIONS))}")
    return StorageAddress(
        kind,
        host if host or kind == POSTGRESQL else "localhost",
        port,
        database,
        None if not parts.username else unquote(parts.username),
        None if not parts.password else unquote(parts.password),
        options,
    )


def redact(text: str) -> str:
    """A text without what stands before the host in any address, and without passwords among options."""
    return _PASSWORD_OPTION.sub(rf"\1{HIDDEN}", _CREDENTIALS.sub(rf"\1{HIDDEN}@", text))


def forget_argument(text: str) -> None:
    """Overwrite an argument of this process's command line, for `ps` as well as for those who copy it, as Ray does."""
    stars = "*" * len(text.encode())
    for arguments in (sys.argv, sys.orig_argv):
        arguments[:] = [argument.replace(text, stars) for argument in arguments]
    # Fields 48 and 49 of proc(5): where the arguments lie in memory. The second may hold spaces, and ends with the last bracket.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    at = ctypes.string_at(start, end - start).find(text.encode()) if start else -1
    if at >= 0:
        ctypes.memmove(start + at, stars.encode(), len(stars))


def _percent(text: str) -> str:
    return quote(text, safe="")


def _userinfo(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[0]


def _unreadable(scheme: str) -> UserError:
    return UserError(
        f"storage: not an address of '{scheme}'; wanted {WANTED}, with / ? # @ : % in user and password as %2F and so on"
    )
