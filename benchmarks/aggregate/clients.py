"""The updates of N clients at the adapter shapes of two models, one at a time, as every route wants them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from fedlora.config.run import LoraSection, RunConfig, ServerConfig
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.lora.config import LoraConfig
from fedlora.wire.update import Update, encode_update
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

RANK = 16
RUN, BASE = "run", "base"


@dataclass(frozen=True)
class Shape:
    """A decoder's linear modules."""

    name: str
    hidden: int
    key_value: int
    inner: int
    layers: int

    def modules(self, layers: int) -> dict[str, tuple[int, int]]:
        """{name: (O, I)} of the first `layers`."""
        h, kv, m = self.hidden, self.key_value, self.inner
        of_a_layer = {
            "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, h),
            "mlp.gate_proj": (m, h), "mlp.up_proj": (m, h), "mlp.down_proj": (h, m),
        }  # fmt: skip
        return {f"model.layers.{i}.{name}": dims for i in range(layers) for name, dims in of_a_layer.items()}


SHAPES = (Shape("135M", 576, 192, 1536, 30), Shape("1B", 2048, 512, 8192, 16))


class Clients:
    """Adapters of random numbers: client k's are the same whoever asks."""

    def __init__(self, shape: Shape, layers: int) -> None:
        self.modules = shape.modules(layers)
        self.first = initial_adapter(LoraConfig(rank=RANK), self.modules, np.random.default_rng(0))

    @property
    def adapter_bytes(self) -> int:
        return self.first.size_bytes

    def config(self, method: str) -> RunConfig:
        return RunConfig(lora=LoraSection(rank=RANK), server=ServerConfig(method=method))

    def adapter(self, number: int) -> Adapter:
        generator = np.random.default_rng([1, number])

        def random(*dims: int) -> np.ndarray:
            return generator.standard_normal(dims, np.float32)

        pairs = {m: LoraPair(random(RANK, columns), random(rows, RANK)) for m, (rows, columns) in self.modules.items()}
        return Adapter(self.first.config, pairs)

    def examples(self, number: int) -> int:
        return 10 + number % 7

    def updates(self, count: int) -> Iterator[bytes]:
        """What our server gets."""
        for number in range(count):
            yield encode_update(
                Update(
                    adapter=self.adapter(number), run=RUN, server_round=1, base_fingerprint=BASE,
                    num_examples=self.examples(number),
                )
            )  # fmt: skip

    def messages(self, count: int) -> list[Message]:
        """What Flower's strategy gets: an Array per factor, all clients at once."""
        messages = []
        for number in range(count):
            pairs = self.adapter(number).pairs.items()
            arrays = {
                f"{m}.{f}": Array(np.asarray(getattr(pair, f))) for m, pair in pairs for f in ("lora_A", "lora_B")
            }
            metrics = MetricRecord({"num-examples": self.examples(number)})
            content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
            messages.append(Message(content, dst_node_id=1, message_type="train"))
        return messages
