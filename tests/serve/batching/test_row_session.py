"""What is told where a folder has no graph with independent rows."""

from __future__ import annotations

import re

import pytest
from fedlora.base.pack import EMBEDDED, BasePack, open_pack
from fedlora.errors import GraphError
from fedlora_serve.batching.row_session import open_rows


def test_a_pack_without_a_graph_is_told_how_to_write_one_beside_it(long_base: BasePack) -> None:
    command = f"fedlora export {long_base.directory} --profile kernel"
    with pytest.raises(GraphError, match=re.escape(command)):
        open_rows(long_base)


def test_the_embedded_base_is_exported_into_a_folder_of_its_own() -> None:
    with pytest.raises(GraphError, match=r"fedlora export nano -o DIR --profile kernel .*, and serve DIR$") as error:
        open_rows(open_pack(EMBEDDED))
    assert "export /" not in str(error.value)
