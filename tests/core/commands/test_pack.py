"""`fedlora pack`: what it chooses where nobody says it, and that it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from fedlora.base.pack import open_pack
from fedlora.commands.pack import pack

from tests.tiny.encoders import save_encoder


def _packed(source: Path, output: Path, *options: str) -> tuple[int, int, str]:
    """(bits, block size, what was said)"""
    result = CliRunner().invoke(pack, [str(source), "-o", str(output), *options])
    assert result.exception is None, result.exception
    quantization = open_pack(output).quantization
    return quantization.bits, quantization.block_size, result.stderr


def test_a_decoder_is_packed_at_4_bits_without_a_word_about_it(tmp_path: Path, checkpoint: Path) -> None:
    bits, block, said = _packed(checkpoint, tmp_path / "pack")
    assert (bits, block) == (4, 32)
    assert "bits" not in said


@pytest.mark.parametrize("name", ["bert", "bare distilbert"])
def test_an_encoder_is_packed_at_8_bits_and_it_is_said_why(tmp_path: Path, name: str) -> None:
    save_encoder(name, tmp_path / "encoder")
    bits, block, said = _packed(tmp_path / "encoder", tmp_path / "pack")
    assert (bits, block) == (8, 64)
    assert "an encoder, packed at 8 bits" in said
    assert "--bits 4" in said


def test_what_is_asked_for_holds(tmp_path: Path) -> None:
    save_encoder("bare bert", tmp_path / "encoder")
    bits, block, said = _packed(tmp_path / "encoder", tmp_path / "pack", "--bits", "4", "--block-size", "32")
    assert (bits, block) == (4, 32)
    assert "8 bits" not in said
