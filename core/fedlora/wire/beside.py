"""The record in which signatures travel beside an update or a measurement: a Flower ConfigRecord, and its keys."""

from __future__ import annotations

SIGNED = "signed"  # the record
SIGNED_SAID = "said"  # the envelope of an instruction or an answer, bytes
ROTATED = "rotated"  # statements that vouch for the server's key, a list of bytes
