"""Opening a Hugging Face checkpoint, one file or sharded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fedlora.base.checkpoint import Checkpoint, find_checkpoint
from fedlora.errors import CheckpointError
from fedlora.files.tensor_file import Dtype

from tests.tiny.checkpoints import LLAMA, random_weights, write_checkpoint

NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_rows_are_the_rows_that_were_written(tmp_path: Path, dtype: Dtype, shards: int) -> None:
    weights = random_weights(LLAMA)
    for name, values in weights.items():  # values that every dtype holds exactly
        weights[name] = (np.rint(values * 64) / 64).astype(np.float32)
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", weights=weights, dtype=dtype, shards=shards))
    for name, values in weights.items():
        checkpoint.check(name, values.shape)
        np.testing.assert_array_equal(checkpoint.rows(name, 0, len(values)), values)
        np.testing.assert_array_equal(checkpoint.rows(name, 3, 5), values[3:5])
    assert checkpoint.columns(NAME) == 72


def test_a_tensor_that_is_missing_is_named(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tiny-llama: tensor model.nothing is missing; the weights hold "):
        Checkpoint(checkpoint).check("model.nothing", (1,))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(checkpoint).check(NAME, (32, 80))
    assert str(caught.value).startswith(f"{checkpoint}: {NAME} has shape (32, 72); config.json implies (32, 80)")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused_by_file_and_tensor(tmp_path: Path, value: float) -> None:
    weights = random_weights(LLAMA)
    weights[NAME][7, 3] = value
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", weights=weights))
    assert checkpoint.rows(NAME, 0, 7).shape == (7, 72)
    with pytest.raises(CheckpointError, match=rf"model.safetensors: {NAME} holds NaN or infinity in rows 6 to 9"):
        checkpoint.rows(NAME, 6, 9)


def test_a_directory_without_weights_is_refused_with_what_was_expected(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model.safetensors and no model.safetensors.index.json; expected"):
        Checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config.json: cannot be read: No such file"),
        (b"{", r"config.json: not JSON"),
        (b"\xff", r"config.json: not JSON"),
        (b"[]", r"config.json: expected a JSON object, got list"),
        (b"[" * 100_000, r"config.json: not JSON"),
    ],
    ids=["missing", "cut", "bytes", "list", "abyss"],
)
def test_a_config_that_cannot_be_read_is_refused_by_name(checkpoint: Path, content: bytes | None, message: str) -> None:
    config = checkpoint / "config.json"
    config.unlink()
    if content is not None:
        config.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(checkpoint)


@pytest.mark.parametrize("missing", ["gone.safetensors", "../model.safetensors", "/etc/passwd", "..", 5, None, ["x"]])
def test_an_index_that_names_no_file_of_the_checkpoint_is_refused(tmp_path: Path, missing: object) -> None:
    directory = write_checkpoint(tmp_path / "c", shards=2)
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][NAME] = missing
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json: "):
        Checkpoint(directory)


@pytest.mark.parametrize("weight_map", [[], 5, None, "model.safetensors"])
def test_an_index_whose_weight_map_is_no_object_is_refused_by_name(tmp_path: Path, weight_map: object) -> None:
    directory = write_checkpoint(tmp_path / "c", shards=2)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json: "):
        Checkpoint(directory)


def test_a_shard_that_was_cut_is_refused_by_name(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "c", shards=2)
    shard = directory / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: truncated"):
        Checkpoint(directory)


@pytest.mark.parametrize("source", ["./no/such", "/no/such", "~/no", "no-slash", "one/two/three"])
def test_a_path_that_is_no_directory_is_never_looked_for_on_the_hub(source: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"no such directory; expected one with config.json and model.safetensors"
    ):
        find_checkpoint(source)


def test_a_file_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"a/b: .*expected a directory with config.json and model.safetensors"):
        find_checkpoint("a/b")


def test_a_local_directory_is_found_as_it_is(checkpoint: Path) -> None:
    assert find_checkpoint(str(checkpoint)) == checkpoint
