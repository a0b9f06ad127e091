"""`fedlora train`: an adapter for one device's own data, without a federation."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from fedlora.base.pack import CONFIG, EMBEDDED
from fedlora.config.run import FieldNames, RunConfig, changed
from fedlora.counted import counted
from fedlora.errors import ConfigError, RunError
from fedlora.files.atomic import check_directory
from fedlora.lora.config import KINDS
from fedlora.nearest import check_there
from fedlora.peft.finding import check_adapter
from fedlora.peft.layout import CONFIG as ADAPTER_CONFIG
from fedlora.terminal import Terminal
from fedlora.terminal import warning as as_warning
from rich.console import Console

if TYPE_CHECKING:
    from fedlora_client.local_training import LocalRun

_FIELDS = tuple(f"data.fields.{field.name}" for field in dataclasses.fields(FieldNames))
_OTHER_KEYS = ("seed", "data.max_bytes", *_FIELDS)
_FULL_KEYS = {
    *_OTHER_KEYS, "train.steps", "train.batch_size", "train.sequence_length", "train.lr", "train.schedule",
    "train.warmup_steps", "train.weight_decay", "train.max_grad_norm",
}  # fmt: skip


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The adapter's directory.")
@click.option(
    "--base",
    default="nano",
    metavar="BASE",
    show_default=True,
    help="A base pack; with --full a checkpoint or a hub id.",
)
@click.option("--steps", type=click.IntRange(min=1), help="How long to train.  [default: 20, or as --epochs says]")
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), help="How long, in passes over the data.")
@click.option("--method", type=click.Choice(KINDS), help="What the adapter is: see docs/adapters.md.  [default: lora]")
@click.option("--rank", type=int, help="Of the adapter.  [default: 16]")
@click.option("--lr", type=float, help="Learning rate.  [default: by the base's width and what trains]")
@click.option("--memory-mb", type=int, help="What the process may take in all.  [default: what it likes]")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Any other key, e.g. train.schedule=cosine.")
@click.option("--adapter", type=click.Path(path_type=Path), help="Go on from this adapter, a PEFT directory.")
@click.option(
    "--beside", type=click.Path(path_type=Path),
    help="Train beside this adapter, which stays as it is; the result holds both.",
)  # fmt: skip
@click.option(
    "--evaluate-every", type=click.IntRange(min=1), help="Measure on held-out data.  [default: before and after]"
)
@click.option("--patience", type=click.IntRange(min=1), help="Stop after so many evaluations that are no better.")
@click.option("--save-every", type=click.IntRange(min=1), help="Steps between states.  [default: 20]")
@click.option("--resume", is_flag=True, help="Go on with the training of this output that was stopped.")
@click.option("--full", is_flag=True, help="Train every weight of an unquantized checkpoint instead: a baseline.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
def train(
    data: Path, output: Path, base: str, steps: int | None, epochs: float | None, method: str | None, rank: int | None,
    lr: float | None,
    memory_mb: int | None, changes: tuple[str, ...], adapter: Path | None, beside: Path | None, evaluate_every: int | None,
    patience: int | None, save_every: int | None, resume: bool, full: bool, force: bool,
) -> None:  # fmt: skip
    """Train an adapter on DATA: a text file, a file of records (JSON, JSON Lines, CSV, TSV), or a folder of them.

    A tenth is held out, or what a folder's files called valid or test hold. The result is a PEFT directory. Records are
    text, prompt/completion, messages, ShareGPT's conversations or Alpaca's instructions: see client/README.md.
    """
    short = {
        "train.steps": steps,
        "lora.method": method,
        "lora.rank": rank,
        "train.lr": lr,
        "train.memory_mb": memory_mb,
    }
    given = [f"{key}={value}" for key, value in short.items() if value is not None]
    keys = {change.partition("=")[0] for change in (*given, *changes)}
    config = changed(replace(RunConfig(), base=base), [*given, *changes])
    for wrong in sorted(key for key in keys if not key.startswith(("lora.", "train.")) and key not in _OTHER_KEYS):
        raise ConfigError(
            f"--set {wrong}: one device alone takes lora.*, train.*, seed and data.max_bytes, and data.fields.* only"
        )
    if epochs and "train.steps" in keys:
        raise ConfigError("--steps and --epochs both say how long to train; give one of them")
    if patience and not evaluate_every:
        raise ConfigError("--patience counts evaluations; say how often there is one, with --evaluate-every")
    if adapter and (fixed := sorted(key for key in keys if key.startswith("lora.") and key != "lora.modules_to_save")):
        raise ConfigError(f"{', '.join(fixed)}: the adapter {adapter} has its own; leave it out")
    check_directory(output.absolute(), replace=(CONFIG if full else ADAPTER_CONFIG) if force else None)
    check_there(data)
    if adapter:
        check_adapter(adapter)
    if beside:
        check_adapter(beside)
    if not full:
        check_there(base, (EMBEDDED,))
    # Here, because it takes torch seconds to load: what is mistyped has been told.
    from fedlora_client.commands.train_display import TrainDisplay
    from fedlora_client.local_training import LocalRun, LocalTraining
    from fedlora_client.training.memory import peak_bytes

    run = LocalRun(
        data=data, output=output.absolute(), config=config, start=adapter, beside=beside, epochs=epochs or 0,
        evaluate_every=evaluate_every or 0, patience=patience or 0, save_every=save_every or 20, replace=force,
    )  # fmt: skip
    console = Terminal(stderr=True)
    if full:
        unused = sorted(keys - _FULL_KEYS)
        if adapter or beside or resume or patience or evaluate_every or save_every or unused:
            what = f"; {', '.join(unused)} mean nothing to it" if unused else ""
            raise ConfigError(
                "--full is a plain baseline: leave --adapter, --beside, --resume, --save-every, --evaluate-every and "
                f"--patience out{what}"
            )
        _train_all(run, data, output.absolute(), console)
        return
    _check_state(run.state_file, resume=resume)
    training = LocalTraining(run)
    for line in training.data_lines():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    for warning in training.warnings():
        console.print(as_warning(warning), soft_wrap=True)
    console.print(
        f"{training.device.model.compute}; {counted(len(training.windows), 'window')}, "
        f"{training.windows.learned_tokens} tokens"
    )
    with TrainDisplay(console, training.config) as display:
        try:
            result = training.train(display.watcher)
        except KeyboardInterrupt:
            saved = run.state_file.exists()
            raise RunError(f"stopped; {'--resume goes on' if saved else 'nothing was saved yet'}") from None
    if result.evaluations:
        step, loss = min(result.evaluations, key=lambda evaluation: evaluation[1])
        before = f", {result.evaluations[0][1]:.4f} before" if step else ": training made it no better"
        console.print(
            f"held-out loss {loss:.4f} nats per {training.device.model.unit} after step {step}{before}", highlight=False
        )
    console.print(f"peak memory {peak_bytes() / 1e6:.0f} MB", highlight=False)
    click.echo(output)


def _train_all(run: LocalRun, data: Path, output: Path, console: Console) -> None:
    """Full fine-tuning."""
    from fedlora_client.commands.train_display import TrainDisplay
    from fedlora_client.training.full_training import FullTraining

    training = FullTraining(run.config, data, run.epochs)
    rate = training.config.train.rate
    console.print(
        f"full fine-tuning of {training.parameters:,} parameters in float32, learning rate {rate:g}", highlight=False
    )
    before = training.evaluate()
    with TrainDisplay(console, training.config.train) as display:
        training.train(display.watcher.on_step)
    training.write(output, replace=run.replace)
    console.print(f"held-out loss {training.evaluate():.4f} nats per token, before {before:.4f}", highlight=False)
    click.echo(output)


def _check_state(state_file: Path, *, resume: bool) -> None:
    """What a stopped training left is neither lost nor used by accident."""
    if resume and not state_file.exists():
        raise ConfigError(
            f"--resume: there is no {state_file}: no training of this output was stopped after it was saved; leave "
            "--resume out"
        )
    if state_file.exists() and not resume:
        raise ConfigError(
            f"{state_file}: a training of this output was stopped; pass --resume to go on, or remove the file to begin anew"
        )
