"""One round of ten devices under attack, as the server has it: bytes in, checked, added, aggregated."""

# O out features, I in features, R rank

from __future__ import annotations

import numpy as np
from fedlora.config.run import AggregationConfig, LoraSection, RunConfig, ServerConfig
from fedlora.errors import UpdateError
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.lora.config import LoraConfig
from fedlora.wire.update import Update, decode_update, encode_update, payload
from fedlora_server.aggregation.aggregation import Aggregation, Round
from fedlora_server.checks import Expectation, limit_for
from fedlora_server.copies import Copies

from robust.attacks import Attack, Change, mean

DEVICES, RANK = 10, 8
RUN, BASE = "run", "base"
MODULES = {"layers.0.q_proj": (32, 32), "layers.0.up_proj": (64, 32), "layers.0.down_proj": (32, 64)}
SPREAD, NOISE = 0.02, 0.01  # of the numbers that all devices change alike, and of those that each changes by itself


def relative_error(method: str, settings: AggregationConfig, attack: Attack, seed: int = 0) -> float:
    """||C - H|| / ||H||: what the first round commits beside the mean of its honest devices."""
    lora = LoraConfig(rank=RANK, alpha=16.0, target_modules=("q_proj", "up_proj", "down_proj"))
    first = initial_adapter(lora, MODULES, np.random.default_rng(9))
    section, server = LoraSection(rank=RANK, alpha=16.0), ServerConfig(method=method)
    aggregation = Aggregation(RunConfig(lora=section, server=server, aggregation=settings), first)
    this, generator = aggregation.round(aggregation.start(), 1), np.random.default_rng(seed)
    devices = _trained(this, generator)
    honest = [_change(this, adapter) for adapter in devices[attack.liars :]]
    unchanged = _sent(this, this.down.adapter, 0)
    copies, limit = Copies(payload(unchanged)), limit_for(this.down.adapter)
    expectation = Expectation(
        run=RUN, server_round=1, base_fingerprint=BASE, adapter=this.down.adapter, factors=this.task.sends, limit=limit
    )
    for number, adapter in enumerate(devices):
        examples = 100
        if number < attack.liars:
            adapter = _lie(this, attack, honest, adapter, devices[attack.liars], generator)
            examples = attack.examples
        data = _sent(this, adapter, examples)
        try:
            update = decode_update(data, lambda: this.down.adapter)
            expectation.check(update)
            copies.check(number, str(number), payload(data))
        except UpdateError:
            continue
        this.add(update.adapter, update.num_examples)
    state = this.result()
    committed = state.now.adapter if this.task.sends == "A" else aggregation.committed(state)
    return _length(_apart(_change(this, committed), mean(honest))) / _length(mean(honest))


def _trained(this: Round, generator: np.random.Generator) -> list[Adapter]:
    """Ten devices that changed what trains of the adapter alike, but for noise."""
    down, trains = this.down.adapter, this.task.trains

    def numbers(scale: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {
            m: (scale * ("A" in trains) * generator.normal(size=p.lora_A.shape),
                scale * ("B" in trains) * generator.normal(size=p.lora_B.shape))
            for m, p in down.pairs.items()
        }  # fmt: skip

    common, adapters = numbers(SPREAD), []
    for _ in range(DEVICES):
        own = numbers(NOISE)
        pairs = {
            m: LoraPair(
                (p.lora_A + common[m][0] + own[m][0]).astype(np.float32),
                (p.lora_B + common[m][1] + own[m][1]).astype(np.float32),
            )
            for m, p in down.pairs.items()
        }
        adapters.append(Adapter(down.config, pairs))
    return adapters


def _change(this: Round, adapter: Adapter) -> Change:
    """That of gamma B A; of A where B stays on the devices."""
    down = this.down.adapter
    if this.task.sends == "A":
        return {m: p.lora_A.astype(np.float64) - down.pairs[m].lora_A for m, p in adapter.pairs.items()}
    return {m: _product(adapter, m) - _product(down, m) for m in down.pairs}


def _product(adapter: Adapter, module: str) -> np.ndarray:  # [O, I]
    pair = adapter.pairs[module]
    product: np.ndarray = adapter.config.scaling_of(module) * pair.lora_B.astype(np.float64) @ pair.lora_A
    return product


def _lie(
    this: Round, attack: Attack, honest: list[Change], own: Adapter, other: Adapter, generator: np.random.Generator
) -> Adapter:
    if attack.copies:
        return other
    if attack.number or attack.gauge != 1:
        return _disguised(this, attack, own)
    return _with_change(this, attack.sends(honest, _change(this, own), generator))


def _disguised(this: Round, attack: Attack, own: Adapter) -> Adapter:
    """Its own update in another gauge, or one number everywhere."""
    pairs = {}
    for module, pair in own.pairs.items():
        A, B = pair.lora_A * np.float32(attack.gauge), pair.lora_B / np.float32(attack.gauge)
        if attack.number:
            A, B = np.full_like(A, attack.number), np.full_like(B, attack.number)
        down = this.down.adapter.pairs[module]
        if this.task.sends == "AB":
            pairs[module] = LoraPair(A, B)
        elif this.task.sends == "A":
            pairs[module] = LoraPair(A, down.lora_B)
        else:  # a gauge of one factor is none
            pairs[module] = LoraPair(down.lora_A, B if attack.number else pair.lora_B)
    return Adapter(own.config, pairs)


def _with_change(this: Round, change: Change) -> Adapter:
    """The adapter of the run's rank with this change, or the nearest."""
    down, pairs = this.down.adapter, {}
    for module, pair in down.pairs.items():
        scaling = down.config.scaling_of(module)
        if this.task.sends == "A":
            pairs[module] = LoraPair((pair.lora_A + change[module]).astype(np.float32), pair.lora_B)
        elif this.task.sends == "B":
            B = (change[module] + _product(down, module)) / scaling @ np.linalg.pinv(pair.lora_A.astype(np.float64))
            pairs[module] = LoraPair(pair.lora_A, B.astype(np.float32))
        else:
            u, s, vt = np.linalg.svd((change[module] + _product(down, module)) / scaling, full_matrices=False)
            root = np.sqrt(s[:RANK])
            pairs[module] = LoraPair(
                (root[:, None] * vt[:RANK]).astype(np.float32), (u[:, :RANK] * root).astype(np.float32)
            )
    return Adapter(down.config, pairs)


def _sent(this: Round, adapter: Adapter, examples: int) -> bytes:
    return encode_update(
        Update(
            adapter=adapter, run=RUN, server_round=1, base_fingerprint=BASE, factors=this.task.sends, num_examples=examples
        )
    )  # fmt: skip


def _apart(one: Change, other: Change) -> Change:
    return {module: value - other[module] for module, value in one.items()}


def _length(change: Change) -> float:
    return float(np.sqrt(sum(np.sum(value**2) for value in change.values())))
