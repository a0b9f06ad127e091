"""What a round commits: all that the run needs to go on after it, in one directory that appears whole or not at all.

adapter/              the adapter, in PEFT's format
moments.safetensors   the moments of the server's optimizer, float32; only where it has some
round.json            the round's record, as training left it
sealed.json           which round of which run it is, and the sha256 of all that it goes on from
record.json           the round in the chain of the run's rounds, over all of these; answers.jsonl: what devices signed
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from fedlora.base.pack import BasePack
from fedlora.errors import AdapterMismatchError, RunError, TensorFileError
from fedlora.files.at_rest import plain_digest
from fedlora.files.atomic import whole_directory
from fedlora.files.documents import read_object
from fedlora.files.tensor_file import TensorFile, write_in_order
from fedlora.identity.records import ANSWERS
from fedlora.identity.records import RECORD as ENTRY
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import MAX_RANK
from fedlora.lora.ranks import with_ranks
from fedlora.peft.directory import PeftDirectory, read_peft, write_peft

from fedlora_server.aggregation.optimizers import Moments
from fedlora_server.run.round_record import RoundRecord

ADAPTER, MOMENTS, RECORD, SEAL = "adapter", "moments.safetensors", "round.json", "sealed.json"
_BESIDE = (RECORD, SEAL, ENTRY, ANSWERS)  # of which a run needs none to go on
_MOST_BYTES = 16 << 30  # of a file, where the adapter that the run began with is not known


def write_round(
    directory: Path, adapter: Adapter, moments: Moments, record: RoundRecord, base: BasePack, run: str,
    add: Callable[[Path, Mapping[str, str]], None] = lambda folder, digests: None,
) -> None:  # fmt: skip
    """Commit a round. Raises OSError or ConfigError, and the directory is then not there.

    `add` is given the folder when all else is in it, and the digests of the large files, which are not hashed again.
    """
    with whole_directory(directory) as aside:
        write_peft(
            aside / ADAPTER, PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint), base_name=base.source
        )
        if moments:
            _write_moments(aside / MOMENTS, moments)
        (aside / RECORD).write_text(json.dumps(record.line(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        digests = _digests(aside)
        seal = {"round": record.round, "run": run, "files": digests}
        (aside / SEAL).write_text(json.dumps(seal, indent=2) + "\n", encoding="utf-8")
        add(aside, digests)


def read_round(directory: Path, first: Adapter, base: BasePack, run: str) -> tuple[Adapter, Moments]:
    """What a round committed; `first` is the adapter that the run began with. Raises FedloraError where it is damaged."""
    _check_seal(directory, run, _most_bytes(first))
    content = read_peft(directory / ADAPTER, any_kind=True)
    if content.base_fingerprint != base.fingerprint:
        raise AdapterMismatchError(
            f"{directory / ADAPTER}: its base is {content.base_fingerprint}, this run's is {base.fingerprint}; "
            "copy the run again"
        )
    path = directory / MOMENTS
    adapter = _as_committed(content.adapter, first, directory / ADAPTER)
    return adapter, _read_moments(path) if path.exists() else {}


def check_committed(directory: Path, run: str) -> None:
    """Raise RunError unless the directory is what this run committed as that round, to the bit."""
    _check_seal(directory, run, _MOST_BYTES)


def _as_committed(adapter: Adapter, first: Adapter, where: Path) -> Adapter:
    """`adapter` as it was before it was a file: PEFT's format does not keep the order of targets and patterns."""
    if adapter.config.method != first.config.method:
        raise AdapterMismatchError(
            f"{where}: it is of the kind {adapter.config.method}, the run's is {first.config.method}; copy the run again"
        )
    if adapter.pairs.keys() != first.pairs.keys():
        raise AdapterMismatchError(f"{where}: its modules are not the run's; copy the run again")
    pairs = {module: adapter.pairs[module] for module in first.pairs}
    config = with_ranks(first.config, {module: pair.rank for module, pair in pairs.items()})
    for module, pair in pairs.items():
        got, expected = adapter.config.scaling_of(module), config.scaling_of(module)
        if pair.shape != first.pairs[module].shape or not math.isclose(got, expected, rel_tol=1e-12):
            raise AdapterMismatchError(
                f"{where}: {module} is {list(pair.shape)}, scaled by {got:g}; expected "
                f"{list(first.pairs[module].shape)}, scaled by {expected:g}: the adapter was changed; copy the run again"
            )
    shapes = {name: array.shape for name, array in first.extras.items()}
    if {name: array.shape for name, array in adapter.extras.items()} != shapes:
        raise AdapterMismatchError(
            f"{where}: beside A and B it has {', '.join(adapter.extras) or 'nothing'}; expected "
            f"{', '.join(shapes) or 'nothing'}: the adapter was changed; copy the run again"
        )
    return Adapter(config, pairs, extras={name: adapter.extras[name] for name in shapes})


def _write_moments(path: Path, moments: Moments) -> None:
    """In their order, which the safetensors library would not keep: what is read back is what was written."""
    write_in_order(path, {name: ("F32", array) for name, array in moments.items()}, at_rest=path.name)


def _read_moments(path: Path) -> Moments:
    try:
        file = TensorFile(path)
        return {name: file.float32(name).copy() for name in file.entries}
    except TensorFileError as error:
        raise RunError(str(error)) from None


def _most_bytes(first: Adapter) -> int:
    """What no file of a round passes: all of an adapter's matrices at the largest rank, two of each extra, their names."""
    factors = 4 * MAX_RANK * sum(sum(pair.shape) for pair in first.pairs.values())
    return (1 << 26) + factors + 2 * first.extra_bytes


def _check_seal(directory: Path, run: str, most_bytes: int) -> None:
    """Raise RunError unless the directory is what this run committed as that round, to the bit."""
    seal = read_object(directory / SEAL, RunError, "the seal of a round")
    if (seal.get("round"), seal.get("run")) != (int(directory.name), run):
        raise RunError(
            f"{directory}: it is round {seal.get('round')} of run {seal.get('run')}; expected round "
            f"{int(directory.name)} of run {run}; copy the run again"
        )
    for path in directory.rglob("*"):
        if path.is_file() and (size := path.stat().st_size) > most_bytes:  # holes take no room, and for ever to read
            raise RunError(f"{path}: {size} bytes; expected at most {most_bytes}: copy the run again")
    sealed, there = seal.get("files"), _digests(directory)
    if sealed != there:
        known = sealed if isinstance(sealed, dict) else {}
        wrong = sorted(name for name in {*known, *there} if known.get(name) != there.get(name))
        raise RunError(f"{directory}: {', '.join(wrong)} is not as it was committed; copy the run again")


def _digests(directory: Path) -> dict[str, str]:
    """{file: sha256 of its content, whether it is encrypted at rest or not} of what the run goes on from."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in _BESIDE]
    return {path.relative_to(directory).as_posix(): plain_digest(path) for path in files}
