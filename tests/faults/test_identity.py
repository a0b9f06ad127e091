"""A device whose certificate or enrolment is wrong: it says so, and the round goes on without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from tests.faults.fleets import Fleet, until

pytestmark = pytest.mark.faults


def without_pantry(fleet: Fleet) -> None:
    """A run of one round that three devices are enough for, while the fourth one does not get through."""
    fleet.start_server(
        "--new", "--set=server.min_devices=3", "--set=server.rounds=1", "--set=server.round_timeout_s=60"
    )
    fleet.finish()
    (line,) = fleet.rounds()
    assert sorted(line["train_loss"]) == ["attic", "cellar", "kitchen"]


@pytest.fixture
def stopped(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet without pantry, whose own things may be changed; it has them back at the end."""
    fleet.all_there()
    fleet.devices["pantry"].end()
    yield fleet
    fleet.devices["pantry"].end()


def test_a_device_whose_certificate_has_expired_says_so(stopped: Fleet, row: Callable[[str, str], None]) -> None:
    path = stopped.folder / "pantry" / "own" / "fleet.crt"
    sound = path.read_bytes()
    path.write_bytes(expired(stopped.settings.at("tls", "ca.crt"), stopped.settings.at("tls", "ca.key")))
    try:
        stopped.start_device("pantry")
        without_pantry(stopped)
        until(lambda: "certificate has expired" in stopped.said("pantry"), stopped.said("pantry"), 60)
    finally:
        path.write_bytes(sound)
    line = next(line for line in stopped.said("pantry").splitlines() if "certificate has expired" in line)
    row("an expired certificate", line)


def test_a_revoked_device_says_so_and_counts_no_more(fleet: Fleet, row: Callable[[str, str], None]) -> None:
    if "guest" not in fleet.names:
        fleet.join("guest")
    fleet.begin(server__rounds=4, server__min_devices=2)
    hit = fleet.until_it_trains("guest")
    fleet.fedlora("server", "revoke", "guest", "--dir", "fleet")
    try:
        until(lambda: "revoked" in fleet.said("guest"), "the device does not say that it is revoked")
        fleet.finish()
    finally:
        fleet.devices.pop("guest").end()
        fleet.names.remove("guest")
    line = fleet.rounds()[hit - 1]
    assert not any("guest" in line["train_loss"] for line in fleet.rounds()[hit - 1 :])
    assert line["excluded"] == {"revoked": 1}
    said = next(one for one in fleet.said("guest").splitlines() if "revoked" in one)
    row("a device revoked in the middle of a round", f"{line['excluded']}; {said}")


def expired(certificate: Path, key: Path) -> bytes:
    """The same authority, by a certificate that ended yesterday."""
    old = x509.load_pem_x509_certificate(certificate.read_bytes())
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now - timedelta(days=1))
    )
    for extension in old.extensions:
        made = made.add_extension(extension.value, extension.critical)
    return made.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]
