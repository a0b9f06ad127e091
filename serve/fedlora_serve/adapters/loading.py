"""An adapter read from where it is kept: a PEFT directory, or a file that `fedlora export-adapter` made.

What comes out is verified for the base and lies in memory of its own: no file can change it, or take it away, later. The
loader of ONNX Runtime accepts a NaN or a flipped bit, and maps the file: one that is truncated later ends the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.data.adapter_chat import adapter_chat_settings
from fedlora.data.chat_settings import ChatSettings
from fedlora.errors import AdapterError, AdapterMismatchError, AdapterTooLargeError
from fedlora.exported.adapter_file import load_adapter_file
from fedlora.exported.cache_prefix import Heads, prefix_heads, stacked, unstacked, virtual_tokens
from fedlora.exported.graph_manifest import GraphManifest
from fedlora.exported.inputs import digest_of, input_values, weighted_sum
from fedlora.exported.profiles import Profile, file_inputs
from fedlora.exported.sidecar import sidecar_of
from fedlora.family import DecoderShape
from fedlora.lora.kinds import kind_of
from fedlora.lora.output_scale import has_scales
from fedlora.peft.directory import CONFIG, WEIGHTS
from fedlora.peft.for_base import MAX_LORA_BYTES, adapter_of
from fedlora.peft.missing import told_of_file
from fedlora.row_lora.layout import AdapterLayout, LayoutDtype, adapter_layout
from numpy.typing import NDArray

from fedlora_serve.adapters.signed import ReleaseInfo

# {adapter input of the graph `compat`: value}, read-only; or laid out for the graph `kernel`; or where several lie.
# Empty of virtual tokens.
AdapterValues = Mapping[str, NDArray[np.float32]] | AdapterLayout | tuple["WeightedAdapter", ...]
_Values = dict[str, NDArray[np.float32]]
NO_CHAT = ChatSettings()
_OVERHEAD_BYTES = 8 << 20  # of a file, at most: its header and its tables
# No dtype of a file is wider than float32: so many bytes of it, at most, for one that is held.
_FILE_BYTES_PER_BYTE: Mapping[LayoutDtype | None, int] = {None: 1, "float32": 1, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedAdapter:
    """An adapter in memory, verified for one base. Whatever is computed with it is known by its digest, never its name."""

    name: str  # in a store, what it is leased by; else what its file or directory is called
    number: int = 1  # of the version: 1 for the first that was loaded under its name, and one more each time
    source: Path
    digest: str  # of its values, however they were stored: `digest_of`
    values: AdapterValues
    rank: int  # the largest of its modules; 0 where none has factors, and of virtual tokens
    size_bytes: int
    prefix: Heads | None = None  # [2 L, K, P, D], read-only: what a cache begins with, of virtual tokens
    made_of: tuple[WeightedAdapter, ...] = ()  # where it is the sum of several (`together`)
    chat: ChatSettings = NO_CHAT  # how to speak with it, where its training says so; no part of the digest
    release: ReleaseInfo | None = None  # the signed release that it comes from; None: nobody vouches for it

    @property
    def virtual_tokens(self) -> int:
        """P: tokens before the text that take room in the context; 0 of LoRA."""
        return 0 if self.prefix is None else self.prefix.shape[2]

    @property
    def inputs(self) -> Mapping[str, NDArray[np.float32]]:
        """{adapter input: value}, for a graph that takes them: of several adapters a copy, made here.

        Raises AdapterMismatchError where they are laid out.
        """
        if isinstance(self.values, AdapterLayout):
            raise AdapterMismatchError(
                f"{self.name}: laid out for the graph kernel; this graph takes the values of single modules: load the "
                "adapter without a layout"
            )
        if isinstance(self.values, tuple):
            return weighted_sum([(part.adapter.inputs, part.weight) for part in self.values])
        return self.values

    @property
    def scales(self) -> bool:
        """Whether it scales what modules give (DoRA, IA3)."""
        if isinstance(self.values, AdapterLayout):
            return bool(self.values.scales.size)
        return isinstance(self.values, Mapping) and has_scales(self.values)

    @property
    def parts(self) -> tuple[WeightedAdapter, ...]:
        """The adapters that it is made of: itself alone, or several."""
        return self.made_of or (WeightedAdapter(adapter=self, weight=1.0),)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightedAdapter:
    """One of several adapters that answer together."""

    adapter: LoadedAdapter
    weight: float


class AdapterLoader(Protocol):
    """What reads an adapter: `load_adapter`, for a graph."""

    def __call__(self, path: Path, base: BasePack, *, max_bytes: int, layout: LayoutDtype | None) -> LoadedAdapter: ...


def load_adapter(
    path: Path,
    base: BasePack,
    *,
    max_bytes: int | None = None,
    layout: LayoutDtype | None = None,  # for the graph `kernel`; None: inputs, for all others
    allow_unnamed_base: bool = False,
    graph: GraphManifest | None = None,  # that is to take it; None: any
) -> LoadedAdapter:
    """The adapter of a PEFT directory, or of a .onnx_adapter file of profile compat: LoRA, and what scales modules.

    Of prompts there must be a file.

    A PEFT directory that records no base, as PEFT's own do not, is taken where its names and shapes fit; an adapter file
    that names none only with `allow_unnamed_base`. Raises AdapterError where it is damaged or changes while it is read,
    AdapterMismatchError where it is for another base or profile, AdapterTooLargeError past `max_bytes`.
    """
    if told := told_of_file(path):
        raise AdapterError(f"{path}: {told}")
    try:
        before = list(_stamps(path))
        for size, *_ in before[:1]:
            _check_size(path, (size - _outside_bytes(base, path.is_dir())) // _FILE_BYTES_PER_BYTE[layout], max_bytes)
        # A layout of float16 may hold twice as much as it takes.
        most = MAX_LORA_BYTES if max_bytes is None else max_bytes * _FILE_BYTES_PER_BYTE[layout]
        if path.is_dir():
            adapter_inputs, chat = _of_directory(path, base, most)
        else:
            adapter_inputs, chat = _of_file(path, base, allow_unnamed_base)
        if list(_stamps(path)) != before:
            raise AdapterError(f"{path}: changed while it was read; load it again")
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be read: {error.strerror}; expected a PEFT directory or a .onnx_adapter file"
        ) from None
    if graph is not None:
        graph.check_takes(adapter_inputs, str(path), base.directory)
    digest = digest_of(adapter_inputs)
    values: AdapterValues
    prefix = stacked(adapter_inputs, base.shape, str(path)) if virtual_tokens(adapter_inputs) else None
    if prefix is not None:
        values, size_bytes = MappingProxyType({}), prefix.nbytes
        prefix.flags.writeable = False
        _check_size(path, size_bytes, max_bytes)
    elif layout is None:
        size_bytes = sum(value.nbytes for value in adapter_inputs.values())
        _check_size(path, size_bytes, max_bytes)
        values = MappingProxyType({name: _own(value) for name, value in adapter_inputs.items()})
    else:
        values = _laid_out(path, adapter_inputs, base, layout)
        size_bytes = values.size_bytes
        _check_size(path, size_bytes, max_bytes)
    return LoadedAdapter(
        name=path.name,
        source=path,
        digest=digest,
        values=values,
        rank=max(
            (value.shape[1] for name, value in adapter_inputs.items() if name.endswith(".lora_A.weight")), default=0
        ),
        size_bytes=size_bytes,
        prefix=prefix,
        chat=chat if isinstance(base.model, DecoderShape) else NO_CHAT,
    )


def _of_directory(directory: Path, base: BasePack, max_bytes: int) -> tuple[_Values, ChatSettings]:
    adapter, _ = adapter_of(directory, base, scaled=True, virtual=True, max_bytes=max_bytes)
    if adapter.config.method == "prompt":
        # Torch's last bits depend on the machine, and what was evicted is known again by its digest.
        raise AdapterError(
            f"{directory}: of {kind_of(adapter).title}, whose keys and values torch computes once, for a file; make it "
            f"with: fedlora export-adapter {directory} --base BASE -o {directory.name}.onnx_adapter"
        )
    if kind_of(adapter).is_virtual:
        return unstacked(prefix_heads(adapter, base, str(directory))), adapter_chat_settings(directory)
    try:
        return input_values(adapter), adapter_chat_settings(directory)
    except AdapterError as error:
        raise AdapterError(f"{directory}: {error}") from None


def _of_file(path: Path, base: BasePack, allow_unnamed_base: bool) -> tuple[_Values, ChatSettings]:
    def read(profile: Profile) -> tuple[_Values, ChatSettings]:
        file = load_adapter_file(
            path,
            base_fingerprint=base.fingerprint,
            inputs=file_inputs(base.model, profile),
            profile=profile,
            allow_unnamed_base=allow_unnamed_base,
        )
        return dict(file.values), file.manifest.chat if file.manifest else NO_CHAT

    try:
        return read("compat")
    except AdapterMismatchError:
        try:
            read("fast")
        except AdapterError:
            pass
        else:
            raise AdapterMismatchError(
                f"{path}: an adapter file of profile fast, whose modules are joined; expected profile compat: export the "
                "adapter again with: fedlora export-adapter --profile compat"
            ) from None
        raise


def _laid_out(
    path: Path, adapter_inputs: Mapping[str, NDArray[np.float32]], base: BasePack, dtype: LayoutDtype
) -> AdapterLayout:
    try:
        return adapter_layout(adapter_inputs, base.model.linear_modules(), dtype)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from None


def _own(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """A value in memory of its own, contiguous and read-only."""
    if not (value.flags.owndata and value.flags.c_contiguous and value.dtype == np.float32):
        value = np.array(value, np.float32, order="C")
    value.flags.writeable = False
    return value


def _check_size(path: Path, size_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size_bytes > max_bytes:
        raise AdapterTooLargeError(
            f"{path}: the adapter has {size_bytes} bytes or more, all adapters together may have {max_bytes}; "
            "raise the budget, or train an adapter of a smaller rank"
        )


def most_file_bytes(base: BasePack, max_bytes: int, layout: LayoutDtype | None, *, is_directory: bool) -> int:
    """The largest file of values that `load_adapter` reads within `max_bytes`."""
    return max_bytes * _FILE_BYTES_PER_BYTE[layout] + _outside_bytes(base, is_directory)


def _outside_bytes(base: BasePack, is_directory: bool) -> int:
    """What a file may have beside A and B."""
    return _OVERHEAD_BYTES + (_beside_bytes(base) if is_directory else 0)


def _beside_bytes(base: BasePack) -> int:
    """What embedding and head of the base take in float32: PEFT may have saved them beside A and B."""
    return 2 * 4 * sum(rows * columns for rows, columns in base.model.vocabulary_modules().values())


def _stamps(path: Path) -> Iterator[tuple[int, int, int]]:
    """What changes when one of the files does: (bytes, when it was last written, which file it is); the values' first."""
    for file in (path / WEIGHTS, path / CONFIG) if path.is_dir() else (path, sidecar_of(path)):
        if file.exists():
            stat = file.stat()
            yield stat.st_size, stat.st_mtime_ns, stat.st_ino
