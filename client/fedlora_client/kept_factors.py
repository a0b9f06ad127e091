"""What stays on a device between its rounds: a factor that it trains and does not send (FedSA-LoRA, arXiv:2410.01463).

    FOLDER/kept-WHOSE-round-0003.safetensors        {MODULE.lora_B: float32 [O, R]} as round 3 left it, or lora_A [R, I]

A server that was killed and goes on asks for a round again: the device then starts from what it had before that round.
So two files stay: of the last round that it trained in, and of the one from which that began. What earlier runs of the
same device, data and base left goes when a new one keeps its first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fedlora.errors import ConfigError, TensorFileError
from fedlora.files.atomic import whole_file
from fedlora.files.tensor_file import Dtype, TensorFile, write_in_order
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.numbered import is_number
from numpy.typing import NDArray

_FORMAT = "fedlora-kept-factors-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFactors:
    """One factor of one device in one run."""

    folder: Path
    factor: str  # "A" or "B"
    whose: str  # whatever tells this device, data and base from others that share the folder
    run: str  # its number, which it keeps when its server is stopped and goes on

    def put_into(self, adapter: Adapter, *, newest: int) -> Adapter:
        """`adapter` with the factor of the last round, up to `newest`, that this device trained in.

        As it is where there was none. Of a module with more components than the device trains, those are the first ones.
        Raises ConfigError where the file does not fit.
        """
        file = self._last(newest)
        if file is None:
            return adapter
        expected = {self._name(module): module for module in adapter.pairs}
        if file.entries.keys() != expected.keys():
            raise self._unusable(file.path, "its modules are not the run's")
        pairs = {}
        for name, module in expected.items():
            kept, came = file.array(name), self._of(adapter.pairs[module])
            if file.entries[name].dtype != "F32" or kept.ndim != 2 or not self._fits(kept, came):
                raise self._unusable(file.path, f"{name} is {list(kept.shape)}, the run's is {list(came.shape)}")
            if not np.isfinite(kept).all():
                raise self._unusable(file.path, f"{name} holds NaN or infinity")
            _, others = np.split(came, [kept.shape[self._axis]], self._axis)
            whole = np.concatenate([kept, others], self._axis)
            pairs[module] = replace(adapter.pairs[module], **{f"lora_{self.factor}": whole})
        return replace(adapter, pairs=pairs)

    def keep(self, adapter: Adapter, server_round: int) -> None:
        """Store the factor as `server_round` left it. Raises ConfigError where that cannot be."""
        before = self._last(server_round - 1)
        arrays: dict[str, tuple[Dtype, NDArray[Any]]] = {
            self._name(module): ("F32", self._of(pair)) for module, pair in adapter.pairs.items()
        }
        path = self.folder / f"{self._stem}{server_round:04d}.safetensors"
        try:
            with whole_file(path) as aside:
                metadata = {"format": _FORMAT, "whose": self._digest, "run": self.run}
                write_in_order(aside, arrays, metadata, at_rest=path.name)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}; name another state-path") from None
        for other in self._files():
            if other not in (path, before and before.path):
                other.unlink(missing_ok=True)

    def _last(self, newest: int) -> TensorFile | None:
        """What is there of the last round up to `newest`."""
        for path in sorted((p for p in self._files() if _round_of(p) <= newest), key=_round_of, reverse=True):
            try:
                file = TensorFile(path)
            except TensorFileError as error:
                raise self._unusable(path, str(error)) from None
            if file.metadata.get("format") != _FORMAT or file.metadata.get("whose") != self._digest:
                raise self._unusable(path, "it is not one, or another device's or run's")
            if file.metadata.get("run") == self.run:
                return file
        return None

    def _files(self) -> list[Path]:
        return [path for path in self.folder.glob(f"{self._stem}*.safetensors") if _round_of(path)]

    @property
    def _axis(self) -> int:
        """Along which the components of the factor lie: A [R, I], B [O, R]."""
        return "AB".index(self.factor)

    def _of(self, pair: LoraPair) -> NDArray[np.float32]:
        return pair.lora_A if self.factor == "A" else pair.lora_B

    def _fits(self, kept: NDArray[Any], came: NDArray[np.float32]) -> bool:
        """Whether the shapes agree, apart from the components, of which `kept` may have fewer."""
        components, width = self._axis, 1 - self._axis
        return bool(kept.shape[width] == came.shape[width] and kept.shape[components] <= came.shape[components])

    def _name(self, module: str) -> str:
        return f"{module}.lora_{self.factor}"

    @property
    def _digest(self) -> str:
        return hashlib.sha256(f"{self.factor} {self.whose}".encode()).hexdigest()

    @property
    def _stem(self) -> str:
        return f"kept-{self._digest[:16]}-round-"

    def _unusable(self, path: Path, why: str) -> ConfigError:
        return ConfigError(
            f"{path}: cannot be used as the factor {self.factor} that this device keeps between rounds: {why}; "
            "remove it to begin with the run's"
        )


def _round_of(path: Path) -> int:
    """0 where the name tells none."""
    number = path.stem.rpartition("-")[2]
    return int(number) if is_number(number) else 0
