"""Addresses of shared studies, and how what is secret in them stays so.

An address is shown without user, password and options, everywhere. Only the standard library is imported here, so that the
command line can redact an error at no cost.
"""

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, quote_plus, unquote, urlsplit

from hwsearch.errors import UserError

STORAGE_VARIABLE = "HWSEARCH_STORAGE"
"""Environment variable that holds the address, so that it need not stand on the command line."""

PASSWORD_VARIABLE = "PGPASSWORD"  # noqa: S105 (its name)
"""Where PostgreSQL's own library looks for a password."""

POSTGRESQL = "postgresql"
REDIS, REDIS_TLS = "redis", "rediss"
SCHEMES = {POSTGRESQL: POSTGRESQL, "postgresql+psycopg": POSTGRESQL, REDIS: REDIS, REDIS_TLS: REDIS_TLS}
"""What an address may begin with; the second is how Optuna's own tools name the same server."""

REDIS_OPTIONS = frozenset({"ssl_ca_certs"})

LARGEST_PORT = 65_535

HIDDEN = "***"

WANTED = "postgresql://HOST:PORT/DATABASE or redis://HOST:PORT/NUMBER, with user and password before the host where it wants them"
"""Without the sign that ends these: `redact` takes what stands before one for credentials."""

_OWN_CREDENTIALS = re.compile(
    rf"\b({'|'.join(map(re.escape, sorted(SCHEMES, key=len, reverse=True)))})://.*@", re.IGNORECASE | re.DOTALL
)
"""In an address of a storage, where someone may have forgotten to encode a blank."""
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
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
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
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"storage: its address is not UTF-8; wanted {WANTED}")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise UserError(f"storage: not an address; wanted {WANTED}")
    if scheme.lower() not in SCHEMES:
        raise UserError(f"storage: unknown scheme '{scheme}'; wanted {WANTED}")
    try:
        parts = urlsplit(text)
        port, host = parts.port, _host(parts)
        # Not a form's query: here as for PostgreSQL's own library a plus is a plus.
        query = parts.query.replace("+", "%2B")
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        # With an @ behind them, digits may be a password that holds a / unencoded.
        if re.fullmatch(r"[^/?#]*:[0-9]+([/?#][^@]*)?", text.partition("://")[2]):
            raise UserError(f"storage: its port is above {LARGEST_PORT}; wanted {WANTED}") from None
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
    text = _OWN_CREDENTIALS.sub(rf"\1://{HIDDEN}@", text)
    return _PASSWORD_OPTION.sub(rf"\1{HIDDEN}", _CREDENTIALS.sub(rf"\1{HIDDEN}@", text))


def take_variable(name: str) -> str | None:
    """Take a variable out of the environment: that of processes started here, and what the system shows of this one's."""
    value = os.environ.pop(name, None)
    if value:
        _overwrite(os.fsencode(f"{name}={value}"), len(name) + 1, _ENVIRONMENT)
    return value


def take_password(address: StorageAddress) -> StorageAddress:
    """The address with the password that PostgreSQL's own library would find in the environment, which is taken out of it."""
    if address.scheme != POSTGRESQL:
        return address
    password = take_variable(PASSWORD_VARIABLE)
    return replace(address, password=password) if password and not address.password else address


def forget_argument(text: str) -> None:
    """Overwrite an argument of this process's command line, for `ps` as well as for those who copy it, as Ray does."""
    stars = "*" * len(os.fsencode(text))
    for arguments in (sys.argv, sys.orig_argv):
        arguments[:] = [argument.replace(text, stars) for argument in arguments]
    _overwrite(os.fsencode(text), 0, _ARGUMENTS)


_ARGUMENTS, _ENVIRONMENT = 48, 50
"""Fields of proc(5) that say where in memory a process was given its arguments and its environment; the next ones say where these
end."""


def _overwrite(text: bytes, keep: int, field: int) -> None:
    """Put stars over a text, but for what it begins with, where the system looks when it is asked for it."""
    # The second field may hold spaces, and ends with the last bracket.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[field - 3]), int(fields[field - 2])
    at = ctypes.string_at(start, end - start).find(text) if start else -1
    if at >= 0:
        ctypes.memmove(start + at + keep, b"*" * (len(text) - keep), len(text) - keep)


def _host(parts: SplitResult) -> str:
    """As it was written, which matters to the folder of a socket; its slashes are encoded."""
    host = parts.hostname or ""
    written = re.search(re.escape(host), parts.netloc.rpartition("@")[2], re.IGNORECASE)
    return unquote(written[0]) if written else host


def _percent(text: str) -> str:
    return quote(text, safe="")


def _userinfo(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[0]


def _unreadable(scheme: str) -> UserError:
    return UserError(
        f"storage: not an address of '{scheme}', where / ? # @ : % [ ] and blanks in user and password are %2F and so on; "
        f"wanted {WANTED}"
    )
