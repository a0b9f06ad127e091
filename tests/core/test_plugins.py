"""What packages add to fedlora is found by name, and what is wrong with it names the package."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fedlora.errors import ConfigError, MissingExtraError
from fedlora.plugins import Plugins

from tests.installed_package import install

THINGS = Plugins(group="fedlora.things", noun="thing", key="a.thing")


def offer(folder: Path, package: str, code: str = "", **points: str) -> None:
    """Install a package with entry points of the group: {name: what of its module}."""
    lines = [f"{name} = '{package}:{what}'" for name, what in points.items()]
    project = [f"[project]\nname = '{package}'\nversion = '1.0'", f"[project.entry-points.'{THINGS.group}']", *lines]
    install(folder, "\n".join(project), {f"{package}.py": code})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_thing_of_a_package_is_found_by_its_name(folder: Path) -> None:
    offer(folder, "things_found", "ONE = 1\n", one="ONE")
    assert THINGS.names() == ["one"]
    assert THINGS.load("one") == 1


def test_names_are_told_without_an_import(folder: Path) -> None:
    offer(folder, "things_raising", "raise RuntimeError\n", b="B", a="A")
    assert THINGS.names() == ["a", "b"]


def test_a_package_that_is_installed_after_a_first_look_is_found(folder: Path) -> None:
    offer(folder, "things_early", "ONE = 1\n", one="ONE")
    assert THINGS.names() == ["one"]
    time.sleep(0.02)  # a file system tells times in steps of milliseconds
    offer(folder, "things_later", "TWO = 2\n", two="TWO")
    assert THINGS.names() == ["one", "two"]
    assert THINGS.load("two") == 2


@pytest.mark.parametrize(("name", "hint"), [("tree", "did you mean 'three'?"), ("?", "there is one, three")])
def test_an_unknown_name_is_refused_with_a_hint(folder: Path, name: str, hint: str) -> None:
    offer(folder, "things_known", one="ONE", three="THREE")
    with pytest.raises(ConfigError) as caught:
        THINGS.load(name)
    assert str(caught.value) == f"a.thing: no thing {name!r}; {hint}"


def test_a_name_that_two_packages_offer_is_refused_with_both(folder: Path) -> None:
    offer(folder, "things_first", "ONE = 1\n", one="ONE")
    offer(folder, "things_second", "ONE = 2\n", one="ONE")
    assert THINGS.names() == ["one"]
    with pytest.raises(
        ConfigError, match=r"'one': things_(first|second), things_(first|second); uninstall all but one"
    ):
        THINGS.load("one")


def test_a_thing_that_needs_what_is_not_installed_names_its_package(folder: Path) -> None:
    offer(folder, "things_far", "import fedlora_not_there\n", far="FAR")
    with pytest.raises(MissingExtraError, match=r"thing 'far' of the package things_far needs .*fedlora_not_there"):
        THINGS.load("far")


def test_a_thing_that_is_not_where_its_entry_point_says_names_its_package(folder: Path) -> None:
    offer(folder, "things_lost", "FOUND = 1\n", lost="LOST")
    with pytest.raises(
        ConfigError, match=r"a\.thing: thing 'lost' of the package things_lost is not where its entry point"
    ):
        THINGS.load("lost")


def test_an_entry_point_that_names_no_module_says_which_is_not_there(folder: Path) -> None:
    offer(folder, "things_gone", gone="GONE")
    (folder / "things_gone.py").unlink()
    with pytest.raises(MissingExtraError, match=r"thing 'gone' of the package things_gone needs .*'things_gone'"):
        THINGS.load("gone")


@pytest.mark.parametrize("code", ["raise AttributeError('old')", "from fedlora import Fold", "def ("])
def test_a_module_that_raises_as_it_is_imported_is_told_as_that(folder: Path, code: str) -> None:
    package = f"things_broken_{len(code)}"
    offer(folder, package, f"{code}\n", broken="BROKEN")
    with pytest.raises(ConfigError, match=rf"thing 'broken' of the package {package} does not load: \w+Error: "):
        THINGS.load("broken")


def test_where_no_package_offers_anything_the_installation_is_the_fault() -> None:
    with pytest.raises(ConfigError, match=r"no package offers any thing; install fedlora again"):
        THINGS.load("one")
