"""The prompt of Stanford's Alpaca, which most models that were tuned on such records know."""

from __future__ import annotations

_BEGINS = "Below is an instruction that describes a task"
_INPUT = ", paired with an input that provides further context"
_ASKS = ". Write a response that appropriately completes the request.\n\n"


def alpaca_prompt(instruction: str, more: str = "") -> str:
    """What stands before the response: the instruction, and its input where there is one."""
    given = f"### Input:\n{more}\n\n" if more else ""
    asked = f"{_BEGINS}{_INPUT if more else ''}{_ASKS}"
    return f"{asked}### Instruction:\n{instruction}\n\n{given}### Response:\n"
