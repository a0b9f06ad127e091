"""The learning rate of a run that names none: the published rule's own numbers, and where it is settled."""

from __future__ import annotations

import dataclasses

import pytest
from fedlora.base.pack import BasePack, open_pack
from fedlora.config.rate import default_rate
from fedlora.config.run import RunConfig, changed
from fedlora.errors import ConfigError
from fedlora.lora.kinds import BY_NAME, Kind

from tests.tiny.encoders import encoder_pack

LORA = BY_NAME["lora"]


@pytest.mark.parametrize(
    ("hidden_size", "rate"),
    # By hand, for the widths of Llama 3.2 1B and 3B, 3.1 8B and 70B; with two digits.
    [(2048, 4.9e-4), (3072, 3.6e-4), (4096, 2.9e-4), (8192, 1.7e-4)],
)
def test_it_is_the_published_rule(hidden_size: int, rate: float) -> None:
    model = dataclasses.replace(open_pack("nano").model, hidden_size=hidden_size)
    assert default_rate(model, LORA) == pytest.approx(rate)
    assert default_rate(model, LORA, all_weights=True) == pytest.approx(rate / 10, rel=0.06)  # it has two digits too


def test_an_encoder_takes_a_quarter_and_tiny_bases_are_bounded(base: BasePack) -> None:
    nano, encoder = open_pack("nano").model, encoder_pack("bert").model
    wide = dataclasses.replace(encoder, hidden_size=nano.hidden_size)
    assert default_rate(wide, LORA) == pytest.approx(default_rate(nano, LORA) / 4, rel=0.05)
    assert default_rate(base.model, LORA) == default_rate(dataclasses.replace(base.model, hidden_size=64), LORA)


def test_a_run_is_settled_once_and_a_number_stays(base: BasePack) -> None:
    left = RunConfig()
    with pytest.raises(ConfigError, match="auto"):
        _ = left.train.rate
    settled = left.settled(base)
    assert settled.train.rate == default_rate(base.model, LORA)
    assert settled.settled(open_pack("nano")) == settled
    assert RunConfig.from_flat(settled.flat(), "here") == settled
    assert changed(settled, ["train.lr=auto"]).train.lr == "auto"
    assert changed(left, ["train.lr=0.5"]).settled(base).train.rate == 0.5


@pytest.mark.parametrize("kind", BY_NAME.values(), ids=BY_NAME)
def test_each_kind_of_a_run_has_its_multiple_and_no_base_is_so_narrow_that_it_is_no_rate(
    base: BasePack, kind: Kind
) -> None:
    rate = changed(RunConfig(), [f"lora.method={kind.name}"]).settled(base).train.rate
    assert rate == pytest.approx(kind.rate * default_rate(base.model, LORA), rel=0.06)  # both have two digits


def test_a_rate_that_is_settled_too_high_for_its_ratio_is_refused(base: BasePack) -> None:
    with pytest.raises(ConfigError, match="lora_plus_ratio"):
        changed(RunConfig(), ["train.lora_plus_ratio=1000"]).settled(base)
