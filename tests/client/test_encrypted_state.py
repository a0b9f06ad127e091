"""What a device keeps of its trainings is encrypted where it lies, and the trainings are the same to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora.files.at_rest import MAGIC, key_id_of
from fedlora.files.at_rest_key import VARIABLE, WrappingKey
from fedlora.lora.config import LoraConfig
from fedlora_client.courier.question import Answer, Question
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.kept_factors import KeptFactors
from fedlora_client.service.kept_answer import KeptAnswer
from fedlora_client.training.trainer import Saving

from tests.client.training.test_training_state import assert_same, run, stopped
from tests.tiny.adapters import random_adapter
from tests.tiny.power import power

LORA = LoraConfig(rank=2, alpha=8.0)


def kept(folder: Path) -> KeptFactors:
    return KeptFactors(folder=folder, factor="B", whose="kitchen", run="1")


def test_kept_factors_are_encrypted_and_put_back(at_rest_key: WrappingKey, base: BasePack, tmp_path: Path) -> None:
    mine, came = random_adapter(base, LORA, 1), random_adapter(base, LORA, 2)
    kept(tmp_path / "k").keep(mine, 1)
    (file,) = (tmp_path / "k").iterdir()
    assert key_id_of(file) == at_rest_key.id.hex()
    whole = kept(tmp_path / "k").put_into(came, newest=1)
    for module, pair in whole.pairs.items():
        assert np.array_equal(pair.lora_B, mine.pairs[module].lora_B)
        assert np.array_equal(pair.lora_A, came.pairs[module].lora_A)


def test_kept_factors_of_another_round_are_refused(at_rest_key: WrappingKey, base: BasePack, tmp_path: Path) -> None:
    kept(tmp_path / "k").keep(random_adapter(base, LORA), 1)
    (file,) = (tmp_path / "k").iterdir()
    file.rename(file.with_name(file.name.replace("0001", "0002")))
    with pytest.raises(ConfigError, match="not what was written under this name"):
        kept(tmp_path / "k").put_into(random_adapter(base, LORA), newest=2)


def test_plain_ones_of_before_are_taken(base: BasePack, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    mine = random_adapter(base, LORA, 1)
    kept(tmp_path / "k").keep(mine, 1)
    request.getfixturevalue("at_rest_key")
    module = next(iter(mine.pairs))
    whole = kept(tmp_path / "k").put_into(random_adapter(base, LORA, 2), newest=1)
    assert np.array_equal(whole.pairs[module].lora_B, mine.pairs[module].lora_B)


def test_whenever_the_power_is_cut_the_factor_of_one_round_is_there(
    at_rest_key: WrappingKey, base: BasePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, adapters = tmp_path / "k", {number: random_adapter(base, LORA, number) for number in (1, 2, 3)}
    module = next(iter(adapters[1].pairs))
    folder.mkdir()
    with power(folder) as counted:
        kept(folder).keep(adapters[1], 1)
    for cut_at in range(counted.writes + 2):
        for file in folder.iterdir():
            file.unlink()
        kept(folder).keep(adapters[1], 1)
        with power(folder, cut_at):
            kept(folder).keep(adapters[2], 2)
        got = kept(folder).put_into(adapters[3], newest=2).pairs[module].lora_B
        assert any(np.array_equal(got, adapters[number].pairs[module].lora_B) for number in (1, 2))


def test_a_training_that_dies_goes_on_from_an_encrypted_state(
    decoder: Decoder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    expected = run(decoder)
    key = request.getfixturevalue("at_rest_key")
    file = stopped(decoder, tmp_path / "state")
    assert key_id_of(file) == key.id.hex()
    assert_same(run(decoder, saving=Saving(file=file, every=2)), expected)


def test_a_state_that_was_changed_or_has_no_key_is_refused(
    decoder: Decoder, tmp_path: Path, at_rest_key: WrappingKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stopped(decoder, tmp_path / "state")
    whole = file.read_bytes()
    file.write_bytes(whole[:500] + bytes([whole[500] ^ 8]) + whole[501:])
    with pytest.raises(ConfigError, match="not what was written"):
        run(decoder, saving=Saving(file=file, every=2))
    file.write_bytes(whole)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match="and there is none"):
        run(decoder, saving=Saving(file=file, every=2))


def test_the_last_answer_is_encrypted_and_given_again(at_rest_key: WrappingKey, tmp_path: Path) -> None:
    asked = Question(kind="train", run_config={}, run_id=1, seconds=9.0, data=b"down")
    answer = KeptAnswer(tmp_path / "answer")
    answer.keep(asked, "1", Answer(device="kitchen", data=b"secret update"))
    content = (tmp_path / "answer").read_bytes()
    assert content.startswith(MAGIC) and b"secret" not in content
    assert (tmp_path / "answer").stat().st_mode & 0o777 == 0o600
    found = answer.of(asked, "1")
    assert found is not None and bytes(found.data) == b"secret update"
    (tmp_path / "answer").write_bytes(content[:-1])
    assert answer.of(asked, "1") is None
