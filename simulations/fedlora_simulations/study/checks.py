"""What is wrong with the runs of a study, told before the first of them, and before torch is there."""

from __future__ import annotations

from fedlora.base.pack import CONFIG, find_pack
from fedlora.data.examples import MultipleChoice
from fedlora.errors import ConfigError, PackError
from fedlora.family import EncoderShape, model_shape
from fedlora.files.atomic import check_writable
from fedlora.files.documents import read_object
from fedlora_server.run.run_directory import CONFIG as RUN_CONFIG

from fedlora_simulations.checks import check_devices, check_parts, check_ranks, data_of
from fedlora_simulations.study.definition import OF_CHOICES, SCORES, Study
from fedlora_simulations.study.plan import all_runs, tuning_runs
from fedlora_simulations.study.results import Results


def check_study(study: Study, results: Results) -> None:
    """Raise FedloraError for a run that could not begin: what `check_simulation` raises, once for each kind of run; and
    where the learning rates cannot be chosen by what they are to be chosen by, or the results cannot be kept.
    """
    if (results.path.parent / RUN_CONFIG).is_file():
        raise ConfigError(
            f"{results.path.parent} holds a run; a study takes a directory of its own: name another output"
        )
    check_writable(results.path)
    runs = all_runs(study, results)
    for run in {(run.row, run.setting): run for run in runs}.values():
        check_parts(run.located())
        check_ranks(run.located())
    for run in {run.setting: run for run in runs}.values():
        check_devices(run.located())
    _check_choice(study, results)


def _check_choice(study: Study, results: Results) -> None:
    by = study.tuning.choose_by
    for run in {run.row: run for run in tuning_runs(study)}.values() if by in SCORES else ():
        config = run.located()
        directory = find_pack(config.base)
        shape = model_shape(
            read_object(directory / CONFIG, PackError, "a model's config.json"), str(directory / CONFIG)
        )
        if isinstance(shape, EncoderShape):
            is_told = bool(shape.labels)
        else:
            held_out = data_of(config, 0).held_out
            is_told = by in OF_CHOICES and all(isinstance(example, MultipleChoice) for example in held_out)
        if not is_told:
            raise ConfigError(
                f"{study.file}: tuning.choose_by is {by}, and {directory} ({shape.model_type}) has no labels, nor the data "
                "multiple choice, whose accuracy is told; choose by loss or worst_tenth, or take a base "
                "ForSequenceClassification"
            )
    for run in tuning_runs(study):
        done = results.done(run.digest)
        if done and not done.measures and done.value(by) is None:
            raise ConfigError(
                f"{results.path}: {run.row} with lr {run.config.train.lr:g} ran when only its loss was kept, and "
                f"tuning.choose_by is {by}; choose by loss, or name another output"
            )
