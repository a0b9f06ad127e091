"""An output that is taken is refused before anything is read: what is named beside it here is not even there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora.cli import commands
from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError
from fedlora_server.run.run_lock import LOCK, locked

PROJECT = Path(__file__).resolve().parents[1]
SCENARIO = 'name = "x"\n[data]\nname = "files"\npath = "absent"\n[simulation]\ndevices = 2\n'


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/config.json").write_text(json.dumps(RunConfig().flat()))
    return tmp_path / "taken"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("simulate scenario.toml", "holds a run already"),
        (f"study {PROJECT}/simulations/studies/methods-shakespeare.toml", "holds a run; a study takes"),
        ("train absent.txt", "exists already"),
        ("train absent.txt --full --base absent", "exists already"),
        ("pack someone/absent", "exists already"),
        ("pack someone/absent --force", "holds no base.json"),
        ("export nano --merge someone/absent", "exists already"),
    ],
)
def test_a_taken_output_is_refused_first(taken: Path, words: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        CliRunner().invoke(commands, [*words.split(), "-o", str(taken)], catch_exceptions=False)
    assert [path.name for path in taken.iterdir()] == ["config.json"]


def test_a_simulation_is_refused_first_where_another_is_at_work_or_a_file_lies(taken: Path) -> None:
    (taken / "config.json").unlink()
    with locked(taken), pytest.raises(ConfigError, match="in use: another server"):
        CliRunner().invoke(commands, ["simulate", "scenario.toml", "-o", str(taken)], catch_exceptions=False)
    with pytest.raises(ConfigError, match="a file lies there"):
        CliRunner().invoke(commands, ["simulate", "scenario.toml", "-o", str(taken / LOCK)], catch_exceptions=False)
