"""An adapter from the wild, on BERT's query and value, over a random base of BERT's size."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fedlora.lora.adapter import with_extras
from fedlora.peft.directory import read_peft
from fedlora_client.reference import logits

from tests.reference.agreement import assert_close
from tests.reference.oracles import oracle
from tests.tiny.encoders import save_encoder_pack, shape_of
from tests.tiny.tokens import random_texts

_BERT_BASE: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "max_position_embeddings": 512, "id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1},
}  # fmt: skip


@pytest.mark.slow
def test_scores_with_an_adapter_from_the_wild_equal_pefts_with_its_classifier_and_with_the_bases_own(
    shared: Path, tmp_path: Path
) -> None:
    folder = shared / "fixtures" / "peft-bert-seqcls"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    base = save_encoder_pack("bert", tmp_path / "pack", **_BERT_BASE)
    content = read_peft(folder)
    content.adapter.check_fits(shape_of(base).linear_modules(), str(folder))
    assert len(content.adapter.pairs) == 24
    assert content.adapter.extras.keys() == {"classifier.weight", "classifier.bias"}
    bert = oracle(base)
    tokens, mask = random_texts(base, (24, 9))
    given = {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}
    with torch.no_grad(), warnings.catch_warnings():
        plain = bert(**given).logits
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        model = peft.PeftModel.from_pretrained(bert, str(folder)).eval()
        whole = model(**given).logits
        head = model.base_model.model.classifier
        head.modules_to_save["default"].load_state_dict(head.original_module.state_dict())
        expected = model(**given).logits
    assert_close(logits(base, tokens, content.adapter, mask), whole)
    assert_close(logits(base, tokens, with_extras(content.adapter, {}), mask), expected)
    assert float((expected - plain).abs().max()) > 1e-3  # and it does something
