"""Labels of texts: by the base's head and by those of adapters, in one session, and over HTTP."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedlora.base.pack import BasePack, open_pack
from fedlora.errors import AdapterMismatchError, PackError
from fedlora.exported.inputs import adapter_of_inputs, input_values, weighted_sum
from fedlora.graph.packed_layers import FLOAT_ACCURACY
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_client.reference import logits as torch_scores
from fedlora_export.export import export_base
from fedlora_serve.adapters.loading import load_adapter
from fedlora_serve.classification import Classifier
from fedlora_serve.http.service.config import ServeConfig
from fedlora_serve.http.service.open_service import open_service
from fedlora_serve.http.service.state import ServiceState
from numpy.typing import NDArray

from tests.export.test_heads import as_before, for_labels
from tests.reference.agreement import assert_close
from tests.serve.http.services import Client, refusal
from tests.tiny.adapters import random_adapter
from tests.tiny.encoders import LABELS, encoder_pack
from tests.tiny.kinds import adapter_of_kind
from tests.tiny.tokens import random_texts

LENGTHS = (9, 17, 2, 1, 30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one encoder with its graph, and beside it adapters: without a head, and with two of their own."""
    folder = tmp_path_factory.mktemp("served") / "encoder"
    base = encoder_pack("bert")
    export_base(base, folder, accuracy_level=FLOAT_ACCURACY)
    for name, adapter in adapters_of(base).items():
        content = PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint)
        write_peft(folder.parent / name, content)
    return folder


def adapters_of(base: BasePack) -> dict[str, Adapter]:
    return {"plain": random_adapter(base), "five": for_labels(base, 5), "three": for_labels(base, 3, seed=8)}


def probabilities(base: BasePack, row: list[int], adapter: Adapter | None) -> NDArray[np.float64]:
    tokens = np.array([row])
    scores = torch_scores(base, tokens, adapter, np.ones_like(tokens))[0]
    return torch.softmax(torch.from_numpy(scores).double(), 0).numpy()


def test_probabilities_are_torchs_with_each_adapter_in_turn(served: Path) -> None:
    classifier, base = Classifier(served, threads=1, max_tokens=40), encoder_pack("bert")
    tokens, mask = random_texts(base, LENGTHS)
    rows = [row[: length.sum()].tolist() for row, length in zip(tokens, mask, strict=True)]
    for name, adapter in {**adapters_of(base), "": None}.items():
        loaded = load_adapter(served.parent / name, classifier.base) if name else None
        got = classifier.probabilities(rows, loaded)
        np.testing.assert_allclose(got.sum(1), 1)
        for row, one in zip(rows, got, strict=True):
            assert_close(one.astype(np.float32), probabilities(base, row, adapter).astype(np.float32))
    assert classifier.labels(3) == LABELS
    assert classifier.labels(5) == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4")


def test_an_encoder_without_a_head_and_a_graph_without_inputs_for_one_are_refused(served: Path, tmp_path: Path) -> None:
    export_base(encoder_pack("bare bert"), tmp_path / "bare", accuracy_level=FLOAT_ACCURACY)
    with pytest.raises(PackError, match="without a classification head, which gives no labels"):
        Classifier(tmp_path / "bare")
    export_base(encoder_pack("bert"), tmp_path / "before")
    before = open_pack(tmp_path / "before")
    as_before(before, "compat")
    classifier = Classifier(tmp_path / "before", threads=1)
    assert classifier.probabilities([[5, 6]], load_adapter(served.parent / "plain", before)).shape == (1, 3)
    with pytest.raises(AdapterMismatchError, match=r"five: it has a head of its own, and encoder.onnx is of before"):
        classifier.probabilities([[5, 6]], load_adapter(served.parent / "five", before))


@pytest.fixture(scope="module")
def state(served: Path) -> ServiceState:
    places = {name: str(served.parent / name) for name in ("plain", "five", "three")}
    return open_service(served, ServeConfig(adapters=places, threads=1))


def test_a_service_refuses_what_its_graph_does_not_take_when_it_is_loaded(state: ServiceState, served: Path) -> None:
    base, place = encoder_pack("bert"), served.parent / "ia3"
    content = PeftDirectory(adapter=adapter_of_kind("ia3", base), base_fingerprint=base.fingerprint)
    write_peft(place, content, base_name="base")
    with pytest.raises(AdapterMismatchError, match=r"encoder\.onnx has no inputs for that; .*--output-scales"):
        state.store.load("ia3", place)


def ask(state: ServiceState, path: str = "/v1/classify", **fields: Any) -> Any:
    return Client(state).post(path, {"model": state.base_name, "input": "so so", **fields})


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
@pytest.mark.parametrize("name", ["", "plain", "five", "three"])
def test_a_text_has_the_label_of_the_model_that_is_named(state: ServiceState, name: str, path: str) -> None:
    texts = ["good and kind", "so so"]
    response = ask(state, path, input=texts, **({"model": name} if name else {}))
    answer, base = response.json(), encoder_pack("bert")
    labels = [f"LABEL_{number}" for number in range(5)] if name == "five" else list(LABELS)
    assert (answer["object"], answer["model"], answer["labels"]) == ("list", name or state.base_name, labels)
    assert state.classifier is not None
    for number, (text, one) in enumerate(zip(texts, answer["data"], strict=True)):
        expected = probabilities(base, state.classifier.tokens(text), adapters_of(base).get(name))
        np.testing.assert_allclose(one["probs"], expected, atol=1e-4)
        assert (one["index"], one["num_classes"]) == (number, len(labels))
        assert one["label"] == labels[int(expected.argmax())]
    tokens = sum(len(state.classifier.tokens(text)) for text in texts)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    digests = {status.name: status.digest for status in state.store.list()}
    assert response.headers["X-Adapter-Digest"] == digests.get(name, "none")
    assert not any(status.users for status in state.store.list())


def test_adapters_with_heads_for_as_many_labels_classify_together(state: ServiceState, served: Path) -> None:
    base, shares = encoder_pack("bert"), {"three": 0.75, "other": 0.5}
    given = {"three": for_labels(base, 3, seed=8), "other": for_labels(base, 3, seed=9)}
    write_peft(served.parent / "other", PeftDirectory(adapter=given["other"], base_fingerprint=base.fingerprint))
    state.store.load("other", served.parent / "other")
    response = ask(state, adapters=[{"name": name, "weight": weight} for name, weight in shares.items()])
    whole = adapter_of_inputs(weighted_sum([(input_values(given[name]), weight) for name, weight in shares.items()]))
    for name, value in whole.extras.items():
        np.testing.assert_allclose(value, sum(w * given[n].extras[name] for n, w in shares.items()), rtol=1e-6)
    assert state.classifier is not None
    expected = probabilities(base, state.classifier.tokens("so so"), whole)
    np.testing.assert_allclose(response.json()["data"][0]["probs"], expected, atol=1e-4)
    refused = refusal(ask(state, adapters=[{"name": "three"}, {"name": "five"}]))
    assert "five has a head with" in refused["message"]
    assert not any(status.users for status in state.store.list())
    state.store.unload("other")


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"input": []}, "input"), ({"input": ["x"] * 999}, "input"), ({"input": "x" * 99}, "input")],
)  # fmt: skip
def test_what_cannot_be_classified_is_refused_by_its_field(
    state: ServiceState, fields: dict[str, Any], param: str
) -> None:
    assert refusal(ask(state, **fields))["param"] == param


def test_an_answer_has_no_more_numbers_than_it_may_whatever_head_an_adapter_brings(
    state: ServiceState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "limits", dataclasses.replace(state.limits, max_logprobs=9))
    assert ask(state, input=["a", "b"]).status_code == 200
    told = "input: expected at most 1 text in one request of this model, which has 5 labels, got 2"
    assert told in refusal(ask(state, model="five", input=["a", "b"]))["message"]
    assert ask(state, model="five", input=["a"]).status_code == 200


def test_what_a_base_with_labels_does_not_do_is_said_with_what_it_does(state: ServiceState) -> None:
    for path in ("/v1/embeddings", "/v1/completions"):
        fields = {"prompt": "a"} if "completions" in path else {"input": "a"}
        response = Client(state).post(path, {"model": state.base_name, **fields})
        assert "use /v1/classify" in refusal(response)["message"]
    assert Client(state).get("/health").json()["status"] == "ok"


def test_an_adapter_whose_head_is_changed_has_another_digest(served: Path, tmp_path: Path) -> None:
    base = open_pack(served)
    adapter = for_labels(base, 3)
    more = with_extras(adapter, {**adapter.extras, "classifier.bias": adapter.extras["classifier.bias"] + 1})
    digests = set()
    for name, each in {"one": adapter, "two": more}.items():
        write_peft(tmp_path / name, PeftDirectory(adapter=each, base_fingerprint=base.fingerprint))
        digests.add(load_adapter(tmp_path / name, base).digest)
    assert len(digests) == 2
