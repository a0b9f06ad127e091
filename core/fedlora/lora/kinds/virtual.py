"""What `prompt` and `prefix` share: P virtual tokens before each text, which no tokenizer has.

One own tensor of the whole adapter, `prompt_embeddings` as PEFT's file has it (peft 0.21), a row for each virtual token.
The text's first token has position P, as if P tokens stood before it; only the text's own tokens are learned and scored.
"""

# P virtual tokens, W numbers of one

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from fedlora.errors import AdapterError, AdapterMismatchError, ConfigError
from fedlora.family import DecoderShape, ModelShape
from fedlora.lora.adapter import Adapter, Extras
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds.kind import Kind, Shape, own_tensors

WORD = "prompt_embeddings"


class VirtualTokens(Kind):
    """Decoders alone: PEFT puts them before an encoder's texts too, whose first token is then no longer the first."""

    words, is_virtual = (WORD,), True
    mean_is_exact = False
    kept_keys = (
        "num_attention_heads", "num_layers", "token_dim", "num_transformer_submodules", "encoder_hidden_size"
    )  # fmt: skip
    size: ClassVar[str]  # of a row, in words of the base

    @abstractmethod
    def width(self, model: DecoderShape) -> int:
        """W"""

    def peft_sizes(self, model: DecoderShape) -> dict[str, int]:
        """What PEFT's configuration says of the base, where it says it."""
        return {"num_layers": model.num_layers}

    def shapes(self, config: LoraConfig, model: ModelShape) -> dict[str, Shape]:
        if not isinstance(model, DecoderShape):
            raise ConfigError(
                f"lora.method = {self.name} is for decoders, and the base is an encoder ({model.model_type}), whose first "
                "token, that its head reads, would no longer be the first; set another"
            )
        return {WORD: (config.num_virtual_tokens, self.width(model))}

    def check(self, adapter: Adapter, model: ModelShape, where: str) -> None:
        if not isinstance(model, DecoderShape):
            raise AdapterMismatchError(
                f"{where}: {self.title} is for decoders, and the base is an encoder ({model.model_type}); the adapter is "
                "for another base"
            )
        array = own_tensors(adapter, self).get(WORD)
        if array is None or adapter.pairs:
            raise AdapterMismatchError(
                f"{where}: an adapter of {self.title} has {WORD} and no lora_A or lora_B; save it again"
            )
        expected = self.shapes(adapter.config, model)[WORD]
        if array.shape != expected:
            raise AdapterMismatchError(
                f"{where}: its {WORD} is {list(array.shape)}, the base takes {list(expected)}, {self.size}; the adapter "
                "is for a base of another size: give --base the pack that it belongs to"
            )

    def check_config(self, peft_config: Mapping[str, Any], model: ModelShape, where: str) -> None:
        assert isinstance(model, DecoderShape)
        for key, mine in self.peft_sizes(model).items():
            if (theirs := peft_config.get(key)) not in (None, mine):
                raise AdapterMismatchError(
                    f"{where}: its {key} is {theirs!r:.40}, the base's is {mine}; the adapter is for a base of another "
                    "size: give --base the pack that it belongs to"
                )

    def refuses_method(self, method: str) -> str:
        if method == "fedavg":
            return ""
        return (
            f"it works on the factors A and B, and {self.title} has none: its virtual tokens are averaged, by position, by "
            "fedavg"
        )

    # PEFT's directory

    def stored_name(self, tensor: str, prefix: str) -> str:
        return tensor

    def is_own(self, stored: str, prefix: str) -> bool:
        return stored == WORD

    def config_of(self, peft_config: Mapping[str, Any], own: Extras) -> LoraConfig:
        if WORD not in own or own[WORD].ndim != 2:
            found = list(own[WORD].shape) if WORD in own else "none"
            raise AdapterError(f"expected {WORD} [P, W], got {found}; save the adapter again with PEFT")
        if peft_config.get("num_transformer_submodules") not in (None, 1):
            raise AdapterError(
                f"num_transformer_submodules is {peft_config['num_transformer_submodules']!r:.40}; expected 1, as a "
                "decoder has: train with task_type CAUSAL_LM"
            )
        count = len(own[WORD])
        if peft_config.get("num_virtual_tokens") != count:
            raise AdapterError(
                f"num_virtual_tokens is {peft_config.get('num_virtual_tokens')!r:.40}, and {WORD} has {count} rows; take "
                "both files from one save of PEFT's"
            )
        return LoraConfig(method=self.name, num_virtual_tokens=count)

    def peft_config(self, adapter: Adapter, fresh: dict[str, Any]) -> dict[str, Any]:
        """PEFT asks the base for the sizes that are not said."""
        kept = ("auto_mapping", "base_model_name_or_path", "inference_mode")
        return {
            **{key: fresh[key] for key in kept if key in fresh},
            "task_type": "CAUSAL_LM",
            "peft_type": self.peft_type,
            "num_virtual_tokens": adapter.config.num_virtual_tokens,
        }
