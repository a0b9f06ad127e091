"""A base with an adapter folded in, as `fedlora export --merge` writes it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fedlora.base.pack import BasePack, open_pack
from fedlora.errors import AdapterMismatchError, ConfigError
from fedlora.exported.inputs import input_values
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_export.commands.export import export
from fedlora_export.export import export_base
from fedlora_export.merge import MergeLoss, export_merged, merge_loss

from tests.export.graph_runs import graph_logits, open_session
from tests.tiny.adapters import random_adapter
from tests.tiny.kinds import adapter_of_kind
from tests.tiny.llamas import VARIANTS, Packs
from tests.tiny.tokens import random_tokens

EIGHT_BITS = VARIANTS["8-bit-symmetric-untied-mqa-head32"]


@pytest.fixture
def eight_bits(packs: Packs) -> BasePack:
    return packs(EIGHT_BITS)


def test_the_merged_graph_is_close_to_the_base_with_the_adapter_apart(eight_bits: BasePack, tmp_path: Path) -> None:
    adapter, tokens = random_adapter(eight_bits), random_tokens(eight_bits, 2, 12)
    graph, loss = export_merged(eight_bits, adapter, tmp_path / "merged", accuracy_level=FLOAT_ACCURACY)
    assert graph.path == tmp_path / "merged" / "decoder.base.onnx"
    assert isinstance(loss, MergeLoss)
    (apart,) = export_base(eight_bits, tmp_path / "apart", accuracy_level=FLOAT_ACCURACY)
    merged_pack = open_pack(tmp_path / "merged")
    merged = graph_logits(open_session(graph.path), merged_pack, tokens)
    with_adapter = graph_logits(open_session(apart.path), eight_bits, tokens, input_values(adapter))
    without = graph_logits(open_session(apart.path), eight_bits, tokens)
    # 8 bits are rounded twice, which is little beside what the adapter does.
    assert np.abs(merged - with_adapter).max() < 0.1 * np.abs(with_adapter - without).max()
    assert 0 <= loss.divergence < 0.05
    assert loss.agreement > 0.9
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_the_loss_sees_a_base_without_the_adapter(eight_bits: BasePack, tmp_path: Path) -> None:
    """What the loss is for: were the adapter lost on the way, it would be large."""
    adapter = random_adapter(eight_bits)
    compat, bare = export_base(
        eight_bits, tmp_path / "model", profiles=("compat", "base"), accuracy_level=FLOAT_ACCURACY
    )
    lost = merge_loss(compat.path, eight_bits, adapter, bare.path)
    assert lost.divergence > 0.5
    assert lost.agreement < 0.9
    assert 0 < lost.entropy < np.log(eight_bits.shape.vocab_size)


def test_the_command_merges_into_a_folder_of_its_own_and_tells_the_loss(eight_bits: BasePack, tmp_path: Path) -> None:
    content = PeftDirectory(adapter=random_adapter(eight_bits), base_fingerprint=eight_bits.fingerprint)
    write_peft(tmp_path / "adapter", content)
    arguments = [str(eight_bits.directory), "--merge", str(tmp_path / "adapter")]
    refused = CliRunner().invoke(export, arguments)
    assert isinstance(refused.exception, ConfigError)
    assert "name one with -o" in str(refused.exception)
    result = CliRunner().invoke(export, [*arguments, "-o", str(tmp_path / "merged")], catch_exceptions=False)
    assert "nats a token worse than with the adapter apart" in result.stderr
    assert open_pack(tmp_path / "merged").fingerprint != eight_bits.fingerprint


def test_an_adapter_of_another_base_is_not_merged(packs: Packs, eight_bits: BasePack, tmp_path: Path) -> None:
    content = PeftDirectory(adapter=random_adapter(eight_bits), base_fingerprint="0" * 64)
    write_peft(tmp_path / "adapter", content)
    result = CliRunner().invoke(
        export, [str(eight_bits.directory), "--merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "merged")]
    )
    assert isinstance(result.exception, AdapterMismatchError)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", ["ia3", "dora"])
def test_the_command_merges_what_no_graph_takes_apart_and_tells_how_far_from_torch_it_is(
    eight_bits: BasePack, tmp_path: Path, kind: str
) -> None:
    content = PeftDirectory(adapter=adapter_of_kind(kind, eight_bits), base_fingerprint=eight_bits.fingerprint)
    write_peft(tmp_path / "adapter", content)
    arguments = [str(eight_bits.directory), "--merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "merged")]
    result = CliRunner().invoke(export, [*arguments, "--accuracy", "float32"], catch_exceptions=False)
    told = re.search(
        r"merged: (\S+) off the scores with the adapter apart, which the adapter moves by (\S+)", result.stderr
    )
    assert told is not None
    assert float(told[1]) < 0.1 * float(told[2])
