"""Who may be served: addresses, keys, limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from hematokit.errors import ServingError
from hematokit.serving import ServeSettings, is_loopback
from hematokit.serving.settings import read_api_key

KEY = "k" * 20


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    ServeSettings(host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "lab.example.org", "127.0.0.1.example.org"])
def test_every_other_address_needs_one(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ServingError, match="API key is needed") as caught:
        ServeSettings(host=host)
    assert "\n" not in str(caught.value)
    ServeSettings(host=host, api_key=KEY)


@pytest.mark.parametrize("host", ["", " ", "[]"])
def test_a_host_is_named(host: str) -> None:
    with pytest.raises(ServingError, match="the host is empty"):
        ServeSettings(host=host, api_key=KEY)


@pytest.mark.parametrize("key", ["", "short", "k" * 15, "a key with blanks in it", "schlüssel" * 3, "k\n" * 20])
def test_keys_that_can_be_guessed_or_sent_wrongly_are_refused(key: str) -> None:
    with pytest.raises(ServingError, match="key"):
        ServeSettings(host="0.0.0.0", api_key=key)


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(ServeSettings(api_key=KEY))


@pytest.mark.parametrize(
    ("setting", "value"), [("port", 70000), ("batch_size", 0), ("field_bytes", -1), ("upload_seconds", 0)]
)
def test_limits_that_cannot_be(setting: str, value: int) -> None:
    with pytest.raises(ServingError, match=setting):
        ServeSettings(**{setting: value})  # type: ignore[arg-type]


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEMATOKIT_API_KEY", raising=False)
    assert read_api_key(None) is None
    monkeypatch.setenv("HEMATOKIT_API_KEY", KEY)
    assert read_api_key(None) == KEY
    file = tmp_path / "key.txt"
    file.write_text("f" * 20 + "\n")
    assert read_api_key(file) == "f" * 20
    for content in (b"", b"short", b"\xff\xfe\x00", b"two words are no key at all"):
        file.write_bytes(content)
        with pytest.raises(ServingError, match=r"key\.txt"):
            read_api_key(file)
    with pytest.raises(ServingError, match="No such file"):
        read_api_key(tmp_path / "absent")
