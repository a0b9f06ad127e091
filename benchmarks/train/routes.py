"""One training route in a process of its own: argv is its name and the TrainJob as JSON; what it measured is printed.

Ours run through the public trainer, as a device would.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch

from train.job import LENGTH, LR, SEQUENCES, Measured, TrainJob
from train.peers import PEERS, train_peer

# What each of ours asks of TrainConfig; how to compute is left to the trainer.
OURS: dict[str, dict[str, Any]] = {
    "torch-recompute": {"compute": "auto", "kernels": "off", "checkpointing": "on"},
    "torch-save": {"compute": "auto", "kernels": "off", "checkpointing": "off"},
    "kernels-recompute": {"compute": "auto", "kernels": "on", "checkpointing": "on"},
    "kernels-save": {"compute": "auto", "kernels": "on", "checkpointing": "off"},
}
ROUTES = (*PEERS, *OURS)
COMPILED = {name for name, peer in PEERS.items() if peer.compiled}


def train_ours(settings: dict[str, Any], job: TrainJob, measured: Measured) -> None:
    """`job.steps` steps on the job's batch."""
    # Here, and not above: a peer's process does without.
    from fedlora.base.pack import open_pack
    from fedlora.config.run import TrainConfig
    from fedlora_client.data.windows import Windows
    from fedlora_client.decoder.decoder import Decoder
    from fedlora_client.ops.compute import choose_compute
    from fedlora_client.training.trainer import Watcher, train

    measured.imported()
    config = TrainConfig(
        steps=job.steps, batch_size=SEQUENCES, sequence_length=LENGTH, lr=LR, max_grad_norm=0.0, **settings
    )
    decoder = Decoder(open_pack(job.pack), choose_compute(settings["compute"], settings["kernels"]))
    inputs, targets = map(torch.from_numpy, job.tokens())
    data = Windows(inputs, targets, torch.zeros_like(inputs))
    measured.compute = str(decoder.compute)
    measured.loaded()
    train(decoder, job.adapter(), data, config, np.random.default_rng(3), Watcher(on_step=measured.on_step))


def main() -> None:
    route, job, measured = sys.argv[1], TrainJob(**json.loads(sys.argv[2])), Measured()
    torch.set_num_threads(job.threads)
    if route in PEERS:
        train_peer(PEERS[route], job, measured)
    else:
        train_ours(OURS[route], job, measured)
    print(json.dumps(measured.report()))


if __name__ == "__main__":
    main()
