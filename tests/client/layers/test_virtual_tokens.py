"""Virtual tokens in a window of several examples: each is what it is alone; what is planned for them, and refused."""

# S windows, T tokens of each

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.config.run import LoraSection, RunConfig, TrainConfig
from fedlora.errors import ConfigError
from fedlora_client.data.tokenizer import open_tokenizer
from fedlora_client.data.windows import IGNORED, Windows
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.evaluation.ends import Ends
from fedlora_client.evaluation.scorer import TorchScorer
from fedlora_client.layers.virtual_tokens import laid_out, longest
from fedlora_client.ops.compute import Compute
from fedlora_client.training.measuring import evaluate
from fedlora_client.training.planning import plan_training
from torch import Tensor

from tests.tiny.encoders import encoder_pack
from tests.tiny.families import family_pack
from tests.tiny.kinds import adapter_of_kind

VIRTUAL = ("prompt", "prefix")
LENGTHS = (5, 1, 3)  # examples of a window of 12; 3 tokens of padding
CONFIG = TrainConfig(steps=1, batch_size=4, sequence_length=12)


def window() -> Windows:
    """One window of three examples, one of which is a single token that is learned from, padded."""
    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randint(1, 200, (2, 1, 12), generator=generator)
    targets[:, sum(LENGTHS) :] = IGNORED
    starts = torch.arange(12)[None].clone()
    for begin, length in zip(np.cumsum((0, *LENGTHS)), LENGTHS, strict=False):
        starts[:, begin : begin + length] = begin
    return Windows(inputs, targets, starts)


def apart(windows: Windows) -> list[Windows]:
    """Each example in a window of its own, without padding."""
    cuts = [(int(end) - length, int(end)) for end, length in zip(np.cumsum(LENGTHS), LENGTHS, strict=True)]
    alone: list[Windows] = []
    for begin, end in cuts:
        here = slice(begin, end)
        alone.append(
            Windows(windows.inputs[:, here], windows.targets[:, here], torch.zeros(1, end - begin, dtype=torch.long))
        )
    return alone


def test_rows_of_virtual_tokens_stand_before_each_example_and_padding_has_none() -> None:
    windows = window()
    layout = laid_out(windows.starts, 2, windows.targets != IGNORED)
    #        v v a a a a a  v v b  v v c c c  and padding, each its own
    begins = [0] * 7 + [7] * 3 + [10] * 5 + [15, 16, 17]
    assert layout.starts.tolist() == [begins]
    assert layout.places.tolist() == [[0, 1], [7, 8], [10, 11]]
    assert layout.tokens.tolist() == [2, 3, 4, 5, 6, 9, 12, 13, 14, 15, 16, 17]
    assert longest(windows, 2) == 18


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("kind", VIRTUAL)
def test_an_example_among_others_is_what_it_is_alone(kind: str, family: str, compute: Compute) -> None:
    decoder = Decoder(family_pack(family), compute)
    adapter, together = adapter_of_kind(kind, decoder.base), window()

    def learned(windows: Windows) -> tuple[Tensor, Tensor]:
        """(losses, gradients)"""
        lora, scale = decoder.lora(adapter), torch.ones(windows.inputs.shape)
        losses = decoder.add_gradients(
            windows.inputs, windows.targets, windows.starts, scale, lora, decoder.workspace()
        )
        return losses, lora.flats["own"].gradient

    losses, gradients = learned(together)
    alone = [learned(windows) for windows in apart(together)]
    assert torch.allclose(losses[:, : sum(LENGTHS)], torch.cat([each for each, _ in alone], 1), atol=1e-5)
    assert torch.allclose(gradients, sum(each for _, each in alone), atol=1e-5)  # type: ignore[arg-type]
    loss, tokens = evaluate(decoder, adapter, together)
    assert tokens == sum(LENGTHS)
    assert loss == pytest.approx(float(losses.sum()) / tokens, rel=1e-5)


@pytest.mark.parametrize("kind", VIRTUAL)
def test_answers_follow_the_scores_of_texts_with_virtual_tokens(base: BasePack, kind: str, compute: Compute) -> None:
    """Prompts of several lengths, one of a single token, are read in one padded batch."""
    decoder = Decoder(base, compute)
    adapter, prompts = adapter_of_kind(kind, base), [[5], [7, 8, 9, 4]]
    answers = TorchScorer(decoder, adapter).continued(
        prompts, 3, Ends(tokenizer=open_tokenizer(base.directory), tokens=())
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        scores = decoder.logits(torch.tensor([prompt + answer[:-1]]), decoder.lora(adapter))
        assert answer == scores[0, len(prompt) - 1 :].argmax(1).tolist()


@pytest.mark.parametrize("kind", VIRTUAL)
def test_the_plan_of_a_step_holds_the_virtual_tokens_of_every_example(
    base: BasePack, kind: str, compute: Compute
) -> None:
    decoder, adapter, windows = Decoder(base, compute), adapter_of_kind(kind, base), window()
    plan = plan_training(decoder, [adapter], CONFIG, windows=[windows])
    longer = TrainConfig(steps=1, batch_size=4, sequence_length=12 + 3 * 3)
    plain = adapter_of_kind("ia3", base)
    assert plan.micro_batch == plan_training(decoder, [plain], longer).micro_batch
    several, space = windows.batch(torch.zeros(plan.micro_batch, dtype=torch.long)), decoder.workspace()
    decoder.add_gradients(
        several.inputs, several.targets, several.starts, torch.ones(several.inputs.shape), decoder.lora(adapter), space,
        plan.memory_plan,
    )  # fmt: skip
    assert space.size_bytes < plan.step_bytes
    with pytest.raises(
        ConfigError, match=r"lora.num_virtual_tokens is 3 and train.sequence_length 62; expected at most"
    ):
        plan_training(decoder, [adapter], TrainConfig(sequence_length=base.shape.max_positions - 2))


def test_a_sequence_that_exceeds_the_context_with_its_virtual_tokens_is_refused(
    base: BasePack, compute: Compute
) -> None:
    decoder = Decoder(base, compute)
    tokens = torch.zeros(1, base.shape.max_positions - 2, dtype=torch.long)
    with pytest.raises(ConfigError, match=f"a sequence has {base.shape.max_positions + 1} tokens, virtual ones among"):
        decoder.logits(tokens, decoder.lora(adapter_of_kind("prefix", base)))


@pytest.mark.parametrize("kind", VIRTUAL)
def test_an_encoder_has_none(kind: str) -> None:
    base = encoder_pack("bert")
    with pytest.raises(ConfigError, match=f"lora.method = {kind} is for decoders, and the base is an encoder"):
        RunConfig(base=str(base.directory), lora=LoraSection(method=kind)).first_adapter(base)
