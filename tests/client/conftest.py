"""Packs of tiny models, each made once, and what computes on them."""

from __future__ import annotations

import pytest
from fedlora.base.pack import BasePack
from fedlora_client.decoder.decoder import Decoder
from fedlora_client.ops.compute import Compute, choose_compute, native_ops
from fedlora_client.ops.native_ops import NativeOps
from fedlora_client.ops.ops import Ops
from fedlora_client.ops.plain_ops import PlainOps


@pytest.fixture(scope="session")
def compute() -> Compute:
    """float32, with the kernels: there is a C compiler wherever these tests run."""
    return choose_compute("float32", "on", "cpu")


@pytest.fixture(scope="session")
def decoder(base: BasePack, compute: Compute) -> Decoder:
    return Decoder(base, compute)


@pytest.fixture(params=["plain", "native"])
def ops(request: pytest.FixtureRequest) -> Ops:
    """Each implementation of the operations."""
    if request.param == "plain":
        return PlainOps()
    found = native_ops()
    assert isinstance(found, NativeOps), found
    return found
