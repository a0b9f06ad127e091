"""Updates on the wire: what was sent comes back, and bytes from a stranger give an update or an UpdateError."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from fedlora.errors import UpdateError
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.lora.config import LoraConfig
from fedlora.lora.ranks import first_components
from fedlora.wire.codec import CODECS
from fedlora.wire.task import Task
from fedlora.wire.update import MAX_ROUND, Update, config_values, decode_update, encode_update, payload
from hypothesis import example, given
from hypothesis import strategies as st

from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import llama_shape

SHAPE = llama_shape(num_hidden_layers=1)
UP = "model.layers.0.mlp.up_proj"
PREAMBLE = 9


def _update(config: LoraConfig | None = None, **changes: Any) -> Update:
    adapter = adapter_on(config or LoraConfig(rank=2, target_modules=("q_proj", "up_proj")), SHAPE.linear_modules())
    values: dict[str, Any] = {
        "adapter": adapter,
        "run": "a run",
        "server_round": 3,
        "base_fingerprint": "ab" * 32,
        "num_examples": 17,
        "metrics": {"loss": 1.5, "loss-before": 2.0},
    }
    return Update(**values | changes)


def _known(config: LoraConfig | None = None) -> Adapter:
    """What a receiver has: the adapter of another seed, in which a factor that came is told from its own."""
    config = config or LoraConfig(rank=2, target_modules=("q_proj", "up_proj"))
    return adapter_on(config, SHAPE.linear_modules(), seed=5)


def _down(**changes: Any) -> Update:
    """An update with everything that one may have."""
    frozen = adapter_on(LoraConfig(rank=1, alpha=3.0, target_modules=("q_proj", "up_proj")), SHAPE.linear_modules())
    return _update(**{"factors": "B", "frozen": frozen, "task": Task(trains="AB", sends="B"), **changes})


SOUND = encode_update(_update())
DOWN = encode_update(_down())


def _header(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[5:PREAMBLE], "little")
    header: dict[str, Any] = json.loads(data[PREAMBLE : PREAMBLE + length])
    return header


def _with_header(header: object, data: bytes = SOUND) -> bytes:
    """`data` with another header before the same payload."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    numbers = data[PREAMBLE + int.from_bytes(data[5:PREAMBLE], "little") :]
    return data[:5] + len(text).to_bytes(4, "little") + text + numbers


def _use(update: Update) -> None:
    """What every receiver may do with an update that was accepted."""
    assert isinstance(update.run, str)
    assert isinstance(update.base_fingerprint, str)
    assert all(math.isfinite(value) for value in update.metrics.values())
    assert update.factors in ("AB", "A", "B")
    assert set(update.task.keeps) < set(update.task.trains)
    for adapter in (update.adapter, update.frozen) if update.frozen else (update.adapter,):
        for module, pair in adapter.pairs.items():
            assert pair.lora_A.shape[0] == pair.lora_B.shape[1] == adapter.config.rank_of(module)
            assert math.isfinite(adapter.config.scaling_of(module))


def _equal(one: Adapter, other: Adapter) -> bool:
    return one.pairs.keys() == other.pairs.keys() and all(
        np.array_equal(pair.lora_A, other.pairs[m].lora_A) and np.array_equal(pair.lora_B, other.pairs[m].lora_B)
        for m, pair in one.pairs.items()
    )


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(rank=1, target_modules=("q_proj",)),
        LoraConfig(rank=5, alpha=7.5, use_rslora=True),
        LoraConfig(rank=2, layers=(0,)),
        LoraConfig(rank=3, rank_pattern={UP: 6}, alpha_pattern={UP: 2.0}),
    ],
)
def test_what_is_encoded_is_decoded_equal(config: LoraConfig) -> None:
    sent = _update(config)
    got = decode_update(encode_update(sent))
    assert got.adapter.config == sent.adapter.config
    assert _equal(got.adapter, sent.adapter)
    assert list(got.adapter.pairs) == list(sent.adapter.pairs)
    assert (got.run, got.server_round, got.base_fingerprint) == (sent.run, sent.server_round, sent.base_fingerprint)
    assert (got.num_examples, got.metrics) == (sent.num_examples, sent.metrics)


@pytest.mark.parametrize("codec", list(CODECS))
@pytest.mark.parametrize("factors", ["A", "B"])
def test_a_factor_that_does_not_travel_is_the_receivers_own(factors: str, codec: str) -> None:
    sent, known = _update(), _known()
    whole, half = encode_update(sent, codec), encode_update(_update(factors=factors), codec)
    left_out = "BA"["AB".index(factors)]
    numbers = sum(getattr(pair, f"lora_{left_out}").size for pair in sent.adapter.pairs.values())
    assert abs(len(whole) - len(half) - numbers * CODECS[codec].dtype.itemsize) <= 64
    got, together = decode_update(half, lambda: known), decode_update(whole)
    assert got.factors == factors
    assert got.adapter.config == sent.adapter.config
    for module, pair in got.adapter.pairs.items():
        came, mine = f"lora_{factors}", f"lora_{left_out}"
        np.testing.assert_array_equal(getattr(pair, came), getattr(together.adapter.pairs[module], came))
        np.testing.assert_array_equal(getattr(pair, mine), getattr(known.pairs[module], mine))


def test_with_the_factor_that_both_have_half_an_update_decodes_to_the_whole() -> None:
    sent = _update()
    for factors in ("A", "B"):
        got = decode_update(encode_update(_update(factors=factors)), lambda: sent.adapter)
        assert _equal(got.adapter, decode_update(encode_update(sent)).adapter)


def test_a_smaller_adapter_is_completed_with_the_first_components_of_the_receivers() -> None:
    known = _known(LoraConfig(rank=6, alpha=8.0, target_modules=("q_proj", "up_proj")))
    trained = first_components(known, 4)
    for factors in ("A", "B"):
        got = decode_update(encode_update(_update(adapter=trained, factors=factors)), lambda: known)
        assert got.adapter.config == trained.config
        assert _equal(got.adapter, trained)


def test_what_the_receiver_has_is_asked_for_only_where_a_factor_is_missing() -> None:
    def known() -> Adapter:
        raise AssertionError

    assert _equal(decode_update(SOUND, known).adapter, _update().adapter)
    with pytest.raises(AssertionError):
        decode_update(DOWN, known)


@pytest.mark.parametrize(
    ("known", "reason", "message"),
    [
        (None, "wrong-factors", "only B came; expected A and B"),
        (LoraConfig(rank=1, target_modules=("q_proj", "up_proj")), "bad-shape", "of rank 2 came"),
        (LoraConfig(rank=2, target_modules=("q_proj",)), "bad-shape", "up_proj .* it is not what we hold"),
    ],
)
def test_half_an_update_for_whom_has_not_the_other_half_is_refused(
    known: LoraConfig | None, reason: str, message: str
) -> None:
    with pytest.raises(UpdateError, match=message) as caught:
        decode_update(DOWN, None if known is None else lambda: _known(known))
    assert caught.value.reason == reason


@pytest.mark.parametrize("factors", ["AB", "A", "B"])
def test_a_frozen_adapter_and_a_task_come_back_as_they_were(factors: str) -> None:
    task = Task(trains="B", sends="B")
    sent = _down(factors=factors, task=task)
    got = decode_update(encode_update(sent), _known)
    assert got.task == task
    assert got.frozen is not None
    assert sent.frozen is not None
    assert got.frozen.config == sent.frozen.config
    assert _equal(got.frozen, sent.frozen)
    plain = decode_update(SOUND)
    assert (plain.frozen, plain.task, plain.factors) == (None, Task(), "AB")


def test_the_numbers_of_an_update_begin_at_a_multiple_of_64_bytes() -> None:
    for length in range(70):
        data = encode_update(_update(run="r" * length))
        assert (PREAMBLE + int.from_bytes(data[5:PREAMBLE], "little")) % 64 == 0


@given(run=st.text(), server_round=st.integers(0, MAX_ROUND), num_examples=st.integers(0, 2**62), metrics=st.dictionaries(
    st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False), max_size=3))  # fmt: skip
def test_the_circumstances_come_back_as_they_were(
    run: str, server_round: int, num_examples: int, metrics: dict[str, float]
) -> None:
    sent = _update(run=run, server_round=server_round, num_examples=num_examples, metrics=metrics)
    got = decode_update(encode_update(sent))
    assert (got.run, got.server_round, got.num_examples) == (run, server_round, num_examples)
    assert got.metrics == metrics


@pytest.mark.parametrize("codec", list(CODECS))
def test_every_codec_carries_the_numbers_rounded_to_its_own(codec: str) -> None:
    sent = _update()
    got = decode_update(encode_update(sent, codec))
    for module, pair in sent.adapter.pairs.items():
        rounded = pair.lora_A.astype(CODECS[codec].dtype).astype(np.float32)
        np.testing.assert_array_equal(got.adapter.pairs[module].lora_A, rounded)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8).data])
def test_any_block_of_bytes_is_decoded(kind: Any) -> None:
    assert _equal(decode_update(kind(SOUND)).adapter, _update().adapter)


def test_a_decoded_update_keeps_no_hold_on_the_bytes() -> None:
    data = bytearray(SOUND)
    got = decode_update(memoryview(data))
    data[:] = bytes(len(data))
    assert _equal(got.adapter, _update().adapter)


def test_an_update_is_its_numbers_and_a_small_header() -> None:
    assert len(SOUND) - _update().adapter.size_bytes < 600


def test_metrics_that_are_not_finite_are_left_out() -> None:
    got = decode_update(encode_update(_update(metrics={"a": math.nan, "b": math.inf, "c": 1.0})))
    assert got.metrics == {"c": 1.0}


def test_the_configuration_as_plain_values_is_json_that_makes_it_again() -> None:
    config = LoraConfig(rank=3, rank_pattern={UP: 6}, alpha_pattern={UP: 2.0})
    values = json.loads(json.dumps(config_values(config)))
    assert LoraConfig(**values | {"target_modules": tuple(values["target_modules"])}) == config


@given(cut=st.integers(0, len(SOUND) - 1))
@example(cut=0)
@example(cut=8)
@example(cut=9)
@example(cut=len(SOUND) - 1)
def test_an_update_cut_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(UpdateError) as caught:
        decode_update(SOUND[:cut])
    assert caught.value.reason in ("bad-header", "truncated")


@given(extra=st.binary(min_size=1, max_size=20))
def test_an_update_with_bytes_after_its_end_is_refused(extra: bytes) -> None:
    with pytest.raises(UpdateError, match="payload of") as caught:
        decode_update(SOUND + extra)
    assert caught.value.reason == "truncated"


HEADER_END = PREAMBLE + int.from_bytes(SOUND[5:PREAMBLE], "little")
DOWN_END = PREAMBLE + int.from_bytes(DOWN[5:PREAMBLE], "little")


@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, DOWN_END - 1) | st.integers(0, len(DOWN) - 1),
            st.integers(0, 255) | st.sampled_from(list(b'0129[]{}",:-.eE ABn')),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_half_an_update_with_a_frozen_adapter_and_bytes_changed_is_decoded_or_refused_and_nothing_else(
    changes: list[tuple[int, int]],
) -> None:
    data = bytearray(DOWN)
    for position, value in changes:
        data[position] = value
    try:
        _use(decode_update(bytes(data), _known))
    except UpdateError as error:
        assert error.reason


@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, HEADER_END - 1) | st.integers(0, len(SOUND) - 1),
            st.integers(0, 255) | st.sampled_from(list(b'0129[]{}",:-.eE ')),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_an_update_with_bytes_changed_is_decoded_or_refused_and_nothing_else(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for position, value in changes:
        data[position] = value
    try:
        _use(decode_update(bytes(data)))
    except UpdateError as error:
        assert error.reason


def test_every_single_byte_of_the_header_may_be_wrong() -> None:
    decoded = 0
    for position in range(HEADER_END):
        for value in b'\x00\xff09a[{"}],-.':
            data = bytearray(SOUND)
            data[position] = value
            try:
                _use(decode_update(bytes(data)))
                decoded += 1
            except UpdateError as error:
                assert error.reason == "bad-header" or error.reason in ("truncated", "bad-shape")
    assert decoded > 100


@given(data=st.binary(max_size=60))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for candidate in (data, b"FLUP\x02" + data, b"FLUP\x02" + len(data).to_bytes(4, "little") + data):
        with pytest.raises(UpdateError):
            decode_update(candidate)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=8,
)


@given(key=st.sampled_from(sorted(_header(SOUND))), value=JSON)
def test_a_header_with_an_arbitrary_value_is_decoded_or_refused_and_nothing_else(key: str, value: object) -> None:
    try:
        _use(decode_update(_with_header(_header(SOUND) | {key: value})))
    except UpdateError as error:
        assert error.reason in ("bad-header", "bad-shape", "truncated")


@given(key=st.sampled_from(sorted(_header(SOUND)["lora"])), value=JSON)
def test_a_lora_configuration_with_an_arbitrary_value_is_decoded_or_refused_and_nothing_else(
    key: str, value: object
) -> None:
    header = _header(SOUND)
    header["lora"][key] = value
    try:
        _use(decode_update(_with_header(header)))
    except UpdateError as error:
        assert error.reason in ("bad-header", "bad-shape", "truncated")


@given(
    header=st.fixed_dictionaries(
        {},
        optional={
            "factors": JSON | st.sampled_from(["AB", "A", "B", "BA", ""]),
            "task": JSON
            | st.fixed_dictionaries(
                {},
                optional={
                    "trains": JSON | st.sampled_from(["AB", "A", "B"]),
                    "sends": JSON | st.sampled_from(["AB", "A", "B"]),
                    "keeps": JSON,
                },
            ),
            "side": JSON
            | st.fixed_dictionaries(
                {},
                optional={
                    "lora": JSON | st.just(_header(DOWN)["lora"]) | st.just(_header(DOWN)["side"]["lora"]),
                    "modules": JSON | st.just(_header(DOWN)["modules"]) | st.just([["x", 1, 1]]),
                },
            ),
        },
    ),
    data=st.sampled_from([SOUND, DOWN]),
)
def test_a_header_with_other_factors_frozen_adapter_and_task_is_decoded_or_refused_and_nothing_else(
    header: dict[str, object], data: bytes
) -> None:
    try:
        _use(decode_update(_with_header(_header(data) | header, data), _known))
    except UpdateError as error:
        assert error.reason in ("bad-header", "bad-shape", "truncated")


@given(key=st.sampled_from(sorted(_header(DOWN)["side"]["lora"])), value=JSON)
def test_a_frozen_adapter_with_an_arbitrary_configuration_is_decoded_or_refused_and_nothing_else(
    key: str, value: object
) -> None:
    header = _header(DOWN)
    header["side"]["lora"][key] = value
    try:
        _use(decode_update(_with_header(header, DOWN), _known))
    except UpdateError as error:
        assert error.reason in ("bad-header", "bad-shape", "truncated")


def _changed(**changes: object) -> bytes:
    return _with_header(_header(SOUND) | changes)


def _lora(**changes: object) -> bytes:
    return _changed(lora=_header(SOUND)["lora"] | changes)


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "bad-header"),
    "other bytes": (b"GGUF" + SOUND[4:], "bad-header"),
    "another version": (SOUND[:4] + b"\x01" + SOUND[5:], "bad-header"),
    "a giant header": (SOUND[:5] + b"\xff\xff\xff\xff" + SOUND[9:], "bad-header"),
    "a header that is a list": (_with_header([]), "bad-header"),
    "a header that is not JSON": (_with_header(b"{"), "bad-header"),
    "an abyss of brackets": (_with_header(b"[" * 200_000), "bad-header"),
    "an unknown codec": (_changed(codec="zip"), "bad-header"),
    "a codec that is a list": (_changed(codec=["f32"]), "bad-header"),
    "another codec": (_changed(codec="f16"), "truncated"),
    "a round of text": (_changed(round="3"), "bad-header"),
    "a round that is true": (_changed(round=True), "bad-header"),
    "a round before the first": (_changed(round=-1), "bad-header"),
    "a round that no counter holds": (_changed(round=2**31), "bad-header"),
    "a round without end": (_changed(round=10**4000), "bad-header"),
    "a round that JSON itself refuses": (_with_header(b'{"round": ' + b"9" * 5000 + b"}"), "bad-header"),
    "examples in fractions": (_changed(num_examples=1.5), "bad-header"),
    "a run that is null": (_changed(run=None), "bad-header"),
    "metrics of text": (_changed(metrics={"a": "high"}), "bad-header"),
    "metrics of digits": (_changed(metrics={"a": "1"}), "bad-header"),
    "metrics of truth": (_changed(metrics={"a": True}), "bad-header"),
    "a shape of digits": (_changed(modules=[["q", "8", 32]]), "bad-header"),
    "a shape in fractions": (_changed(modules=[["q", 8.5, 32]]), "bad-header"),
    "a shape of whole floats": (_changed(modules=[["q", 8.0, 32]]), "bad-header"),
    "a shape of truth": (_changed(modules=[["q", True, 32]]), "bad-header"),
    "a module without a name": (_changed(modules=[[7, 8, 32]]), "bad-header"),
    "a shape of three sizes": (_changed(modules=[["q", 8, 8, 32]]), "bad-header"),
    "metrics of a giant": (_changed(metrics={"a": 10**400}), "bad-header"),
    "metrics that are a list": (_changed(metrics=[1]), "bad-header"),
    "modules that are missing": (_changed(modules=[]), "truncated"),
    "a module twice": (_changed(modules=[["q", 32, 32], ["q", 72, 32]]), "bad-header"),
    "a module of size zero": (_changed(modules=[["q", 0, 32]]), "bad-header"),
    "a module of negative size": (_changed(modules=[["q", -32, 32]]), "bad-header"),
    "a giant module": (_changed(modules=[["q", 2**31, 2**31]]), "truncated"),
    "a module of infinite size": (_changed(modules=[["q", math.inf, 2]]), "bad-header"),
    "too many modules": (_changed(modules=[[f"m{i}", 1, 1] for i in range(2049)]), "bad-header"),
    "a rank of zero": (_lora(rank=0), "bad-header"),
    "a rank of a million": (_lora(rank=10**6), "bad-header"),
    "another rank": (_lora(rank=3), "truncated"),
    "an alpha of infinity": (_lora(alpha=math.inf), "bad-header"),
    "an alpha that no float holds": (_lora(alpha=10**400), "bad-header"),
    "an unknown setting": (_lora(use_dora=True), "bad-header"),
    "a pattern that is a list": (_lora(rank_pattern=[1]), "bad-header"),
    "unknown factors": (_changed(factors="BA"), "bad-header"),
    "no factors": (_changed(factors=""), "bad-header"),
    "factors that are a list": (_changed(factors=["A"]), "bad-header"),
    "one factor of two that came": (_changed(factors="A"), "truncated"),
    "a task of unknown factors": (_changed(task={"trains": "C", "sends": "C"}), "bad-header"),
    "a task that sends what is frozen": (_changed(task={"trains": "A", "sends": "B"}), "bad-header"),
    "a task with more to do": (_changed(task={"trains": "A", "sends": "A", "deletes": "B"}), "bad-header"),
    "a task that is null": (_changed(task=None), "bad-header"),
    "a frozen adapter that did not come": (_changed(side=_header(DOWN)["side"]), "truncated"),
    "a frozen adapter that is a list": (_changed(side=[1]), "bad-header"),
    "a frozen adapter without modules": (_changed(side={"lora": _header(DOWN)["lora"]}), "bad-header"),
    "targets that are null": (_lora(target_modules=None), "bad-header"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_unsound_update_is_refused_with_a_reason_to_count_by(what: str) -> None:
    data, reason = REFUSED[what]
    with pytest.raises(UpdateError) as caught:
        decode_update(data)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("missing", sorted(_header(SOUND)))
def test_a_header_without_one_of_its_keys_is_refused(missing: str) -> None:
    header = _header(SOUND)
    del header[missing]
    with pytest.raises(UpdateError, match=missing) as caught:
        decode_update(_with_header(header))
    assert caught.value.reason == "bad-header"


def test_values_that_f16_cannot_hold_are_refused_when_encoding() -> None:
    sent = _update()
    pairs = {m: type(pair)(pair.lora_A * np.float32(1e6), pair.lora_B) for m, pair in sent.adapter.pairs.items()}
    with pytest.raises(UpdateError) as caught:
        encode_update(_update(adapter=Adapter(sent.adapter.config, pairs)), "f16")
    assert caught.value.reason == "overflow"


def test_a_header_names_layers_only_where_they_are_chosen() -> None:
    """So that a device of an earlier version reads every other task."""
    assert b'"layers"' not in encode_update(_update())
    assert b'"layers":[0]' in encode_update(_update(LoraConfig(rank=2, layers=(0,))))


HEAD = {
    "classifier.weight": np.arange(15, dtype=np.float32).reshape(3, 5), "classifier.bias": np.array([1, -2, 3], np.float32)
}  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("factors", ["AB", "A", "B"])
def test_extra_tensors_travel_whole_whichever_factors_do(codec: str, factors: Any) -> None:
    plain = _down(factors=factors, task=Task(trains=factors, sends=factors))
    sent = _down(adapter=with_extras(plain.adapter, HEAD), factors=factors, task=plain.task)
    got = decode_update(encode_update(sent, codec), _known)
    assert got.adapter.extras.keys() == HEAD.keys()
    for name, array in HEAD.items():
        np.testing.assert_array_equal(got.adapter.extras[name], array)
        assert got.adapter.extras[name].flags.writeable is False
    assert got.frozen is not None
    assert sent.frozen is not None
    assert not got.frozen.extras
    for module, pair in sent.frozen.pairs.items():
        expected = pair.lora_B.astype(CODECS[codec].dtype).astype(np.float32)
        np.testing.assert_array_equal(got.frozen.pairs[module].lora_B, expected)
    assert got.bound >= 14
    without, size = (len(payload(encode_update(each, codec))) for each in (plain, sent))
    assert size - without == 18 * CODECS[codec].dtype.itemsize


def test_an_update_without_extra_tensors_is_as_devices_of_earlier_versions_read_it() -> None:
    assert "extras" not in _header(SOUND)


@pytest.mark.parametrize(
    ("extras", "words"),
    [
        ({"a": 1}, "extras must be at most 4096 tensors"),
        ([["a", 3]] * 4097, "extras must be at most 4096 tensors"),
        ([["a", 3], ["a", 3]], "an extra tensor is there twice"),
        ([["a"]], "must be its name and one or two integers"),
        ([["a", 1, 2, 3]], "must be its name and one or two integers"),
        ([["a", "3"]], "must be its name and one or two integers"),
        ([[7, 3]], "must be its name and one or two integers"),
        ([["a", 0]], "the shape of 'a' is out of range"),
        ([["a", 1 << 32]], "the shape of 'a' is out of range"),
        ([3], "TypeError"),
        ([["a", 1 << 20]], "payload of"),
    ],
)
def test_extra_tensors_that_cannot_be_are_refused(extras: object, words: str) -> None:
    with pytest.raises(UpdateError, match=words):
        decode_update(_with_header({**_header(SOUND), "extras": extras}))
