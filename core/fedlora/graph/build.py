"""The graph of a profile, for whatever kind of model a pack holds."""

from __future__ import annotations

from fedlora.base.pack import BasePack
from fedlora.exported.profiles import Profile
from fedlora.family import DecoderShape
from fedlora.graph.decoder import build_decoder
from fedlora.graph.encoder import build_encoder
from fedlora.graph.graph import Graph


def build_graph(
    base: BasePack, profile: Profile, accuracy_level: int, *, takes_head: bool = True, takes_scales: bool = False
) -> Graph:
    """What the exporter writes; or wrote, of an encoder, before a graph had inputs for a head: `takes_head` False.

    `takes_scales`: with inputs for what scales modules, in SCALE_PROFILES. Raises GraphError where no graph can be made.
    """
    if isinstance(base.model, DecoderShape):
        return build_decoder(base, profile, accuracy_level, takes_scales=takes_scales)
    return build_encoder(base, profile, accuracy_level, takes_head=takes_head, takes_scales=takes_scales)
