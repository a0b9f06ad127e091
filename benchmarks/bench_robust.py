"""How far do devices that mean harm move a round?

    python benchmarks/bench_robust.py

One round of ten devices, which all changed small random adapters alike but for noise (of half the size), for every method
with every robust rule that goes with it, under every attack of `robust/attacks.py`. A cell is the distance of what the
server commits from the mean of the honest devices, relative to that mean: 0.2 is what one device of ten does that turns its
change round, and 1 is a round that is lost. The last line is one JSON object: the largest cells of the default.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from fedlora.config.run import AggregationConfig
from fedlora_server.methods import METHODS, find_method

from harness.record import record
from robust.attacked_round import relative_error
from robust.attacks import ATTACKS

UNPROTECTED = AggregationConfig(robust="none", max_weight=0.0)
RULES = ("multi-krum", "geometric-median", "median")


def rows() -> Iterator[tuple[str, str, AggregationConfig]]:
    """(method, what it is combined with, the settings)"""
    own = [name for name in METHODS.names() if find_method(name).__module__.startswith("fedlora_server.")]
    for name in sorted(own, key=lambda name: (name != "svd", bool(find_method(name).refuses_robust), name)):
        method = find_method(name)
        if name == "svd":
            yield name, "nothing", UNPROTECTED
        yield name, "default", AggregationConfig()
        for rule in () if method.refuses_robust else RULES:
            if rule != "median" or method.takes_products:
                yield name, rule, AggregationConfig(robust=rule, weights="uniform")
        if name == "svd":
            yield (
                name,
                "multi-krum, 0.3",
                AggregationConfig(robust="multi-krum", weights="uniform", byzantine_share=0.3),
            )


def main() -> None:
    logging.disable(logging.WARNING)
    print("| method | with |", " | ".join(ATTACKS), "|")
    print("|---|---|", "--:|" * len(ATTACKS), sep="")
    worst: dict[str, float] = {}
    for method, name, settings in rows():
        errors = {attack: relative_error(method, settings, what) for attack, what in ATTACKS.items()}
        print(f"| {method} | {name} |", " | ".join(_told(error) for error in errors.values()), "|", flush=True)
        if name == "default" and not find_method(method).refuses_robust:
            worst = {attack: max(error, worst.get(attack, 0.0)) for attack, error in errors.items()}
    record("robust", {"devices": 10}, {f"default_{a.replace(' ', '_')}": round(e, 3) for a, e in worst.items()})


def _told(error: float) -> str:
    return f"{error:.2f}" if error < 100 else f"{error:.0e}"


if __name__ == "__main__":
    main()
