import os
import subprocess
import sys

import pytest

from hwsearch.errors import UserError
from hwsearch.search.studies.address import WANTED, StorageAddress, parse_address, redact, take_password

SECRET = "s3cr:t/?#@ %&"  # noqa: S105 (of no server)
ENCODED = "s3cr%3At%2F%3F%23%40%20%25%26"


def test_an_address_is_taken_apart_and_its_secrets_decoded() -> None:
    found = parse_address(f"postgresql://me:{ENCODED}@[::1]:5433/studies?sslmode=require&passfile=/a/b")
    assert found == StorageAddress("postgresql", "::1", 5433, "studies", "me", SECRET, {"sslmode": "require", "passfile": "/a/b"})
    assert parse_address("postgresql+psycopg://host/db") == StorageAddress("postgresql", "host", None, "db")
    assert parse_address("redis://:pw@host") == StorageAddress("redis", "host", None, "0", None, "pw")
    assert parse_address("rediss://me:pw@host:1/7?ssl_ca_certs=/ca") == StorageAddress(
        "rediss", "host", 1, "7", "me", "pw", {"ssl_ca_certs": "/ca"}
    )


def test_a_socket_is_named_by_its_folder() -> None:
    for text in ("postgresql://me:pw@%2Ftmp%2FMy%20Sockets:5433/db", "postgresql://me:pw@%2ftmp%2fMy Sockets:5433/db"):
        found = parse_address(text)
        assert (found.host, found.port, found.database, found.user) == ("/tmp/My Sockets", 5433, "db", "me")  # noqa: S108
        assert parse_address(str(found)).host == found.host
    assert parse_address("postgresql:///db?host=/tmp/Sockets").options == {"host": "/tmp/Sockets"}  # noqa: S108
    assert parse_address("postgresql://HOST/db").host == "HOST"


def test_a_plus_is_a_plus() -> None:
    """As in PostgreSQL's own library."""
    found = parse_address("postgresql://me:a+b@host/db?passfile=/home/c++/pass&password=x%20y+z")
    assert found.password == "a+b"  # noqa: S105 (of no server)
    assert found.options == {"passfile": "/home/c++/pass", "password": "x y+z"}


@pytest.mark.parametrize("text", ["mysql://host/db", "nonsense", "redis://host/name", "redis://a b@host/1 2"])
def test_what_is_wanted_is_shown_whole(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_address(text)
    assert redact(str(refused.value)) == str(refused.value)
    assert WANTED in str(refused.value)


@pytest.mark.parametrize("text", [f"postgresql://me:{ENCODED}@host:5433/studies?sslpassword=other{ENCODED}"])
def test_what_is_shown_holds_no_user_password_or_option(text: str) -> None:
    address = parse_address(text)
    assert str(address) == "postgresql://host:5433/studies"
    for shown in (str(address), repr(address), f"{address}", repr([address])):
        assert "me:" not in shown
        assert "s3cr" not in shown
    for spelled in (SECRET, ENCODED, "s3cr%3At%2F%3F%23%40+%25%26", "other" + SECRET, text):
        assert "s3cr" not in address.redact(f"could not connect with '{spelled}' to host")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hunter2", "not an address"),
        ("me:hunter2@host/db", "not an address"),
        ("mysql://me:hunter2@host/db", "unknown scheme 'mysql'"),
        ("sqlite:///hunter2.db", "unknown scheme 'sqlite'"),
        ("postgresql://me:hunter2@host:port/db", "not an address of 'postgresql'"),
        ("redis://me:hunter2@host:99999/0", "its port is above 65535"),
        ("redis://host:99999", "its port is above 65535"),
        ("postgresql://me:99999/hunter2@host/db", "not an address of 'postgresql'"),
        ("postgresql://me:hunt/er2@host/db", "not an address of 'postgresql'"),
        ("postgresql://me:hunt#er2@host/db", "not an address of 'postgresql'"),
        ("postgresql://me:hunt?er2@host/db", "not an address of 'postgresql'"),
        ("postgresql://me:hunt@er2@host/db", "not an address of 'postgresql'"),
        ("postgresql://me:hunt[er2@host/db", "not an address of 'postgresql'"),
        ("postgresql://me:[hunt]er2@host/db", "not an address of 'postgresql'"),
        ("postgresql://[hunter2/db", "not an address of 'postgresql'"),
        ("redis://:hunter2@host/studies", "a Redis database is a number"),
        ("redis://:secret@host/0?hunter2=1", "1 unknown options"),
        ("redis://:hunter2@b\udcff/0", "its address is not UTF-8"),
    ],
)
def test_a_wrong_address_is_refused_without_repeating_it(text: str, reason: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_address(text)
    assert str(refused.value).startswith(f"storage: {reason}")
    assert "wanted" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "hunt" not in str(refused.value)
    assert "er2" not in str(refused.value)


def test_any_text_can_be_redacted() -> None:
    assert redact("got redis://me:pw@ss/word@host:1/0 and more") == "got redis://***@host:1/0 and more"
    assert redact("got PostgreSQL://me:my pw@ss@host/db and more") == "got PostgreSQL://***@host/db and more"
    assert redact("host=a password=pw port=1") == "host=a password=*** port=1"
    assert (
        redact("see https://example.org/a for more, or mail@example.org")
        == "see https://example.org/a for more, or mail@example.org"
    )


def test_an_argument_is_forgotten_by_the_process_and_by_the_system() -> None:
    program = (
        "import sys; from pathlib import Path; from hwsearch.search.studies.address import forget_argument\n"
        "forget_argument(sys.argv[1].removeprefix('--storage='))\n"
        "print(sys.argv, sys.orig_argv[-3:], Path('/proc/self/cmdline').read_bytes())"
    )
    command = [sys.executable, "-c", program, "--storage=redis://:hunter2@hôst/0", "after"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
    assert "hunter2" not in answer
    assert answer.count("after") == 3
    assert answer.count("--storage=***") == 3


def test_a_variable_is_forgotten_by_the_process_its_children_and_the_system() -> None:
    program = (
        "import os, subprocess; from pathlib import Path\n"
        "from hwsearch.search.studies.address import parse_address, take_password\n"
        "address = take_password(parse_address('postgresql://me@host/db'))\n"
        "assert address.password == 'hunter2 ü', address.password\n"
        "assert 'hunter2' not in address.redact('FATAL: hunter2 ü')\n"
        "print(dict(os.environ), Path('/proc/self/environ').read_bytes(), subprocess.check_output(['env']))"
    )
    environment = {**os.environ, "PGPASSWORD": "hunter2 ü", "AFTER": "after"}
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment).stdout
    assert "hunter2" not in answer
    assert answer.count("after") == 3
    assert answer.count("PGPASSWORD=***") == 1


def test_a_password_in_the_address_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "theirs")
    assert take_password(parse_address("redis://:pw@host")).password == "pw"  # noqa: S105 (of no server)
    assert os.environ["PGPASSWORD"] == "theirs"
    assert take_password(parse_address("postgresql://me:pw@host/db")).password == "pw"  # noqa: S105
    assert "PGPASSWORD" not in os.environ
