"""`fedlora release`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import cast

import click
from fedlora.commands.key import read_pair
from fedlora.commands.needed import needed
from fedlora.counted import counted
from fedlora.errors import ConfigError
from fedlora.exported.adapter_manifest import FILE_PROFILES
from fedlora.exported.profiles import Profile
from fedlora.nearest import check_there, hint

needed("cryptography", "flwr", "onnxruntime", "rfc8785")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--round", "server_round", required=True, type=click.IntRange(min=1), help="The committed round.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The release's folder.")
@click.option(
    "--key", "key_path", required=True, type=click.Path(path_type=Path), help="The release key that signs it."
)
@click.option(
    "--passphrase-file", type=click.Path(path_type=Path), metavar="FILE",
    help="Its first line is the key's passphrase; without it, one is asked for where it is needed.",
)  # fmt: skip
@click.option("--name", default="", help="What the adapter is called.  [default: the run's name]")
@click.option("--version", type=click.IntRange(min=1), help="It only grows.  [default: the parent's and 1, or 1]")
@click.option(
    "--profiles", default="", metavar="PROFILE,...", help="Write .onnx_adapter files too: compat, fast, or both."
)
@click.option("--base", default="", help="The base pack that the run trained.  [default: the run's]")
@click.option(
    "--canary", "canary_path", type=click.Path(path_type=Path), metavar="FILE",
    help="What a device tries first: JSON, texts with max_loss or label.",
)  # fmt: skip
@click.option("--parent", type=click.Path(path_type=Path), help="The release before it, signed by the same key.")
@click.option(
    "--server-key", "server_key_path", type=click.Path(path_type=Path), metavar="KEY.pub",
    help="The key under which the run's rounds must be signed, as fedlora verify --key has it.",
)  # fmt: skip
@click.option(
    "--expires-days", type=click.IntRange(1, 3650), default=365, show_default=True, help="No device takes it later."
)
@click.option(
    "--model-signing-key", "model_key_path", type=click.Path(path_type=Path), metavar="PEM",
    help="A key on P-256: model.sig is written too, for OpenSSF's model_signing.",
)  # fmt: skip
def release(
    run: Path,
    server_round: int,
    output: Path,
    key_path: Path,
    passphrase_file: Path | None,
    name: str,
    version: int | None,
    profiles: str,
    base: str,
    canary_path: Path | None,
    parent: Path | None,
    server_key_path: Path | None,
    expires_days: int,
    model_key_path: Path | None,
) -> None:
    """Make of a committed round of RUN a signed release: adapter, manifest, model card, bill of materials."""
    check_there(run)
    chosen = [profile for profile in profiles.split(",") if profile]
    for profile in chosen:
        if profile not in FILE_PROFILES:
            raise ConfigError(
                f"--profiles {profile}: {hint(profile, FILE_PROFILES, 'expected ' + ' or '.join(FILE_PROFILES))}; expected "
                "names of profiles, with commas between them"
            )
    # Here: `fedlora --help` asks for this command's summary, and ONNX Runtime takes long to load.
    from fedlora.identity.keys import PublicKey
    from fedlora.release.canary import read_canary
    from fedlora.release.model_signing import read_model_key

    from fedlora_simulations.releasing import ReleaseOrder, make_release

    key = read_pair(key_path, passphrase_file)
    model_key = read_model_key(model_key_path) if model_key_path else None
    words = ["fedlora", "release", str(run), "--round", str(server_round), "-o", str(output), "--key", key_path.name]
    order = ReleaseOrder(
        run=run,
        round=server_round,
        name=name,
        version=version or 0,
        profiles=tuple(cast(Profile, profile) for profile in dict.fromkeys(chosen)),
        base=base,
        canary=read_canary(canary_path) if canary_path else None,
        parent=parent,
        server_key=PublicKey.read(server_key_path) if server_key_path else None,
        expires_days=expires_days,
        command=shlex.join(words),
    )
    made = make_release(order, output, key, model_key=model_key)
    click.echo(
        f"{output}: {made.name} {made.version}, {counted(len(made.files), 'file')}, signed by {key.public.keyid[:16]}"
    )
