import os
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from hwsearch.errors import UserError
from hwsearch.search.studies.address import WANTED, parse_address, redact, take_password

SECRET = "s3cr:t/?#@ %&"  # noqa: S105 (of no server)
ENCODED = "s3cr%3At%2F%3F%23%40%20%25%26"


def test_an_address_is_that_of_optunas_tools() -> None:
    text = f"postgresql+psycopg://me:{ENCODED}@[::1]:5433/studies?sslmode=require&passfile=/a/b"
    found = parse_address(text)
    assert found.url == make_url(text).set(drivername="postgresql")
    assert (found.url.password, found.file, found.kind) == (SECRET, None, "postgresql")
    assert str(parse_address("postgresql:///db?host=/tmp/Sockets")) == "postgresql:///db"


def test_a_file_is_named_by_three_slashes_or_four() -> None:
    for kind in ("sqlite", "journal"):
        assert parse_address(f"{kind}:///a/b").file == Path.cwd() / "a" / "b"
        assert parse_address(f"{kind}:////a/b").file == Path("/a/b")
        for text in (f"{kind}:///", f"{kind}://a/b", f"{kind}:///a?b=c", f"{kind}:///:memory:", f"{kind}://me:hunter2@/a"):
            with pytest.raises(UserError, match=f"'{kind}' takes one file and no options; wanted {kind}:///FILE") as refused:
                parse_address(text)
            assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("text", ["mysql://host/db", "nonsense", "redis://a b@host/1 2"])
def test_what_is_wanted_is_shown_whole(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_address(text)
    assert redact(str(refused.value)) == str(refused.value)
    assert WANTED in str(refused.value)


def test_what_is_shown_holds_no_user_password_or_option() -> None:
    text = f"postgresql://me:{ENCODED}@host:5433/studies?sslpassword=other{ENCODED}"
    address = parse_address(text)
    assert str(address) == "postgresql://host:5433/studies"
    for shown in (str(address), repr(address), f"{address}", repr([address])):
        assert "me:" not in shown
        assert "s3cr" not in shown
    for spelled in (SECRET, "other" + SECRET, text):
        assert "s3cr" not in address.redact(f"could not connect with '{spelled}' to host")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hunter2", "not an address"),
        ("me:hunter2@host/db", "not an address"),
        ("mysql://me:hunter2@host/db", "unknown scheme 'mysql'"),
        ("redis://me:hunter2@host/0", "Redis is not supported"),
        ("rediss://me:hunter2@host/0", "Redis is not supported"),
        ("postgresql://me:hunter2@host:port/db", "not an address of 'postgresql'"),
        ("sqlite:///hunter2%00", "not an address of 'sqlite'"),
        ("postgresql://hunt/er2@host/db", "not an address of 'postgresql'"),
        ("postgresql://me:hunt@er2@host/db", "not an address of 'postgresql'"),
        ("postgresql://me:hunter2@b\udcff/0", "its address is not UTF-8"),
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


def test_a_password_comes_from_the_environment_unless_the_address_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "theirs")
    assert not take_password(parse_address("sqlite:///file")).has_password
    assert os.environ["PGPASSWORD"] == "theirs"
    assert take_password(parse_address("postgresql://me:pw@host/db")).url == make_url("postgresql://me:pw@host/db")
    assert "PGPASSWORD" not in os.environ
    monkeypatch.setenv("PGPASSWORD", "theirs")
    found = take_password(parse_address("postgresql://me@host/db"))
    assert found.url == make_url("postgresql://me:theirs@host/db")
    assert "PGPASSWORD" not in os.environ
    assert "theirs" not in f"{found} {found!r}" + found.redact("FATAL: theirs")
