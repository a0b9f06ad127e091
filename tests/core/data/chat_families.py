"""Chat templates of the shapes of model families, in small, and what each has its assistant say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@dataclass(frozen=True)
class Family:
    """A template, and what it has an assistant say: said(content, whether it is the last message)."""

    source: str
    said: Callable[[str, bool], str]
    takes_system: bool = True


def lines(*parts: str) -> str:
    return "".join(parts)


LLAMA = lines(
    "{{ bos_token }}{% for m in messages %}",
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
)
CHATML = lines(
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}",
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
)
# It keeps thoughts of the answers after the last question alone, and writes an empty one where there is none.
QWEN3 = lines(
    "{% set ns = namespace(last=-1) %}",
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}",
    "{% set content = m.content or '' %}{% set thought = '' %}",
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}",
    "{% elif '</think>' in content %}",
    "{% set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}",
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}",
    "{{ '<|im_start|>assistant\\n' }}",
    "{% if loop.index0 > ns.last and (loop.last or thought) %}",
    "{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}",
    "{% else %}{{ content }}{% endif %}",
    "{% for call in m.tool_calls or [] %}",
    "{{ '<tool_call>' + call.function.name + (call.function.arguments | tojson) + '</tool_call>' }}{% endfor %}",
    "{{ '<|im_end|>\\n' }}",
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}",
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}",
)
PHI3 = lines(
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
)
# What the system says and the tools stand at the last question: the text before it changes as the chat goes on.
MISTRAL = lines(
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}",
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}",
    "{% set ns = namespace(last=-1) %}",
    "{% for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}",
    "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}",
    "{% if (loop.index0 % 2) != 0 %}{{ raise_exception('roles must alternate') }}{% endif %}",
    "{% if loop.index0 == ns.last and tools %}",
    "{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}",
    "{{ '[INST] ' + (system + '\\n\\n' if system and loop.index0 == ns.last else '') + m.content + '[/INST]' }}",
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}",
)
GEMMA = lines(
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}",
    "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
)
ZEPHYR = lines(
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}",
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}",
)
# An answer begins with a thought, which no answer of the past has.
DEEPSEEK = lines(
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<\uff5cUser\uff5c>' + m.content }}",
    "{% elif m.role == 'assistant' %}",
    "{{ '<\uff5cAssistant\uff5c>' + m.content.split('</think>')[-1] + '<\uff5cend▁of▁sentence\uff5c>' }}",
    "{% endif %}{% endfor %}",
    "{% if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c><think>\\n' }}{% endif %}",
)

FAMILIES = {
    "llama-3": Family(LLAMA, lambda content, last: content.strip() + "<|eot_id|>"),
    "chatml": Family(CHATML, lambda content, last: content + "<|im_end|>\n"),
    "qwen-3": Family(
        QWEN3,
        lambda content, last: ("<think>\n\n</think>\n\n" + content.lstrip("\n") if last else content) + "<|im_end|>\n",
    ),
    "phi-3": Family(PHI3, lambda content, last: content + "<|end|>\n" + "</s>" * last),
    "mistral": Family(MISTRAL, lambda content, last: f" {content.strip()}</s>"),
    "gemma": Family(GEMMA, lambda content, last: content.strip() + "<end_of_turn>\n", takes_system=False),
    "zephyr": Family(ZEPHYR, lambda content, last: content + "</s>\n"),
    "deepseek": Family(DEEPSEEK, lambda content, last: content + "<\uff5cend▁of▁sentence\uff5c>"),
}
