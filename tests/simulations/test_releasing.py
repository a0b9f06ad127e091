"""A committed round becomes a signed release, whole; a round that was changed does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from fedlora.base.pack import BasePack, read_manifest
from fedlora.cli import commands
from fedlora.errors import AdapterMismatchError, ConfigError, IdentityError, ReleaseError, RunError, SignatureError
from fedlora.exported.adapter_file import load_adapter_file
from fedlora.exported.profiles import graph_inputs
from fedlora.identity.keys import SigningKey
from fedlora.release.folder import read_release
from fedlora.release.model_signing import read_model_key
from fedlora_serve.adapters.loading import load_adapter
from fedlora_simulations.releasing import ReleaseOrder, make_release
from huggingface_hub import ModelCard

from tests.tiny.llamas import Packs, Variant
from tests.tiny.releases import NOW, committed_run

KEY = SigningKey.generate()
CANARY = '{"texts": [{"text": "The kitchen", "max_loss": 9.5}]}'


@pytest.fixture
def run(tmp_path: Path, base: BasePack) -> Path:
    return committed_run(tmp_path / "run", base)


def command(run: Path, output: Path, *options: str) -> str:
    key = run.parent / "release.key"
    if not key.exists():
        KEY.write(key)
    arguments = ["release", str(run), "--round", "2", "-o", str(output), "--key", str(key), *options]
    return CliRunner().invoke(commands, arguments, catch_exceptions=False).output


def test_the_command_makes_a_release_of_everything(run: Path, base: BasePack, tmp_path: Path) -> None:
    (tmp_path / "canary.json").write_text(CANARY)
    told = command(run, tmp_path / "out", "--profiles", "compat,fast", "--canary", str(tmp_path / "canary.json"))
    assert told == f"{tmp_path / 'out'}: tone 1, 8 files, signed by {KEY.public.keyid[:16]}\n"
    release = read_release(tmp_path / "out", [KEY.public])
    manifest = release.manifest
    assert sorted(manifest.files) == [
        "README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "bom.cdx.json",
        "compat.onnx_adapter", "compat.onnx_adapter.json", "fast.onnx_adapter", "fast.onnx_adapter.json",
    ]  # fmt: skip
    files = read_manifest(base.directory)["files"]
    assert (manifest.base.fingerprint, manifest.base.tokenizer_sha256) == (base.fingerprint, files["tokenizer.json"])
    assert (manifest.run.round, manifest.run.devices, manifest.run.examples) == (2, 2, 12)
    assert manifest.evaluation["mean"] == 2.5
    assert manifest.canary is not None
    assert manifest.privacy is None
    assert manifest.made_by.versions["fedlora"]
    assert "kitchen" not in (tmp_path / "out" / "release.json").read_text().replace("The kitchen", "")
    for path in ("adapter", "compat.onnx_adapter"):  # a service calls both by the digest that is signed
        assert load_adapter(tmp_path / "out" / path, base).digest == manifest.adapter.values_sha256
    load_adapter_file(
        tmp_path / "out" / "fast.onnx_adapter",
        base_fingerprint=base.fingerprint,
        inputs=graph_inputs(base.model, "fast"),
        profile="fast",
    )


def test_versions_follow_the_parent(run: Path, base: BasePack, tmp_path: Path) -> None:
    order = ReleaseOrder(run=run, round=1)
    assert make_release(order, tmp_path / "1", KEY, now=NOW).version == 1
    second = make_release(ReleaseOrder(run=run, round=2, parent=tmp_path / "1"), tmp_path / "2", KEY, now=NOW)
    assert second.version == 2
    assert second.parent is not None
    assert second.parent.manifest_sha256 == read_release(tmp_path / "1", [KEY.public]).digest
    with pytest.raises(IdentityError, match="signed by"):
        make_release(ReleaseOrder(run=run, round=2, parent=tmp_path / "1"), tmp_path / "3", SigningKey.generate())


def test_its_card_is_one_that_the_hub_reads(run: Path, tmp_path: Path) -> None:
    make_release(ReleaseOrder(run=run, round=2), tmp_path / "out", KEY, now=NOW)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model
    assert "federated-learning" in (card.data.tags or [])
    assert "| version | 1 |" in card.text


def test_its_bill_of_materials_fits_the_schema_of_cyclonedx(run: Path, tmp_path: Path) -> None:
    make_release(ReleaseOrder(run=run, round=2), tmp_path / "out", KEY, now=NOW)
    text = (tmp_path / "out" / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"type": "file"', '"type": "fish"'))
    document = json.loads(text)
    assert document["metadata"]["component"]["type"] == "machine-learning-model"
    listed = {each["name"] for each in document["components"]}
    assert {"README.md", "adapter/adapter_model.safetensors"} <= listed


def test_the_same_order_at_the_same_moment_has_the_same_manifest(run: Path, tmp_path: Path) -> None:
    order = ReleaseOrder(run=run, round=2)
    first = make_release(order, tmp_path / "a" / "out", KEY, now=NOW)
    assert make_release(order, tmp_path / "b" / "out", KEY, now=NOW) == first


def test_what_is_refused_leaves_nothing(run: Path, packs: Packs, tmp_path: Path) -> None:
    other = packs(Variant(seed=3))
    with pytest.raises(AdapterMismatchError):
        make_release(ReleaseOrder(run=run, round=2, base=str(other.directory)), tmp_path / "out", KEY)
    with pytest.raises(ConfigError, match="no round 3; it has committed 1 to 2: name"):
        make_release(ReleaseOrder(run=run, round=3), tmp_path / "out", KEY)
    with pytest.raises(ReleaseError, match="cannot be called"):
        make_release(ReleaseOrder(run=run, round=2, name="a/b"), tmp_path / "out", KEY)
    weights = run / "rounds" / "0002" / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match="not as it was committed"):
        make_release(ReleaseOrder(run=run, round=2), tmp_path / "out", KEY)
    assert not (tmp_path / "out").exists()


def test_a_round_whose_run_is_not_of_one_piece_is_not_released(run: Path, tmp_path: Path) -> None:
    """The seal of the second round holds: what is wrong is the first one's."""
    first = run / "rounds/0001/adapter/adapter_config.json"
    whole = first.read_text()
    first.write_text(whole.replace("LORA", "lora"))
    assert first.read_text() != whole
    with pytest.raises(IdentityError, match="not as it was committed"):
        make_release(ReleaseOrder(run=run, round=2), tmp_path / "out", KEY)
    first.write_text(whole)
    record = run / "rounds/0001/record.json"
    record.rename(tmp_path / "record.json")
    with pytest.raises(IdentityError):
        make_release(ReleaseOrder(run=run, round=2), tmp_path / "out", KEY)
    (tmp_path / "record.json").rename(record)
    with pytest.raises(SignatureError, match="nobody signed it"):
        make_release(ReleaseOrder(run=run, round=2, server_key=KEY.public), tmp_path / "out", KEY)
    assert not (tmp_path / "out").exists()
    make_release(ReleaseOrder(run=run, round=2), tmp_path / "out", KEY)


def test_a_run_of_before_records_is_released_unless_a_key_must_have_signed_it(run: Path, tmp_path: Path) -> None:
    for record in [run / "head.json", *run.glob("rounds/*/record.json")]:
        record.unlink()
    make_release(ReleaseOrder(run=run, round=2), tmp_path / "out", KEY)
    KEY.public.write(tmp_path / "server.pub")
    with pytest.raises(IdentityError, match="it has no records"):
        command(run, tmp_path / "other", "--server-key", str(tmp_path / "server.pub"))


def test_a_release_is_not_written_over(run: Path, tmp_path: Path) -> None:
    make_release(ReleaseOrder(run=run, round=2), tmp_path / "out", KEY)
    with pytest.raises(ConfigError, match="exists already"):
        make_release(ReleaseOrder(run=run, round=2), tmp_path / "out", KEY)
    with pytest.raises(ConfigError, match="--profiles rows"):
        command(run, tmp_path / "other", "--profiles", "rows")


def p256(path: Path) -> Path:
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    path.chmod(0o600)
    return path


def test_a_key_for_model_signing_is_on_p256(tmp_path: Path) -> None:
    read_model_key(p256(tmp_path / "ec.pem"))
    KEY.write(tmp_path / "release.key")
    with pytest.raises(IdentityError, match="P-256"):
        read_model_key(tmp_path / "release.key")
    with pytest.raises(IdentityError, match="P-256"):
        read_model_key(tmp_path / "missing.pem")


@pytest.mark.integration
def test_the_command_of_openssf_verifies_its_bundle(run: Path, tmp_path: Path) -> None:
    """`model_signing` in an environment of its own, with the pyOpenSSL that 1.1.1 imports and does not ask for."""
    here = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(here)], check=True, timeout=300)
    install = [str(here / "bin" / "pip"), "install", "--quiet", "model-signing==1.1.1", "pyOpenSSL"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        pytest.skip(f"model-signing cannot be installed: {done.stderr[-300:]}")
    key, out = p256(tmp_path / "ec.pem"), tmp_path / "out"
    command(run, out, "--model-signing-key", str(key))
    read_release(out, [KEY.public])  # which takes a release with the bundle, too
    public = tmp_path / "ec.pub"
    subprocess.run(["openssl", "ec", "-in", str(key), "-pubout", "-out", str(public)], check=True, capture_output=True)

    def verified() -> subprocess.CompletedProcess[str]:
        arguments = ["verify", "key", str(out), "--signature", str(out / "model.sig"), "--public_key", str(public)]
        return subprocess.run(
            [str(here / "bin" / "model_signing"), *arguments], capture_output=True, text=True, timeout=300, check=False,
            env={"PATH": os.environ["PATH"]},
        )  # fmt: skip

    assert verified().returncode == 0, verified().stderr
    with (out / "README.md").open("a", encoding="utf-8") as card:
        card.write("x")
    assert verified().returncode != 0
