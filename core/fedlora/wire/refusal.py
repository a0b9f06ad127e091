"""The words by which a device tells that its policy does not let it do what it was asked.

A refusal is an answer like any other: Flower's ConfigRecord `refusal` with a `reason`, one of these words, by which the
server counts it, and `said`, a text for the log. The words are few and known: a device cannot make the server count by
words of its own.
"""

from __future__ import annotations

REFUSAL, REASON, SAID = "refusal", "reason", "said"  # the record and its keys

POLICY_REASONS: dict[str, str] = {
    "policy-run": "the run is none of those that the device takes part in",
    "policy-key": "the key of the server is none of those that the device trusts",
    "policy-base": "the run's base is none of those that the device allows",
    "policy-method": "the run's method is none of those that the device allows",
    "policy-rank": "the adapter's rank is above the device's largest",
    "policy-steps": "the round has more steps than the device takes",
    "policy-seconds": "the round would take longer than the device allows",
    "policy-memory": "the training would take more memory than the device gives",
    "policy-examples": "the device has fewer examples than it wants to hide among",
    "policy-hours": "it is one of the device's quiet hours",
    "policy-battery": "the battery is below the device's least",
    "policy-mains": "the device works on mains power only",
    "policy-idle": "the device works while it is idle only",
    "policy-rounds": "the device has done its rounds of the day",
    "policy-bytes": "the device has sent and received its bytes of the day",
    "policy-paused": "whoever owns the device has paused it",
    "policy-unsigned": "the instruction is not signed, and the device knows its server's key",
    "policy-replay": "the instruction is an old one, or of another device, run or round",
    "policy-history": "the server tells of another record of a round than it did before",
}
# The words by which a server counts an answer that it does not take for the device's own.
SIGNATURE_REASONS: dict[str, str] = {
    "unsigned": "the device has a key, and the answer is not signed",
    "bad-signature": "it is not signed by the device's key, or only by half of it",
    "replayed": "it answers another instruction than the one that was sent",
    "relabelled": "it says something else than what came beside it: another update, run, round or base",
}
