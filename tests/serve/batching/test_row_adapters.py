from __future__ import annotations

import numpy as np
from fedlora.base.pack import BasePack
from fedlora_serve.batching.rows import CopiedAdapters

from tests.serve.speakers import Speaker


def test_copies_are_made_anew_only_when_the_rows_change_and_prompts_and_answers_may_take_turns(
    long_base: BasePack, speakers: list[Speaker]
) -> None:
    copied = CopiedAdapters(long_base.shape.linear_modules())
    one, two, three = (speaker.version for speaker in speakers[:3])
    going_on, prompts = copied.feeds([one, None, two]), copied.feeds([three])
    for _ in range(3):
        assert copied.feeds([one, None, two]) is going_on
        assert copied.feeds([three]) is prompts
    changed = copied.feeds([one, None, three])
    assert copied.feeds([three]) is prompts
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    np.testing.assert_array_equal(changed[name][0, :, :1], going_on[name][0, :, :1])
    assert not changed[name][1].any()
    assert copied.feeds([one, None, two]) is not going_on  # the oldest of three sets was let go
