"""Training alone on one device: one person's data, one base, one adapter."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from fedlora.base.heads import extra_shapes, initial_extras
from fedlora.base.pack import BasePack
from fedlora.base.starts import Init, started, taken_back
from fedlora.config.run import LoraSection, RunConfig
from fedlora.counted import counted
from fedlora.errors import AdapterMismatchError, ConfigError, DataError
from fedlora.family import HEAD, EncoderShape
from fedlora.files.atomic import check_directory
from fedlora.files.tensor_file import as_float32
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.lora.kinds import check_adapter_fits, heads_in, kind_of
from fedlora.lora.ranks import joined
from fedlora.peft.directory import CONFIG, PeftDirectory, read_peft, write_peft
from fedlora.peft.finding import find_adapter
from fedlora.peft.for_base import beside_of, check_is_for
from fedlora.peft.layout import saved_name
from fedlora.peft.origin import Origin
from fedlora.peft.tensors import model_tensor

from fedlora_client.answer_ends import answer_ends_files
from fedlora_client.data.account import by_file, chat_notices, left_out_notice, notices
from fedlora_client.data.prompt_text import with_prompt_of
from fedlora_client.device import Device
from fedlora_client.end_tokens import unlearnable_end
from fedlora_client.frozen_beside import frozen_beside
from fedlora_client.training.learning_rate import with_epochs
from fedlora_client.training.measuring import measure
from fedlora_client.training.memory import peak_bytes
from fedlora_client.training.trainer import Evaluation, Saving, TrainResult, Watcher, train

BITS_PER_PARAMETER = 2  # what an adapter holds, about; a token asks for 1 (LoRA Without Regret, Schulman et al., 2025)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """What to train on, from which adapter, and where the result goes."""

    data: Path | str  # a file of text or of records, or a folder of them
    output: Path | str  # the PEFT directory that is made
    config: RunConfig = field(
        default_factory=RunConfig
    )  # its base, seed, data.max_bytes, data.fields, lora and train count
    start: Path | str | None = None  # a PEFT directory to go on from
    beside: Path | str | None = None  # a PEFT directory that stands frozen beside what is trained
    epochs: float = 0  # passes over the data, in place of the configuration's steps
    evaluate_every: int = 0  # steps; 0: at the end only
    patience: int = 0
    save_every: int = 20
    replace: bool = False

    @property
    def state_file(self) -> Path:
        """Where the training is kept while it runs; a training that was stopped goes on from it."""
        output = Path(self.output).absolute()
        return output.with_name(f".{output.name}.training")


class LocalTraining:
    """The parts of a run, opened and checked before anything is computed."""

    def __init__(self, run: LocalRun) -> None:
        """Raises FedloraError: what would end the training later is refused here."""
        self.run, self._output = run, Path(run.output).absolute()
        check_directory(self._output, replace=CONFIG if run.replace else None)
        config = replace(run.config, data=replace(run.config.data, name="files"), lora=_without_start(run.config.lora))
        self.device = Device(config, {"data-path": str(run.data)})
        self.windows = self.device.train_windows()
        self.base: BasePack = self.device.model.base
        self.config = with_epochs(run.config.train, run.epochs, len(self.windows))
        self.adapter = self._start()
        self.config = self.config.with_rate(self.base.model, kind_of(self.adapter).name)
        self._check_kind()
        init = cast(Init, run.config.lora.init)
        self.frozen: Adapter | None = None  # beside it: takes back a start that is not zero; another one
        if init != "default":
            self.adapter = started(self.adapter, self.base, init)
            self.frozen = taken_back(self.adapter)
        self._origin: Origin | None = None
        if run.beside is not None:
            other = frozen_beside(run.beside, self.adapter, self.base)
            self.frozen = other.adapter if self.frozen is None else joined(self.frozen, other.adapter)
            self._origin = other.origin
        self._evaluation, self._no_evaluation = self._made_evaluation()

    def data_lines(self) -> list[str]:
        """What of each file is trained on, held out, cut and left out; and what was not read."""
        held_out = self._evaluation.windows if self._evaluation else None
        accounts = by_file(self.device.data, self.windows, held_out)
        return [*map(str, accounts), *notices(self.device.data)]

    def warnings(self) -> list[str]:
        """What a person should know before the first step."""
        told, windows = [], self.windows
        length, of = self.config.sequence_length, windows.examples + windows.skipped
        if windows.truncated:
            told.append(
                f"{windows.truncated} of {counted(of, 'example')} cut to {length} tokens; raise train.sequence_length to "
                "have them whole"
            )
        told += [notice] if (notice := left_out_notice(windows.skipped, of, length)) else []
        told += chat_notices(windows)
        if not heads_in(self.adapter) and (end := unlearnable_end(self.device.model, windows)):
            told.append(end)
        if self._no_evaluation:
            told.append(f"nothing is measured on held-out data: {self._no_evaluation}")
        parameters, tokens = self.adapter.size_bytes // 4, windows.learned_tokens
        if tokens > BITS_PER_PARAMETER * parameters:
            keys = kind_of(self.adapter).keys
            key = next((key for key in ("rank", "num_virtual_tokens") if key in keys), "")
            advice = f"raise lora.{key}" if key else "take lora.method = lora"
            told.append(
                f"the data hold {tokens:,} tokens, more than an adapter of {parameters:,} parameters can hold (about "
                f"{BITS_PER_PARAMETER} bits a parameter, 1 bit a token); {advice}"
            )
        return told

    def train(self, watcher: Watcher | None = None) -> TrainResult:
        """Train, and write the adapter into the output with training.json beside it."""
        run, started = self.run, time.monotonic()
        result = train(
            self.device.model, self.adapter, self.windows, self.config, np.random.default_rng([run.config.seed, 1]),
            watcher or Watcher(), saving=Saving(file=run.state_file, every=run.save_every, keeps=True),
            evaluation=self._evaluation, frozen=self.frozen,
        )  # fmt: skip
        if self.frozen is not None:
            result = replace(result, adapter=joined(result.adapter, self.frozen))
        report = {
            "base": self.base.fingerprint,
            "compute": str(self.device.model.compute),
            "train": dataclasses.asdict(self.config),
            "losses": result.losses,
            "evaluations": result.evaluations,
            "tokens": result.tokens,
            **self._metrics(result.adapter),  # before the peak is read
            "seconds": round(time.monotonic() - started, 1),
            "peak_mb": round(peak_bytes() / 1e6),
        }
        content = PeftDirectory(adapter=result.adapter, base_fingerprint=self.base.fingerprint, origin=self._origin)
        text = json.dumps(report, indent=1) + "\n"
        write_peft(
            self._output, content, base_name=self.base.source, replace=run.replace,
            texts={"training.json": text, **answer_ends_files(self.device.model, self.windows)},
        )  # fmt: skip
        run.state_file.unlink(missing_ok=True)
        return result

    def _start(self) -> Adapter:
        """The adapter to begin with, and the heads that train with it."""
        if self.run.start is None:
            first, text = self.device.first_adapter(), self.run.config.lora.prompt_tuning_init_text
            return with_prompt_of(first, text, self.base) if text else first
        extras = dict(initial_extras(self.run.config.lora.modules_to_save, self.base))
        found, where = read_peft(find_adapter(self.run.start), any_kind=True), str(self.run.start)
        if found.base_fingerprint not in (None, self.base.fingerprint):
            raise AdapterMismatchError(
                f"{where}: trained on the base {found.base_fingerprint!s:.16}, not on {self.base.fingerprint:.16} "
                f"({self.base.directory}); give --base the pack that it belongs to"
            )
        check_is_for(found, self.base, where)
        heads = extra_shapes(self.base.model.head_parts(), self.base.model)
        check_adapter_fits(found.adapter, self.base.model, heads, where)
        kept = dict(found.beside)
        if (weight := f"{HEAD}.weight") in extras and saved_name(HEAD) in kept:
            dtype, array = kept.pop(saved_name(HEAD))
            if array.shape != extras[weight].shape:
                raise AdapterMismatchError(
                    f"{where}: its {HEAD} is {list(array.shape)}, the base's is {list(extras[weight].shape)}; give --base "
                    "the pack that it belongs to"
                )
            extras[weight] = as_float32(array, dtype, where)
        for name in beside_of(replace(found, saved_modules=kept, embeddings={}), self.base, where).replaced:
            if name == saved_name(HEAD):
                raise AdapterMismatchError(
                    f"{where}: it has a trained {HEAD} from modules_to_save; to train it further, pass --set "
                    f"lora.modules_to_save={HEAD}"
                )
            raise AdapterMismatchError(
                f"{where}: it also replaces {model_tensor(name)}, which did train and cannot be trained further: beside A "
                f"and B only {HEAD} can; start from an adapter without it"
            )
        return with_extras(found.adapter, extras | dict(found.adapter.extras))  # a head that it has trains on

    def _check_kind(self) -> None:
        """Raise ConfigError for what an adapter of this kind cannot do; one to go on from has a kind of its own."""
        kind = kind_of(self.adapter)
        if kind.name != "lora" and self.run.beside is not None:
            raise ConfigError(
                f"--beside needs lora.method = lora, got {kind.name}, which has no sum with another; leave it out"
            )
        if self.config.dropout and not kind.takes_dropout:
            raise ConfigError(
                f"train.dropout is {self.config.dropout}, which means nothing to {kind.title}; leave it out"
            )

    def _metrics(self, adapter: Adapter) -> dict[str, float]:
        """What the model tells of the held-out data beside the loss, for the report."""
        if self._evaluation is None:
            return {}
        windows = self._evaluation.windows
        if not isinstance(self.device.model.shape, EncoderShape):
            return {}
        return measure(self.device.model, adapter, windows, memory_mb=self.config.memory_mb).scores

    def _made_evaluation(self) -> tuple[Evaluation | None, str]:
        """How the training is measured; or why it is not."""
        if not self.device.data.held_out:
            return None, "there are too few examples to hold one out"
        try:
            windows = self.device.held_out_windows()
        except DataError as error:
            return None, str(error)
        every = self.run.evaluate_every or self.config.steps
        return Evaluation(windows=windows, every=every, patience=self.run.patience), ""


def _without_start(lora: LoraSection) -> LoraSection:
    """The section as a federation may have it: what begins from the base's weights or a text begins so afterwards."""
    if lora.prompt_tuning_init == "TEXT":
        lora = replace(lora, prompt_tuning_init="SAMPLE_VOCAB", prompt_tuning_init_text="")
    return replace(lora, init="default")
