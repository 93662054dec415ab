"""The address of a shared study, in the form that Optuna's own tools take. A password in it is never shown.

Only the standard library is imported at the top, because the command line redacts errors and must start fast.
"""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hwsearch.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

STORAGE_VARIABLE = "HWSEARCH_STORAGE"
"""Environment variable with the address, which may hold a password."""

PASSWORD_VARIABLE = "PGPASSWORD"  # noqa: S105 (its name)
"""Environment variable in which PostgreSQL's own tools look for a password."""

POSTGRESQL, SQLITE, JOURNAL = "postgresql", "sqlite", "journal"
SCHEMES = {POSTGRESQL: POSTGRESQL, "postgresql+psycopg": POSTGRESQL, SQLITE: SQLITE, JOURNAL: JOURNAL}
"""Kind of storage by scheme. The second scheme is that of Optuna's tools for PostgreSQL."""

GIVEN_UP = frozenset({"redis", "rediss"})

HIDDEN = "***"

WANTED = "postgresql://HOST:PORT/DATABASE, sqlite:///FILE or journal:///FILE"
PASSWORD_ADVICE = f"{PASSWORD_VARIABLE}, a passfile (?passfile=FILE) or {STORAGE_VARIABLE}"

_BLANK_CREDENTIALS = re.compile(r"\b((?:postgresql(?:\+psycopg)?|rediss?)://).*@", re.IGNORECASE | re.DOTALL)
"""Credentials of a server's address. Someone may have forgotten to encode a blank in them."""
_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)\S*@")
_PASSWORD_OPTION = re.compile(r"(password=)[^&\s]+", re.IGNORECASE)


@dataclass(frozen=True)
class StorageAddress:
    """The place of a shared study. Only kind, host, port and database are ever shown."""

    kind: str
    url: "URL" = field(repr=False)

    def __str__(self) -> str:
        """Write the address without user, password and options."""
        from sqlalchemy.engine import URL

        return URL.create(self.kind, host=self.url.host, port=self.url.port, database=self.url.database).render_as_string()

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database or a journal; None for a server."""
        return None if self.kind == POSTGRESQL else Path(self.url.database or "").absolute()

    @property
    def has_password(self) -> bool:
        """Whether the address holds a password."""
        return bool(self._secrets)

    def with_password(self, password: str) -> "StorageAddress":
        """Return the same address with this password."""
        return replace(self, url=self.url.set(password=password))

    def redact(self, text: str) -> str:
        """Hide this address's passwords, and everything that `redact` hides, in a text such as a server's answer."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return redact(text)

    @property
    def _secrets(self) -> list[str]:
        options = [str(value) for name, value in self.url.query.items() if "password" in name.lower()]
        return [secret for secret in (self.url.password, *options) if secret]


def parse_address(text: str) -> StorageAddress:
    """Read the address of a shared study.

    Raises:
        UserError: it is not the address of a supported storage. The message does not repeat the text: a password may be in it.
    """
    scheme, separator, _ = text.partition("://")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"storage: its address is not UTF-8; wanted {WANTED}")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise UserError(f"storage: not an address; wanted {WANTED}")
    if scheme.lower() in GIVEN_UP:
        raise UserError(
            f"storage: Redis is not supported, because Optuna runs code that it finds there (pickle); wanted {WANTED}"
        )
    kind = SCHEMES.get(scheme.lower())
    if kind is None:
        raise UserError(f"storage: unknown scheme '{scheme}'; wanted {WANTED}")
    url = _parse(text, kind)
    if url is None or {"@", "\0"} & set(f"{url.host}{url.database}"):
        raise UserError(f"storage: not an address of '{scheme}', where @ and : in a user and @ in a password are %40 and %3A; "
                        f"wanted {WANTED}")  # fmt: skip
    if kind != POSTGRESQL and (url.host or url.username or url.port or url.query or url.database in {None, "", ":memory:"}):
        raise UserError(
            f"storage: '{scheme}' takes one file and no options; wanted {kind}:///FILE, with a fourth / for a path from /"
        )
    return StorageAddress(kind, url)


def redact(text: str) -> str:
    """Hide everything before the host of any address in a text, and passwords among its options."""
    text = _BLANK_CREDENTIALS.sub(rf"\1{HIDDEN}@", text)
    return _PASSWORD_OPTION.sub(rf"\1{HIDDEN}", _CREDENTIALS.sub(rf"\1{HIDDEN}@", text))


def take_password(address: StorageAddress) -> StorageAddress:
    """Move the password for PostgreSQL from the environment into the address.

    It is removed from the environment, because processes that are started later, such as Ray's, need no password.
    """
    if address.kind != POSTGRESQL:
        return address
    password = os.environ.pop(PASSWORD_VARIABLE, None)
    return address.with_password(password) if password and not address.has_password else address


def _parse(text: str, kind: str) -> "URL | None":
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(text).set(drivername=kind)
    except (ArgumentError, ValueError):
        return None
