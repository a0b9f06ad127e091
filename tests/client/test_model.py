"""What a training needs of a model, whichever kind it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fedlora.base.heads import initial_extras
from fedlora.base.pack import BasePack
from fedlora.base.quantize import dequantize
from fedlora.data.examples import Labelled
from fedlora.family import EMBEDDING, HEAD
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.encoder.encoder import Encoder
from fedlora_client.model import Model, open_model
from fedlora_client.ops.compute import Compute
from fedlora_client.training.measuring import measure

from tests.tiny.encoders import save_encoder_pack
from tests.tiny.llamas import DEFAULT, Variant, save_pack

KINDS = {"decoder": Decoder, "encoder": Encoder}
EXAMPLES = [Labelled("one text", 0), Labelled("and another", 1)]
LENGTH = 16


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory, compute: Compute) -> Model:
    folder = tmp_path_factory.mktemp("pack") / "pack"
    return open_model(save_pack(DEFAULT, folder) if kind == "decoder" else save_encoder_pack("bert", folder), compute)


def test_a_pack_is_opened_as_the_kind_of_model_that_it_is(model: Model, kind: str) -> None:
    assert type(model) is KINDS[kind]
    assert model.unit == {"decoder": "token", "encoder": "text"}[kind]


def test_a_model_cuts_examples_into_what_it_takes_losses_of(model: Model, kind: str) -> None:
    windows = model.windows(EXAMPLES, LENGTH, "here")
    assert windows.inputs.shape[1] == LENGTH
    losses = model.losses(windows.inputs, windows.targets, windows.starts, None, model.workspace())
    assert int((losses > 0).sum()) == windows.learned_tokens
    assert kind == "decoder" or windows.learned_tokens == len(EXAMPLES)


def test_an_encoder_tells_its_accuracy_beside_the_loss(model: Model, kind: str) -> None:
    scores = measure(model, None, model.windows(EXAMPLES, LENGTH, "here")).scores
    assert scores.keys() == ({"accuracy", "macro_f1", "mcc"} if kind == "encoder" else set())
    assert all(-1 <= value <= 1 for value in scores.values())


def test_a_measurement_that_saves_memory_takes_one_window_at_a_time(model: Model) -> None:
    assert model.cut_measurement(LENGTH, frugal=True)[0] == 1
    assert model.cut_measurement(LENGTH, frugal=False)[0] > 1


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_that_trains_begins_as_the_bases(tmp_path: Path, tied: bool) -> None:
    base: BasePack = save_pack(Variant(tied=tied), tmp_path / "pack")
    (head,) = initial_extras(["lm_head"], base).values()
    np.testing.assert_array_equal(head, dequantize(base.matrix(EMBEDDING if tied else HEAD)))
