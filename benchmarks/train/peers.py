"""LoRA training by others: PEFT on transformers' Llama, the base in float32, in bfloat16, or in bitsandbytes' NF4.

Set up as their documentation asks for the best speed and memory: the checkpoint is loaded in the compute dtype; attention
is torch's fused one; there is no key/value cache; checkpointing is the non-reentrant one; the optimizer is the fused AdamW
on the trainable parameters, the Trainer's default. In bfloat16 the adapter stays in float32 under autocast, which is what
the Trainer's `bf16=True` does; it is faster than PEFT's float32 products without autocast. There is no
`prepare_model_for_kbit_training`: it turns the embedding and the head into float32, and has no other use here.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from fedlora.lora.adapter import Adapter

from train.job import LORA, LR, Measured, TrainJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to train with PEFT."""

    compute: Literal["float32", "bfloat16"] = "bfloat16"
    nf4: bool = False
    checkpointing: bool = False
    compiled: bool = False
    float32_adapter: bool = True  # PEFT's default; else the adapter and its optimizer live in `compute`


PEERS = {
    "peft-fp32": Peer(compute="float32"),
    "peft-bf16": Peer(),
    "bnb-nf4": Peer(nf4=True),
    "bnb-nf4-bf16-adapter": Peer(nf4=True, float32_adapter=False),
    "bnb-nf4-fp32": Peer(nf4=True, compute="float32"),  # what a machine without fast bfloat16 would take
    "bnb-nf4-checkpointing": Peer(nf4=True, checkpointing=True),
    "bnb-nf4-compile": Peer(nf4=True, compiled=True),
}


def train_peer(peer: Peer, job: TrainJob, measured: Measured) -> None:
    """`job.steps` steps on the job's batch."""
    modules = ["peft", "transformers.models.llama.modeling_llama", *(["bitsandbytes"] if peer.nf4 else [])]
    for name in modules:
        import_module(name)
    measured.imported()
    measured.compute = peer.compute
    model: Any = adapted(_base(peer, job.checkpoint), job.adapter(), float32_adapter=peer.float32_adapter)
    if peer.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if peer.compiled:
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(trainable(model), lr=LR, weight_decay=0.0, fused=True)
    autocast = peer.compute == "bfloat16" and peer.float32_adapter
    inputs, targets = map(torch.from_numpy, job.tokens())
    measured.loaded()
    for step in range(job.steps):
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        measured.on_step(step, loss.item())


def adapted(model: Any, adapter: Adapter, *, float32_adapter: bool = True) -> Any:
    """PEFT's model for training, with the values of `adapter`, which has the configuration LORA."""
    peft = import_module("peft")
    config = peft.LoraConfig(
        r=LORA.rank,
        lora_alpha=LORA.alpha,
        target_modules=list(LORA.target_modules),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # PEFT asks transformers for a name that is deprecated there
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(model, config, autocast_adapter_dtype=float32_adapter)
    for module, pair in adapter.pairs.items():
        layer = model.base_model.model.get_submodule(module)
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(torch.tensor(pair.lora_A))
            layer.lora_B["default"].weight.copy_(torch.tensor(pair.lora_B))
    return model.train()


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _base(peer: Peer, checkpoint: str) -> Any:
    transformers = import_module("transformers")
    dtype = getattr(torch, peer.compute)
    quantization: dict[str, Any] = {}
    if peer.nf4:
        nf4 = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
        quantization = {"quantization_config": nf4, "device_map": "cpu"}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation="sdpa", low_cpu_mem_usage=True, **quantization
    )
    model.config.use_cache = False
    return model
