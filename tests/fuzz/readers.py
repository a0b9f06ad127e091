"""Every reader of what somebody else wrote, by its name. A run of `make fuzz` takes them in turn.

A reader takes what is there or raises an error of ours. Those that look closer at what was read are in `targets.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.fuzz.model_readers import adapter_files, chats, checkpoints, encoders, graphs, kinds, packs, peft, tokenizers
from tests.fuzz.reader import Reader
from tests.fuzz.release_readers import releases
from tests.fuzz.run_readers import bundles, devices, reports, runs, scenarios, services, states, studies, updates
from tests.fuzz.signed_readers import signed_runs, statements
from tests.fuzz.text_readers import bodies, data

READERS: Mapping[str, Callable[[Path], Reader]] = {
    "pack": partial(packs, signed=False),
    "pack, signed again": partial(packs, signed=True),
    "checkpoint": checkpoints,
    "encoder": encoders,
    "tokenizer": tokenizers,
    "chat template": chats,
    "PEFT directory": peft,
    "PEFT directory of each kind": kinds,
    "adapter file": adapter_files,
    "exported folder": graphs,
    "update": updates,
    "bundle": bundles,
    "device and fleet": devices,
    "run directory": runs,
    "signed run": signed_runs,
    "statements": statements,
    "release": releases,
    "scenario": scenarios,
    "study": studies,
    "report": reports,
    "service": services,
    "data": data,
    "request bodies": bodies,
    "training state": states,
}
