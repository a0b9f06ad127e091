"""What lm-eval itself says, recorded: python -m tests.reference.lm_eval_record CHECKPOINT FOLDER

FOLDER is tests/client/evaluation: questions.jsonl there becomes lm_eval.json, and answers.json gsm8k.json. It needs the
package `lm_eval` (0.4.13 made the files of the tests) in an environment of its own, beside torch and transformers: it is no
dependency of fedlora. CHECKPOINT is what `save_oracle` writes of a base pack; that of the tests is stories260K's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(checkpoint: str, folder: str) -> None:
    write_choices(checkpoint, Path(folder, "questions.jsonl"), Path(folder, "lm_eval.json"))
    write_answers(Path(folder, "answers.json"), Path(folder, "gsm8k.json"))


def write_answers(answers: Path, output: Path) -> None:
    """Which of the answers [text, reference] its task gsm8k takes for right, strictly and flexibly."""
    import lm_eval
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter
    from yaml import safe_load

    task = safe_load((Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text())
    metric, found = task["metric_list"][0], []
    for text, reference in json.loads(answers.read_text(encoding="utf-8")):
        verdicts = []
        for each in task["filter_list"]:
            how = {key: value for key, value in each["filter"][0].items() if key != "function"}
            [[number]] = RegexFilter(**how).apply([[text]], [{}])
            options = {name: metric[name] for name in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
            verdicts.append(bool(exact_match_hf_evaluate([number], [reference], **options)["exact_match"]))
        found.append([text, reference, *verdicts])
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write_choices(checkpoint: str, questions: Path, output: Path) -> None:
    """The log-likelihood of each choice, and the scores, of a task that is made of the questions."""
    import lm_eval

    task = {
        "task": "own", "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(questions)}},
        "output_type": "multiple_choice", "doc_to_text": "{{prompt}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm", "acc_bytes")
        ],
    }  # fmt: skip
    found: Any = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": checkpoint, "dtype": "float32", "max_length": 512}, tasks=[task],
        device="cpu", batch_size=1, log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    samples = sorted(found["samples"]["own"], key=lambda sample: sample["doc_id"])
    content = {
        "lm_eval": lm_eval.__version__,
        "scores": {name: found["results"]["own"][f"{name},none"] for name in ("acc", "acc_norm", "acc_bytes")},
        "likelihoods": [[float(choice[0]) for choice in sample["filtered_resps"]] for sample in samples],
    }
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def save_oracle(pack: str, directory: str) -> None:
    """The dequantized base as a checkpoint of transformers, with its tokenizer."""
    from fedlora.base.pack import open_pack
    from transformers import PreTrainedTokenizerFast

    from tests.reference.oracles import oracle

    base = open_pack(pack)
    oracle(base).save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_file=str(base.directory / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
