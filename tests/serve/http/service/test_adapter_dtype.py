"""Adapters in float16: half the memory, nearly the same scores, on the graph that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.errors import ConfigError
from fedlora.exported.profiles import Profile
from fedlora_serve.http.service.config import ServeConfig
from fedlora_serve.http.service.config_file import read_config

from tests.serve.http.real_services import ADMIN_KEY, opened
from tests.serve.http.services import Client

PROMPT = [5, 3, 200, 14, 15, 9, 26]


def scores_and_sizes(model: Path, folder: Path, **fields: Any) -> tuple[dict[str, float], int]:
    """The log-probabilities after a prompt with an adapter, and the bytes that it takes."""
    with opened(model, adapters={"one": str(folder / "adapter-3")}, **fields) as state:
        client = Client(state, Authorization=f"Bearer {ADMIN_KEY}")
        body = {"model": "one", "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "ignore_eos": True, "logprobs": 20}
        [top] = client.post("/v1/completions", body).json()["choices"][0]["logprobs"]["top_logprobs"]
        [listed] = client.get("/v1/adapters").json()["data"]
        return top, listed["size_bytes"]


def test_float16_halves_the_memory_of_an_adapter_and_hardly_moves_a_score(
    folders: dict[Profile, Path], adapter_folder: Path
) -> None:
    wide, wide_bytes = scores_and_sizes(folders["kernel"], adapter_folder)
    narrow, narrow_bytes = scores_and_sizes(folders["kernel"], adapter_folder, adapter_dtype="float16")
    assert 0.5 <= narrow_bytes / wide_bytes < 0.52  # both have the same table beside the values
    both = sorted(wide.keys() & narrow.keys())
    assert len(both) > 15
    difference = np.abs([wide[token] - narrow[token] for token in both]).max()
    assert 0 < difference < 1e-2


def test_float16_is_refused_where_no_graph_reads_it(folders: dict[Profile, Path], encoder_model: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"decoder\.rows\.onnx takes float32 alone.*--profile kernel"),
        opened(folders["rows"], adapter_dtype="float16"),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="is an encoder, which takes float32 alone"),
        opened(encoder_model, adapter_dtype="float16"),
    ):
        pass


def test_a_file_and_the_command_line_say_which(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("adapter_dtype = 'float16'\n")
    assert ServeConfig().layout == "float32"
    assert read_config(file, {}, {}).layout == "float16"
    assert read_config(file, {"adapter_dtype": "float32"}, {}).layout == "float32"
    with pytest.raises(ConfigError, match="adapter_dtype must be float32 or float16, got 'int8'"):
        ServeConfig(adapter_dtype="int8")
