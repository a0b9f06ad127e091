"""A training that is stopped goes on from its state as if nothing had happened; no other training does."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedlora.config.run import TrainConfig
from fedlora.errors import ConfigError, DataError
from fedlora.files.tensor_file import TensorFile, TensorPlan, write_tensor_file
from fedlora.lora.adapter import Adapter
from fedlora_client.data.windows import Windows
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.ops.compute import Compute, choose_compute
from fedlora_client.training.measuring import evaluate
from fedlora_client.training.trainer import Evaluation, Saving, TrainResult, Watcher, train
from fedlora_client.training.training import Span
from numpy.typing import NDArray

from tests.client.train_cases import TEXT, assert_equal_bits, windows_of
from tests.reference.agreement import assert_close
from tests.tiny.adapters import ALL_RANKS, changed, random_adapter
from tests.tiny.llamas import Packs, Variant

STEPS = 6
NOBODY = Watcher()
CONFIGS = {
    "plain": TrainConfig(steps=STEPS, batch_size=3, sequence_length=12, lr=3e-3),
    "everything": TrainConfig(
        steps=STEPS, batch_size=5, sequence_length=12, lr=3e-3, dropout=0.2, schedule="cosine", warmup_steps=2,
        lora_plus_ratio=8.0, weight_decay=0.1, max_grad_norm=0.5,
    ),
    "fedprox": TrainConfig(steps=STEPS, batch_size=3, sequence_length=12, lr=3e-3, fedprox_mu=3.0),
}  # fmt: skip
CONFIG = CONFIGS["everything"]
Tensors = dict[str, NDArray[np.float32]]
Content = tuple[Tensors, dict[str, str]]  # of a state: (tensors, metadata)


class Stop(Exception):  # noqa: N818
    """The device died."""


def dying_at(step: int) -> Watcher:
    def die(done: int, loss: float) -> None:
        if done == step:
            raise Stop

    return Watcher(on_step=die)


def run(decoder: Decoder, config: TrainConfig = CONFIG, watcher: Watcher = NOBODY, **changes: Any) -> TrainResult:
    """A training in which each of `changes` takes the place of what it is by default."""
    known: dict[str, Any] = {
        "adapter": random_adapter(decoder.base, ALL_RANKS),
        "windows": windows_of(decoder.base),
        "config": config,
        "generator": np.random.default_rng(4),
        "watcher": watcher,
        "span": Span(2, 20),
    }
    return train(decoder, **{**known, **changes})


def assert_same(got: TrainResult, expected: TrainResult) -> None:
    assert_equal_bits(got.adapter, expected.adapter)
    assert (got.losses, got.tokens, got.evaluations) == (expected.losses, expected.tokens, expected.evaluations)


def stopped(decoder: Decoder, file: Path, **changes: Any) -> Path:
    """The state of a training that died in its fifth step."""
    with pytest.raises(Stop):
        run(decoder, watcher=dying_at(4), saving=Saving(file=file, every=2), **changes)
    assert file.is_file()
    return file


@pytest.mark.parametrize(("config", "every"), [("plain", 4), ("everything", 1), ("everything", 2), ("fedprox", 4)])
def test_a_training_that_dies_at_any_step_ends_as_if_it_had_not(
    decoder: Decoder, tmp_path: Path, config: str, every: int
) -> None:
    expected = run(decoder, CONFIGS[config])
    for step in range(STEPS):
        saving = Saving(file=tmp_path / f"state-{step}", every=every)
        with pytest.raises(Stop):
            run(decoder, CONFIGS[config], dying_at(step), saving=saving)
        told: list[int] = []
        watcher = Watcher(on_step=lambda step, loss, told=told: told.append(step))  # type: ignore[misc]
        assert_same(run(decoder, CONFIGS[config], watcher, saving=saving), expected)
        assert told == list(range(step // every * every, STEPS))  # no step is done again that was saved
        assert list(tmp_path.iterdir()) == []  # the state is gone, and nothing is beside it


def test_a_training_that_dies_again_and_again_ends_as_if_it_had_not(decoder: Decoder, tmp_path: Path) -> None:
    saving = Saving(file=tmp_path / "state", every=1)
    for step in range(STEPS):
        with pytest.raises(Stop):
            run(decoder, watcher=dying_at(step), saving=saving)
    assert_same(run(decoder, saving=saving), run(decoder))


def test_the_best_adapter_and_the_patience_outlive_a_stop(decoder: Decoder, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, lr=0.05, dropout=0.0, schedule="constant", warmup_steps=0, steps=12)
    held_out = windows_of(decoder.base, TEXT.upper())

    evaluation = Evaluation(windows=held_out, every=1, patience=3)
    expected = run(decoder, config, evaluation=evaluation)
    losses = [loss for _, loss in expected.evaluations]
    assert len(losses) < config.steps  # patience ends it, and the best is not the last
    assert losses.index(min(losses)) == len(losses) - 1 - 3
    assert_close(evaluate(decoder, expected.adapter, held_out)[0], min(losses))
    for step in (0, 3, len(expected.losses) - 1):  # before there is a state, right after one, and at the end
        saving = Saving(file=tmp_path / f"state-{step}", every=2)
        with pytest.raises(Stop):
            run(decoder, config, dying_at(step), saving=saving, evaluation=evaluation)
        assert_same(run(decoder, config, saving=saving, evaluation=evaluation), expected)


@pytest.mark.parametrize("trains", ["A", "B"])
def test_a_training_of_one_factor_beside_a_frozen_adapter_that_dies_ends_as_if_it_had_not(
    decoder: Decoder, tmp_path: Path, trains: str
) -> None:
    config = dataclasses.replace(CONFIG, fedprox_mu=0.5)
    evaluation = Evaluation(windows=windows_of(decoder.base, TEXT.upper()), every=2)
    changes: dict[str, Any] = {
        "config": config,
        "trains": trains,
        "frozen": random_adapter(decoder.base, seed=7),
        "evaluation": evaluation,
    }
    expected = run(decoder, **changes)
    file = stopped(decoder, tmp_path / "state", **changes)
    assert TensorFile(file).entries.keys() == {f"lora_{trains}"}
    assert_same(run(decoder, saving=Saving(file=file), **changes), expected)


@pytest.fixture(scope="module")
def known_state(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a training that died in its fifth step left."""
    return stopped(decoder, tmp_path_factory.mktemp("stopped") / "state").read_bytes()


@pytest.fixture
def state(known_state: bytes, tmp_path: Path) -> Path:
    """A file of it, to change."""
    (tmp_path / "state").write_bytes(known_state)
    return tmp_path / "state"


def test_a_state_is_written_into_a_directory_that_is_not_there_yet(decoder: Decoder, tmp_path: Path) -> None:
    stopped(decoder, tmp_path / "deep" / "in" / "state")


OTHERS: dict[str, Callable[[Decoder], dict[str, Any]]] = {
    "data": lambda decoder: {"windows": windows_of(decoder.base, TEXT * 2 + TEXT.upper())},
    "targets": lambda decoder: {
        "windows": dataclasses.replace(windows_of(decoder.base), targets=windows_of(decoder.base).targets.flip(1))
    },
    "starts": lambda decoder: {
        "windows": dataclasses.replace(windows_of(decoder.base), starts=windows_of(decoder.base).starts + 1)
    },
    "configuration": lambda decoder: {"config": dataclasses.replace(CONFIG, lr=2e-3)},
    "number of steps": lambda decoder: {"config": dataclasses.replace(CONFIG, steps=STEPS + 1)},
    "adapter": lambda decoder: {"adapter": random_adapter(decoder.base, ALL_RANKS, seed=9)},
    "alpha": lambda decoder: {
        "adapter": Adapter(dataclasses.replace(ALL_RANKS, alpha=6.5), random_adapter(decoder.base, ALL_RANKS).pairs)
    },
    "seed": lambda decoder: {"generator": np.random.default_rng(5)},
    "place in the run": lambda decoder: {"span": Span(3, 20)},
    "factors that train": lambda decoder: {"trains": "B"},
    "what stands beside": lambda decoder: {"frozen": random_adapter(decoder.base)},
    "length of the run": lambda decoder: {"span": Span(2, 21)},
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_state_of_another_training_is_refused_by_its_file_and_left_alone(
    decoder: Decoder, state: Path, what: str
) -> None:
    before = state.read_bytes()
    with pytest.raises(ConfigError, match=r"state: cannot go on .*: it is another training's: .*; remove it to begin"):
        run(decoder, saving=Saving(file=state), **OTHERS[what](decoder))
    assert state.read_bytes() == before


def test_the_state_on_another_base_or_compute_is_refused(packs: Packs, compute: Compute, tmp_path: Path) -> None:
    base, other = packs(Variant()), packs(Variant(seed=5))
    file = stopped(Decoder(base, compute), tmp_path / "state")
    for decoder in (
        Decoder(other, compute),
        Decoder(base, choose_compute("bfloat16", "on", "cpu")),
        Decoder(base, choose_compute("float32", "off", "cpu")),
    ):
        with pytest.raises(ConfigError, match=r"state: cannot go on .*: it (is another training's: |was computed by )"):
            run(decoder, saving=Saving(file=file), adapter=random_adapter(base, ALL_RANKS), windows=windows_of(base))


def cut(name: str, rows: slice, numbers: slice = slice(None)) -> Callable[[Content], Content]:
    return lambda content: ({**content[0], name: content[0][name][rows, numbers]}, content[1])


def progress(**changes: object) -> Callable[[Content], Content]:
    """The state with other progress; None takes a key away."""

    def change(content: Content) -> Content:
        known = {**json.loads(content[1]["progress"]), **changes}
        text = json.dumps({key: value for key, value in known.items() if value is not None})
        return content[0], {**content[1], "progress": text}

    return change


DAMAGES: dict[str, Callable[[Content], Content]] = {
    "no format": lambda content: (content[0], {k: v for k, v in content[1].items() if k != "format"}),
    "another format": lambda content: (content[0], {**content[1], "format": "fedlora-training-0"}),
    "no tensors": lambda content: ({}, content[1]),
    "a tensor missing": lambda content: ({"lora_A": content[0]["lora_A"]}, content[1]),
    "a moment missing": cut("lora_B", slice(2)),
    "numbers missing": cut("lora_A", slice(None), slice(-1)),
    "one number for all": cut("lora_A", slice(None), slice(1)),
    "a best A without a best B": lambda content: (
        {**content[0], "lora_A": np.concatenate((content[0]["lora_A"], content[0]["lora_A"][:1]))}, content[1]
    ),
    "circumstances without end": lambda content: (content[0], {**content[1], "circumstances": "[" * 100_000}),
    "an endless micro-batch": lambda content: (
        content[0],
        {
            **content[1],
            "circumstances": json.dumps({**json.loads(content[1]["circumstances"]), "micro_batch": float("inf")}),
        },
    ),
    "progress without end": lambda content: (content[0], {**content[1], "progress": "[" * 100_000}),
    "no progress": lambda content: (content[0], {k: v for k, v in content[1].items() if k != "progress"}),
    "progress that is no JSON": lambda content: (content[0], {**content[1], "progress": "{"}),
    "progress that is a list": lambda content: (content[0], {**content[1], "progress": "[1]"}),
    "no step": progress(step=None),
    "a step that is a word": progress(step="four"),
    "an endless step": progress(step=float("inf")),
    "a negative step": progress(step=-1, losses=[]),
    "a step after the last": progress(step=STEPS + 1, losses=[1.0] * (STEPS + 1)),
    "fewer losses than steps": progress(losses=[1.0]),
    "losses that are words": progress(losses=["a"] * 4),
    "tokens that are a word": progress(tokens="many"),
    "evaluations that are none": progress(evaluations=[1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_by_its_file(decoder: Decoder, state: Path, damage: str) -> None:
    known = TensorFile(state, max_header_bytes=1 << 24)
    tensors, metadata = DAMAGES[damage](({name: known.float32(name).copy() for name in known.entries}, known.metadata))
    plans = [TensorPlan(name=name, dtype="F32", shape=array.shape) for name, array in tensors.items()]

    def fill(plan: TensorPlan) -> Iterator[NDArray[Any]]:
        yield tensors[plan.name]

    state.unlink()
    write_tensor_file(state, plans, fill, metadata)
    with pytest.raises(
        ConfigError, match=r"state: cannot go on from this state of a training: .*; remove it to begin anew"
    ):
        run(decoder, saving=Saving(file=state))


@pytest.mark.parametrize("size", [0, 5, 9, 100, -1])
def test_a_truncated_state_is_refused_by_its_file(decoder: Decoder, state: Path, size: int) -> None:
    state.write_bytes(state.read_bytes()[:size])
    with pytest.raises(
        ConfigError, match=r"state: cannot go on from this state of a training: .*; remove it to begin anew"
    ):
        run(decoder, saving=Saving(file=state))


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(decoder: Decoder, tmp_path: Path) -> None:
    windows = windows_of(decoder.base)
    saving = Saving(file=tmp_path / "state", every=1)

    class Breaking(Decoder):
        def add_gradients(self, *arguments: Any) -> torch.Tensor:
            losses = super().add_gradients(*arguments)
            return losses * float("nan") if self.breaks() else losses

        breaks: Callable[[], bool] = staticmethod(lambda: False)

    breaking = Breaking(decoder.base, decoder.compute)
    done: list[int] = []
    breaking.breaks = lambda: len(done) == 3
    with pytest.raises(DataError, match=r"^step 4: the loss is nan"):
        run(breaking, watcher=Watcher(on_step=lambda step, loss: done.append(step)), saving=saving, windows=windows)
    assert done == [0, 1, 2]
    # With what was wrong mended, it goes on from there.
    assert_same(run(decoder, saving=saving), run(decoder))


def test_without_saving_nothing_is_written(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(decoder)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_is_trained_is_never_changed(decoder: Decoder, tmp_path: Path) -> None:
    given = random_adapter(decoder.base, ALL_RANKS)
    same = changed(given, lambda module, lora_A, lora_B: (lora_A, lora_B))
    run(decoder, adapter=given, saving=Saving(file=stopped(decoder, tmp_path / "state")))
    assert_equal_bits(given, same)


def test_windows_of_a_training_are_never_changed(decoder: Decoder) -> None:
    windows: Windows = windows_of(decoder.base)
    run(decoder, windows=windows)
    same = windows_of(decoder.base)
    for name in ("inputs", "targets", "starts"):
        assert torch.equal(getattr(windows, name), getattr(same, name))
