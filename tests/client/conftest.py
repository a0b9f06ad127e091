"""Packs of tiny models, each made once."""

from __future__ import annotations

import pytest
from fedlora.pack import BasePack
from fedlora_client.decoder import Decoder

from tests.models import DEFAULT, Packs, made_once


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    """The pack of a variant: for reading, it is shared."""
    return made_once(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def base(packs: Packs) -> BasePack:
    """One tiny pack."""
    return packs(DEFAULT)


@pytest.fixture(scope="session")
def decoder(base: BasePack) -> Decoder:
    return Decoder(base)
