"""How long an adapter was under way to a device, and an update from it."""

from __future__ import annotations


def ways_s(sent_at: float, answered_at: float, here_at: float, work_s: float | None) -> dict[str, float]:
    """{download_s, upload_s}, by two clocks: `answered_at` is by the device's, the others by the server's.

    What lies between sending and answering and is not the device's own `work_s` is the way down, with the time in which the
    device had not yet asked for work, and until Flower's process for it began. Where the clocks do not agree on an order,
    neither is told.
    """
    upload_s = here_at - answered_at
    if work_s is None or upload_s < 0 or answered_at - sent_at < work_s:
        return {}
    return {"download_s": answered_at - sent_at - work_s, "upload_s": upload_s}
