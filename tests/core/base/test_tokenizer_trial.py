"""What costs its opener the process is found where only a child is lost, once on a machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from unittest.mock import patch

import pytest
from fedlora.base import tokenizer_trial
from fedlora.base.tokenizer_trial import TokenizerEndsProcessError, try_tokenizer

from tests.tiny.checkpoints import write_checkpoint

LIBRARY = """
import os, time
class Tokenizer:
    @staticmethod
    def from_buffer(content):
        exec(content)
        return Tokenizer()
    def no_truncation(self): pass
    def no_padding(self): pass
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One whose files are what it does."""
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenizer_trial, "_tried", set())
    monkeypatch.setattr(tokenizer_trial, "MAX_CPU_S", 1)
    (tmp_path / "library_of_a_test.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "library_of_a_test"


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (b"os.abort()", r"it ends the process .*\(-6\)"),
        (b"while True: pass", "it takes more than 1 s"),
        (b"held = bytearray(8 << 30)", "takes more than 4096 MB"),
        (b"os.kill(os.getpid(), 11)", r"it ends the process .*\(-11\)"),
        (b"raise ValueError('no tokenizer')", None),  # for whoever opens it next to tell
    ],
)
def test_what_ends_a_process_is_refused(library: str, does: bytes, told: str | None) -> None:
    if told is None:
        try_tokenizer(does, library)
        return
    with pytest.raises(TokenizerEndsProcessError, match=told):
        try_tokenizer(does, library)
    with pytest.raises(TokenizerEndsProcessError, match=told):  # it is not remembered as sound
        try_tokenizer(does, library)


def test_a_sound_one_is_tried_once_on_a_machine(library: str, tmp_path: Path) -> None:
    content = (write_checkpoint(tmp_path / "checkpoint") / "tokenizer.json").read_bytes()
    with patch.object(subprocess, "run", wraps=subprocess.run) as begun:
        for _ in range(2):
            try_tokenizer(content, "tokenizers")
            tokenizer_trial._tried.clear()  # as in another process
        assert begun.call_count == 1
        try_tokenizer(content + b" ", "tokenizers")
        assert begun.call_count == 2


def test_without_the_library_nothing_is_tried(library: str) -> None:
    try_tokenizer(b"os.abort()", "no_library_of_this_name")
