"""What must hold before anything is installed."""

import ast
from pathlib import Path

import pytest

from devtools import install
from devtools.install import InstallError

# What it asks is no database.
pytestmark = [pytest.mark.only_on("sqlite"), pytest.mark.slow]


def test_a_folder_that_is_no_venv_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_nothing(name: str, *argv: str | Path) -> str:
        raise AssertionError(name)

    monkeypatch.setattr(install, "_run_command", run_nothing)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InstallError, match="holds files and is no venv"):
        install.install_tools(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_old_python_can_read_far_enough_to_say_that_it_is_too_old() -> None:
    ast.parse(Path(install.__file__).read_text(), feature_version=(3, 7))
