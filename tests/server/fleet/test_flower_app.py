"""The fleet's app, as Flower takes it: the keys of a run, and a signature that Flower's own check finds sound."""

from __future__ import annotations

import base64
import json
import tomllib

import pytest
from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError
from fedlora.files.documents import flattened
from fedlora.fleet.keys import check_trusted_key
from fedlora_server.fleet.flower_app import APP, SignedApp, signed_app, store_app, trusted_entities
from fedlora_server.fleet.settings import FleetSettings
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import get_fab_config, get_metadata_from_config
from flwr.supercore.fab import Fab
from flwr.supernode.start_client_internal import _verify_fab  # the check of a SuperNode with --trusted-entities


def verified(app: SignedApp, trusted: dict[str, str]) -> bool:
    return bool(_verify_fab(Fab(app.digest, app.content, app.verifications), trusted))


def test_a_supernode_that_trusts_the_fleet_takes_its_app(fleet: FleetSettings) -> None:
    app = signed_app(fleet, 1_800_000_000)
    assert app.verifications["valid_license"]
    assert verified(app, trusted_entities(fleet))
    assert [check_trusted_key(key) for key in trusted_entities(fleet).values()]


def test_a_supernode_takes_no_changed_app_and_no_changed_signature(fleet: FleetSettings) -> None:
    app, trusted = signed_app(fleet, 1_800_000_000), trusted_entities(fleet)
    assert not verified(SignedApp(content=app.content + b"x", digest="", verifications=app.verifications), trusted)
    (identity,) = trusted
    record = json.loads(app.verifications[identity])
    for changed in (
        {"signed_at": record["signed_at"] + 1},
        {"signature": base64.urlsafe_b64encode(bytes(64)).decode()},
    ):
        verifications = app.verifications | {identity: json.dumps(record | changed)}
        assert not verified(SignedApp(content=app.content, digest="", verifications=verifications), trusted)
    assert not verified(SignedApp(content=app.content, digest="", verifications={"valid_license": "Valid"}), trusted)


def test_the_app_is_what_flwr_build_makes_of_its_folder(fleet: FleetSettings) -> None:
    app = signed_app(fleet, 1)
    assert app.content == build_fab_from_disk(fleet.at("app")) == signed_app(fleet, 2).content
    assert "@" + get_metadata_from_config(get_fab_config(app.content))[0] == APP


def test_the_app_has_every_key_of_a_run_since_flower_overrides_no_other(fleet: FleetSettings) -> None:
    content = tomllib.loads(fleet.at("app", "pyproject.toml").read_text())
    keys = flattened(content["tool"]["flwr"]["app"]["config"])
    assert RunConfig.from_flat(keys, "app") == RunConfig()
    assert keys.keys() == {key for key in RunConfig().flat() if not key.startswith("simulation.")}


@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning:alembic")  # of flwr's migrations
def test_superlink_has_the_app_with_its_signature(fleet: FleetSettings) -> None:
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.superlink.config_loader import get_federation_manager, get_objectstore_linkstate_factories

    app = signed_app(fleet, 1)
    store_app(fleet, app)
    store_app(fleet, app)
    _, factory = get_objectstore_linkstate_factories(str(fleet.at("superlink.db")), get_federation_manager())
    stored = factory.state().get_app(NOOP_FEDERATION_ID, APP, app.digest)
    assert stored is not None
    assert (stored.content, stored.verifications) == (app.content, app.verifications)


@pytest.mark.parametrize("content", [None, b"x"])
def test_without_its_key_nothing_is_signed(fleet: FleetSettings, content: bytes | None) -> None:
    path = fleet.at("app", "signing_key")
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match="signing_key"):
        signed_app(fleet, 1)
