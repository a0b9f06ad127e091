"""Run configurations: one set of keys as TOML, as an object and flat, and errors that say what to change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fedlora.config.run import (
    DataConfig,
    LoraSection,
    RunConfig,
    ServerConfig,
    SimulationConfig,
    TrainConfig,
    changed,
    read_scenario,
)
from fedlora.errors import ConfigError
from fedlora.family import LINEAR_MODULES
from fedlora.wire.codec import CODECS
from hypothesis import given
from hypothesis import strategies as st

# A file with a null character is refused: no name, path or address has one.
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12)
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
POSITIVE = st.integers(1, 10**6)


def patterns(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, ...]]:
    """Entries MODULE=VALUE."""
    return st.dictionaries(st.sampled_from(LINEAR_MODULES), values, max_size=3).map(
        lambda pattern: tuple(f"{module}={value}" for module, value in pattern.items())
    )


CONFIGS = st.builds(
    RunConfig,
    name=st.from_regex(r"\w[\w.-]{0,11}", fullmatch=True),
    base=WORDS,
    seed=st.integers(0, 2**32 - 1),
    output=PATHS,
    data=st.builds(DataConfig, name=WORDS, path=PATHS, max_bytes=st.integers(0, 10**12)),
    lora=st.builds(
        LoraSection,
        rank=st.integers(1, 4096),
        alpha=st.floats(0, 1e6, exclude_min=True),
        use_rslora=st.booleans(),
        target_modules=st.lists(st.sampled_from(LINEAR_MODULES), min_size=1, unique=True).map(tuple),
        rank_pattern=patterns(st.integers(1, 4096)),
        alpha_pattern=patterns(st.floats(0, 1e6, exclude_min=True)),
        modules_to_save=st.sampled_from([(), ("lm_head",), ("classifier", "pooler")]),
    ),
    train=st.builds(
        TrainConfig,
        steps=POSITIVE,
        batch_size=st.integers(1, 1 << 16),
        sequence_length=st.integers(2, 10**5),
        lr=st.floats(0, 1 / 1024, exclude_min=True),
        schedule=st.sampled_from(["constant", "cosine"]),
        warmup_steps=st.integers(0, 10**6),
        lora_plus_ratio=st.floats(0, 1000, exclude_min=True),
        dropout=st.floats(0, 1, exclude_max=True),
        memory_mb=st.integers(0, 10**6),
        checkpointing=st.sampled_from(["auto", "on", "off"]),
        compute=st.sampled_from(["auto", "float32", "bfloat16"]),
        kernels=st.sampled_from(["auto", "on", "off"]),
        device=st.sampled_from(["auto", "cpu", "cuda", "cuda:1"]),
        weight_decay=st.floats(0, 1, exclude_max=True),
        max_grad_norm=st.floats(0, 1e6),
    ),
    server=st.builds(
        ServerConfig,
        rounds=POSITIVE,
        method=WORDS,
        devices_per_round=st.just(0) | st.integers(100, 1000),
        min_devices=st.integers(1, 100),
        round_timeout_s=st.floats(0, 1e9, exclude_min=True),
        evaluate=st.booleans(),
        codec=st.sampled_from(sorted(CODECS)),
    ),
    simulation=st.builds(SimulationConfig, devices=POSITIVE),
)


def _scenario(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _toml(flat: dict[str, Any]) -> str:
    """Flat values as TOML; JSON's strings, numbers and booleans are TOML's, but for DEL, which TOML has escaped."""
    lines = [f"{key} = {json.dumps(value)}".replace("\x7f", "\\u007f") for key, value in flat.items()]
    return "\n".join(lines)


@given(config=CONFIGS)
def test_a_configuration_survives_being_flat(config: RunConfig) -> None:
    flat = config.flat()
    assert all(type(value) in (bool, int, float, str) for value in flat.values())
    assert RunConfig.from_flat(flat, "flat") == config


@given(config=CONFIGS)
def test_a_configuration_survives_being_flat_as_json(config: RunConfig) -> None:
    assert RunConfig.from_flat(json.loads(json.dumps(config.flat())), "flat") == config


@given(config=CONFIGS)
def test_a_scenario_file_and_the_flat_configuration_have_the_same_keys(
    tmp_path_factory: pytest.TempPathFactory, config: RunConfig
) -> None:
    # Paths count from the file; a name that begins with a letter is one without its accents, too.
    config = replace(config, name=f"x{config.name}", base="nano", output="", data=replace(config.data, path=""))
    ascii_only = RunConfig.from_flat(
        {k: v.encode("ascii", "ignore").decode() or "x" if isinstance(v, str) and v else v
         for k, v in config.flat().items()}, "ascii")  # fmt: skip
    path = _scenario(tmp_path_factory.mktemp("scenario"), _toml(ascii_only.flat()))
    assert read_scenario(path) == ascii_only


def test_what_is_left_out_has_its_default() -> None:
    assert RunConfig.from_flat({}, "nothing") == RunConfig()


def test_sections_and_dotted_keys_are_the_same(tmp_path: Path) -> None:
    sections = read_scenario(_scenario(tmp_path, "[train]\nlr = 0.002\n[lora]\ntarget_modules = ['q_proj', 'v_proj']"))
    dotted = read_scenario(_scenario(tmp_path, "train.lr = 0.002\nlora.target_modules = 'q_proj, v_proj'"))
    assert sections == dotted
    assert sections.train.lr == 0.002
    assert sections.lora.target_modules == ("q_proj", "v_proj")


def test_a_whole_number_is_taken_for_a_float() -> None:
    alpha = RunConfig.from_flat({"lora.alpha": 8}, "flat").lora.alpha
    assert alpha == 8.0
    assert type(alpha) is float


def test_the_adapter_of_a_run_is_that_of_its_section() -> None:
    config = LoraSection(rank=3, alpha=6.0, use_rslora=True, target_modules=("q_proj",)).lora(["m.q_proj"])
    assert (config.rank, config.alpha, config.use_rslora, config.target_modules) == (3, 6.0, True, ("q_proj",))


MODULES = [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")]


def test_a_pattern_gives_modules_ranks_by_their_names_or_the_ends_of_them_and_the_longest_counts() -> None:
    section = LoraSection(
        rank=2,
        rank_pattern=("model.layers.0.mlp.down_proj=7", "down_proj=5", "layers.1.self_attn.q_proj = 3"),
        alpha_pattern=("q_proj=1.5",),
        target_modules=("q_proj", "down_proj"),
    )
    config = section.lora(MODULES)
    assert [config.rank_of(module) for module in MODULES] == [2, 7, 3, 5]
    assert config.alpha_pattern == {"model.layers.0.self_attn.q_proj": 1.5, "model.layers.1.self_attn.q_proj": 1.5}


@pytest.mark.parametrize("end", ["k_proj", "proj", "layers.2.mlp.down_proj", "odel.layers.0.mlp.down_proj"])
def test_a_pattern_that_fits_no_module_is_refused_with_one_that_there_is(end: str) -> None:
    section = LoraSection(rank_pattern=(f"{end}=4",))
    with pytest.raises(
        ConfigError, match=rf"^lora.rank_pattern: the base has no module {end}; it has such as {MODULES[0]}$"
    ):
        section.lora(MODULES)


def test_a_rate_of_b_that_is_no_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.lr times lora_plus_ratio must be below 1, got 16.0"):
        RunConfig.from_flat({"train.lr": 0.1, "train.lora_plus_ratio": 16}, "flat")


def test_keys_are_changed_one_by_one_with_values_as_in_toml_or_bare_words() -> None:
    changes = ["train.lr=0.002", "train.schedule=cosine", 'base="packs/x"', "lora.rank_pattern=down_proj=4,q_proj=8"]
    config = changed(RunConfig(seed=7), changes)
    assert (config.seed, config.train.lr, config.train.schedule, config.base) == (7, 0.002, "cosine", "packs/x")
    assert config.lora.rank_pattern == ("down_proj=4", "q_proj=8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.lr", "--set train.lr: expected KEY=VALUE"),
        ("train.learning_rate=1", "--set: unknown key train.learning_rate; "),
        ("train.steps=many", "--set: train.steps must be of type int, got 'many'"),
        ("train.steps=0", "--set: train.steps must be at least 1, got 0"),
    ],
)
def test_a_change_that_is_none_is_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(RunConfig(), [change])
    assert str(caught.value).startswith(message)


def test_relative_paths_count_from_the_scenario(tmp_path: Path) -> None:
    config = read_scenario(_scenario(tmp_path, 'base = "../packs/x"\n[data]\npath = "texts"'))
    assert Path(config.base).resolve() == tmp_path.parent / "packs" / "x"
    assert Path(config.data.path) == tmp_path / "texts"


def test_absolute_paths_the_home_directory_and_nano_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = read_scenario(_scenario(tmp_path, 'base = "/packs/x"\n[data]\npath = "~/texts"'))
    assert (config.base, config.data.path) == ("/packs/x", "/home/me/texts")
    assert read_scenario(_scenario(tmp_path, 'base = "nano"')).base == "nano"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[train]\nlearning_rat = 0.1", "unknown key train.learning_rat; "),
        ("[train]\nstep = 5", "unknown key train.step; did you mean train.steps?"),
        ("[lora]\nalhpa = 5", "unknown key lora.alhpa; did you mean lora.alpha?"),
        ("[sever]\nrounds = 5", "unknown key sever.rounds; did you mean server.rounds?"),
        ("rounds = 5", "unknown key rounds; "),
        ("[train.lr]\nx = 1", "unknown key train.lr.x; did you mean train.lr?"),
        ("train = 5", "unknown key train; "),
        ("zzzzzzzzzzzz = 5", "unknown key zzzzzzzzzzzz; known keys: name, base, seed, output, data.name"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path, text: str, hint: str) -> None:
    path = _scenario(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_scenario(path)
    assert str(caught.value).startswith(f"{path}: {hint}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.steps", "many", "train.steps must be of type int, got 'many'"),
        ("train.steps", 1.5, "train.steps must be of type int, got 1.5"),
        ("train.steps", True, "train.steps must be of type int, got True"),
        ("train.lr", "0.1", "train.lr must be of type float, or auto, got '0.1'"),
        ("train.lr", True, "train.lr must be of type float, got True"),
        ("server.evaluate", 1, "server.evaluate must be of type bool, got 1"),
        ("server.evaluate", "yes", "server.evaluate must be of type bool, got 'yes'"),
        ("name", 5, "name must be of type str, got 5"),
        ("name", None, "name must be of type str, got None"),
        ("lora.target_modules", 5, "lora.target_modules must be a list of strings, got 5"),
        ("lora.target_modules", ["q_proj", 5], "lora.target_modules must be a list of strings"),
        pytest.param("train.lr", 10**400, "train.lr", id="train.lr that no float holds"),
        ("train.steps", 0, "train.steps must be at least 1, got 0"),
        ("train.batch_size", -1, "train.batch_size must be at least 1, got -1"),
        ("train.batch_size", 1 << 40, "train.batch_size must be at most 65536, got 1099511627776"),
        ("train.sequence_length", 1, "train.sequence_length must be at least 2, got 1"),
        ("train.lr", 0.0, "train.lr must be between 0 and 1, got 0.0"),
        ("train.lr", 1, "train.lr must be between 0 and 1, got 1.0"),
        ("train.lr", float("nan"), "train.lr must be between 0 and 1, got nan"),
        ("train.weight_decay", 1.0, "train.weight_decay must be from 0 to 1, got 1.0"),
        ("train.max_grad_norm", -0.5, "train.max_grad_norm must be 0 (none) or more, got -0.5"),
        ("train.schedule", "step", "train.schedule must be one of constant, linear, cosine, got 'step'"),
        ("train.warmup_steps", -1, "train.warmup_steps must be 0 or more, got -1"),
        ("train.lora_plus_ratio", 0.0, "train.lora_plus_ratio must be up to 1000, got 0.0"),
        ("train.lora_plus_ratio", 1001.0, "train.lora_plus_ratio must be up to 1000, got 1001.0"),
        ("train.dropout", 1.0, "train.dropout must be from 0 to 1, got 1.0"),
        ("train.dropout", -0.1, "train.dropout must be from 0 to 1, got -0.1"),
        ("train.dropout", float("nan"), "train.dropout must be from 0 to 1, got nan"),
        ("train.memory_mb", -1, "train.memory_mb must be 0 (no bound) or more, got -1"),
        ("train.checkpointing", "yes", "train.checkpointing must be one of auto, on, off, got 'yes'"),
        ("train.compute", "float16", "train.compute must be one of auto, float32, bfloat16, got 'float16'"),
        ("train.kernels", "", "train.kernels must be one of auto, on, off, got ''"),
        ("train.kernels", True, "train.kernels must be of type str, got True"),
        ("server.rounds", 0, "server.rounds must be at least 1, got 0"),
        ("server.devices_per_round", -1, "server.devices_per_round must be 0 (all) or more, got -1"),
        ("server.min_devices", 0, "server.min_devices must be at least 1, got 0"),
        ("server.round_timeout_s", 0.0, "server.round_timeout_s must be positive, got 0.0"),
        ("server.round_timeout_s", float("nan"), "server.round_timeout_s must be positive, got nan"),
        ("server.codec", "zip", "server.codec must be one of f32, f16, got 'zip'"),
        ("data.max_bytes", -1, "data.max_bytes must be 0 (all) or more, got -1"),
        ("simulation.devices", 0, "simulation.devices must be from 1 to 1000000, got 0"),
        ("seed", -1, "seed must be from 0 to 2^32 - 1, got -1"),
        ("seed", 2**32, "seed must be from 0 to 2^32 - 1, got 4294967296"),
        ("name", "", "name must be letters, digits, '-', '_' and '.', and not begin with '.', got ''"),
        ("name", "a/b", "name must be letters, digits, '-', '_' and '.', and not begin with '.', got 'a/b'"),
        ("lora.rank", 0, "rank: a rank must be an integer from 1 to 4096, got 0"),
        ("lora.alpha", 0.0, "alpha: an alpha must be a positive number, got 0.0"),
        ("lora.alpha", float("inf"), "alpha: an alpha must be a positive number, got inf"),
        (
            "lora.rank_pattern",
            "down_proj",
            "lora.rank_pattern: expected MODULE=VALUE such as down_proj=4, got 'down_proj'",
        ),
        ("lora.rank_pattern", ["down_proj=4.5"], "lora.rank_pattern: expected MODULE=VALUE such as down_proj=4, got"),
        ("lora.rank_pattern", "q_proj=4,down_proj=0", "down_proj: a rank must be an integer from 1 to 4096, got 0"),
        (
            "lora.alpha_pattern",
            "q_proj=x",
            "lora.alpha_pattern: expected MODULE=VALUE such as down_proj=8.0, got 'q_proj=x'",
        ),
        ("lora.alpha_pattern", "q_proj=-1", "q_proj: an alpha must be a positive number, got -1.0"),
        (
            "lora.modules_to_save",
            "embed_tokens",
            "lora.modules_to_save takes auto or heads only (lm_head, classifier, ",
        ),
        ("lora.target_modules", [], "target_modules must name at least one module"),
        ("lora.target_modules", "q_proj,q_proj", "each once"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused_with_its_key(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_flat({key: value}, "here.toml")
    assert str(caught.value).startswith("here.toml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", [".", ".."])
def test_a_name_that_is_no_directory_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name must be"):
        RunConfig(name=name)


def test_more_devices_needed_than_take_part_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"server.min_devices must be at most devices_per_round \(3\), got 4"):
        RunConfig.from_flat({"server.min_devices": 4, "server.devices_per_round": 3}, "flat")
    assert RunConfig.from_flat({"server.min_devices": 4}, "flat").server.min_devices == 4


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"name = 'a'\nname = 'b'", b"x = " + b"[" * 100_000])
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_scenario(path)
    assert str(caught.value).startswith(f"{path}: not TOML")


def test_a_scenario_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.toml: cannot be read: No such file"):
        read_scenario(tmp_path / "gone.toml")


def test_the_home_of_nobody_is_refused_by_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scenario.toml"):
        read_scenario(_scenario(tmp_path, 'base = "~no-such-user-here/pack"'))


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "simulations" / "scenarios").glob("*.toml")))
def test_every_scenario_of_the_project_is_read(path: Path) -> None:
    assert read_scenario(path).name == path.stem
