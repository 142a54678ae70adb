"""Passwords and keys are made once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dreamforge.embedded.secrets import secret_file
from dreamforge.embedded.trouble import StackError


def test_a_secret_is_long_its_owner_s_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "one"
    secret = secret_file(path)
    assert len(secret) == 43
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert secret_file(path) == secret
    assert secret_file(tmp_path / "secrets" / "another") != secret
    assert sorted(file.name for file in path.parent.iterdir()) == ["another", "one"]


def test_who_asks_at_the_same_time_gets_the_same_secret(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def ask(path: Path) -> str:
        together.wait()
        return secret_file(path)

    with ThreadPoolExecutor(8) as executor:
        for number in range(50):
            path = tmp_path / str(number)
            assert len(set(executor.map(ask, [path] * 8))) == 1


def test_an_empty_file_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    with pytest.raises(StackError, match="is empty"):
        secret_file(tmp_path / "one")
