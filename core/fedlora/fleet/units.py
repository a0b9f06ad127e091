"""systemd's units of a device and of a server, from templates that lie beside the code that they start.

A template is a unit in which @WORD@ stands for what a machine decides: where the command lies, which folders it reads.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedlora.errors import ConfigError
from fedlora.files.atomic import write_text

_PLACE = re.compile(r"@([A-Z]+)@")


def installed_command() -> Path:
    """Where the command `fedlora` of this installation lies. Raises ConfigError where it has none."""
    beside = Path(sys.executable).with_name("fedlora")
    found = beside if beside.is_file() else shutil.which("fedlora")
    if not found:
        raise ConfigError(f"{beside}: the command fedlora is not installed; install fedlora with pip, and run it again")
    return Path(found).absolute()


def word(text: object) -> str:
    """A word of a command line in a unit: quoted where systemd would take it apart or read more into it."""
    plain = _one_line(str(text)).replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w./:@%+,=-]+", plain):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def paths_line(key: str, paths: Sequence[Path]) -> str:
    """KEY=PATH ..., each of which may be missing; empty for none."""
    if not paths:
        return ""
    return f"{key}=" + " ".join(f'"-{_escaped(path)}"' for path in dict.fromkeys(paths))


def write_units(templates: Path, names: Sequence[str], folder: Path, words: Mapping[str, str]) -> list[Path]:
    """Write NAME.service for each name into `folder`, with `words` in the places of the template.

    Raises ConfigError, before anything is written, where one is there that says something else.
    """
    made = {}
    for name in names:
        text = _PLACE.sub(lambda place: words[place[1]], (templates / name).read_text(encoding="utf-8"))
        target = folder / name
        if target.exists() and target.read_text(encoding="utf-8", errors="replace") != text:
            raise ConfigError(
                f"{target}: expected no unit, or the one that would be written, got another; to keep your own changes "
                f"put them in {target}.d/own.conf, then remove the file and run this again"
            )
        made[target] = text
    for target, text in made.items():
        write_text(target, text)
    return list(made)


def _escaped(path: Path) -> str:
    return _one_line(str(path)).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _one_line(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ConfigError(f"{text!r:.200}: a control character fits into no unit; give the path another name")
    return text
