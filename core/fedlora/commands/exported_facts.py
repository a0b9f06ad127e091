"""What `fedlora inspect` shows of an adapter file, with its manifest or without."""

from __future__ import annotations

from fedlora.exported.adapter_file import AdapterFile
from fedlora.exported.cache_prefix import virtual_tokens
from fedlora.exported.inputs import is_of_head, modules_of
from fedlora.exported.inputs import modules_in as groups_in
from fedlora.lora.kinds import BY_NAME
from fedlora.lora.output_scale import METHODS, is_scale


def exported_facts(file: AdapterFile) -> dict[str, object]:
    """{what it is called: what there is to tell}"""
    manifest, values = file.manifest, file.values
    factors = [module for group in groups_in(values) for module in modules_of(group)]
    scaled = [
        module for group in dict.fromkeys(name.rpartition(".")[0] for name in values if is_scale(name))
        for module in modules_of(group)
    ]  # fmt: skip
    some_kind = " or ".join(BY_NAME[method].title for method in METHODS) if scaled else BY_NAME["lora"].title
    facts: dict[str, object] = {"method": BY_NAME[manifest.method].title if manifest else some_kind}
    if manifest and manifest.ranks:
        facts["rank"] = ", ".join(map(str, sorted(set(manifest.ranks.values()))))
        facts["alpha"] = f"{manifest.lora.alpha:g}{' (rsLoRA)' if manifest.lora.use_rslora else ''}"
    if factors:
        facts["modules"] = len(manifest.ranks) if manifest else len(factors)
    if scaled:
        facts["scaled modules"] = len(scaled)
    if head := [name for name in values if is_of_head(name)]:
        facts["head"] = f"{', '.join(head)}: its own, in place of the base's"
    if virtual := virtual_tokens(values):
        facts["method"] = BY_NAME[manifest.method].title if manifest else "prompt tuning or prefix tuning"
        facts["virtual tokens"] = virtual
    facts["parameters"] = f"{sum(value.size for value in values.values()):,}"
    if manifest is None:
        return facts | {"base": f"not told but by 31 bits ({file.model_version:08x}); there is no manifest beside it"}
    return facts | {"base": manifest.base, "profile": manifest.profile, "made of": manifest.source}
