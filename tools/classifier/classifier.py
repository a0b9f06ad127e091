"""A checkpoint with a new classification head on an encoder's: what `fedlora pack` needs to learn labels on it.

    python tools/classifier/classifier.py ENCODER -o DIR --labels World,Sports,Business,Sci/Tech [--seed 0]

ENCODER is a directory that transformers reads. The head is random, as transformers draws it for the seed; the rest of the
model, and its tokenizer, are ENCODER's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("encoder", type=Path)
    arguments.add_argument("-o", "--output", type=Path, required=True)
    arguments.add_argument("--labels", required=True, help="their names, with commas between them")
    arguments.add_argument("--seed", type=int, default=0, help="of the head")
    given = arguments.parse_args()
    write_classifier(given.encoder, given.output, given.labels.split(","), given.seed)


def write_classifier(encoder: Path, output: Path, labels: list[str], seed: int) -> None:
    """Write the checkpoint into `output`."""
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise SystemExit(f"--labels: expected two different names or more, got {','.join(labels)}")
    names = dict(enumerate(labels))
    numbers = {name: number for number, name in names.items()}
    config = AutoConfig.from_pretrained(encoder, num_labels=len(labels), id2label=names, label2id=numbers)  # nosec B615
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, config=config)  # nosec B615
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(output)  # nosec B615


if __name__ == "__main__":
    main()
