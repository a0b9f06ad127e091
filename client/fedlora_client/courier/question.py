"""What a device is asked and what it answers, without Flower's types. Both travel as a JSON header and bytes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from fedlora.errors import CourierError

if TYPE_CHECKING:  # a courier is one process a message: it loads what it uses
    from fedlora.config.run import Scalar

Kind = Literal["train", "evaluate"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SCALARS = (bool, int, float, str)
_MOST_TEXT = 2000  # characters of what an answer says


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a server asks of a device."""

    kind: Kind
    run_config: Mapping[str, Scalar]  # Flower's flat configuration of the run
    run_id: int  # Flower's number of the run
    seconds: float  # that are left for the answer
    data: bytes | bytearray | None  # an update; None where none came
    signed: str = ""  # the envelope of the instruction, where the server signs
    rotated: tuple[str, ...] = ()  # statements that vouch for the server's key
    _digests: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def data_digest(self) -> str:
        """The sha256 of its bytes, which are hashed once, whoever asks."""
        return _digest_once(self.data or b"", self._digests)

    def header(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "run_config": dict(self.run_config), "run_id": self.run_id, "seconds": self.seconds,
            "has_data": self.data is not None, "signed": self.signed, "rotated": list(self.rotated),
        }  # fmt: skip

    @classmethod
    def read(cls, header: Mapping[str, Any], data: bytearray) -> Question:
        """Raises CourierError for a header that is none of a question."""
        run_config = _mapping(header, "run_config", _SCALARS)
        kind = header.get("kind")
        if kind not in KINDS:
            raise CourierError(f"kind: {kind!r:.40}; expected one of {', '.join(KINDS)}")
        if type(header.get("run_id")) is not int:
            raise CourierError(f"run_id: {header.get('run_id')!r:.40}; expected an integer")
        return cls(
            kind=kind, run_config=run_config, run_id=header["run_id"], seconds=_number(header, "seconds"),
            data=data if header.get("has_data") is True else None, signed=_text(header, "signed"),
            rotated=tuple(_texts(header, "rotated")),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a device gives back: an update or what it measured; or why neither."""

    device: str  # its name
    data: bytes | bytearray = b""
    metrics: Mapping[str, float] = field(default_factory=dict)
    refusal: str = ""  # the word by which the server counts that this device's policy did not allow it
    said: str = ""  # what went wrong, or what its policy says; empty where all is well
    signed: str = ""  # the envelope of the answer, where the device signs
    _digests: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def data_digest(self) -> str:
        """The sha256 of its bytes, which are hashed once, whoever asks."""
        return _digest_once(self.data, self._digests)

    def header(self) -> dict[str, Any]:
        return {
            "device": self.device, "metrics": dict(self.metrics), "refusal": self.refusal,
            "said": self.said[:_MOST_TEXT], "signed": self.signed,
        }  # fmt: skip

    @classmethod
    def read(cls, header: Mapping[str, Any], data: bytearray) -> Answer:
        """Raises CourierError for a header that is none of an answer."""
        texts = {name: header.get(name) for name in ("device", "refusal", "said")}
        for name, text in texts.items():
            if not isinstance(text, str):
                raise CourierError(f"{name}: {text!r:.40}; expected a text")
        told = _mapping(header, "metrics", (int, float))
        metrics = {name: _number(told, name) for name in told}
        return cls(
            device=str(texts["device"]),
            data=data,
            metrics=metrics,
            refusal=str(texts["refusal"]),
            said=str(texts["said"]),
            signed=_text(header, "signed"),
        )


def _digest_once(data: bytes | bytearray, known: list[str]) -> str:
    if not known:
        known.append(hashlib.sha256(data).hexdigest())
    return known[0]


def _text(header: Mapping[str, Any], name: str) -> str:
    """A text that need not be there."""
    text = header.get(name, "")
    if not isinstance(text, str):
        raise CourierError(f"{name}: {text!r:.40}; expected a text")
    return text


def _texts(header: Mapping[str, Any], name: str) -> list[str]:
    """Texts that need not be there."""
    texts = header.get(name, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise CourierError(f"{name}: {texts!r:.40}; expected a list of texts")
    return texts


def _mapping(header: Mapping[str, Any], name: str, kinds: tuple[type, ...]) -> dict[str, Any]:
    content = header.get(name)
    if not isinstance(content, dict) or any(type(value) not in kinds for value in content.values()):
        raise CourierError(f"{name}: expected an object of {', '.join(kind.__name__ for kind in kinds)}")
    return content


def _number(header: Mapping[str, Any], name: str) -> float:
    value = header.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CourierError(f"{name}: {value!r:.40}; expected a finite number")
    try:
        number = float(value)
    except OverflowError:  # a whole number of more digits than a float reaches
        number = math.inf
    if not math.isfinite(number):
        raise CourierError(f"{name}: {value!r:.40}; expected a finite number")
    return number
