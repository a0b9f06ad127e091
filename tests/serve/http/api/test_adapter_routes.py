"""Adapters over HTTP, as vLLM's clients ask for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import UnknownAdapterError
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.http.access.keys import ApiKey, Keys, key_digest
from fedlora_serve.http.service.adapter_folder import AdapterFolder
from fedlora_serve.http.service.state import ServiceState

from tests.serve.http.services import BASE, Client, service
from tests.tiny.adapters import random_adapter

ADMIN, WEB = "admin-key-0123456789", "web-key-0123456789"


def save(base: BasePack, path: Path, seed: int = 1) -> None:
    content = PeftDirectory(adapter=random_adapter(base, seed=seed), base_fingerprint=base.fingerprint)
    write_peft(path, content, replace=path.exists())


@pytest.fixture
def root(base: BasePack, tmp_path: Path) -> Path:
    root = tmp_path / "adapters"
    for seed, name in enumerate(("tone", "team/billing"), 1):
        save(base, root / name, seed)
    (root / "broken").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (root / "broken" / file).write_text("{")
    return root


@pytest.fixture
def state(base: BasePack, root: Path) -> ServiceState:
    state = service(base, None, limits={"unload_timeout_s": 0.1})
    state.store = AdapterStore(base, budget_bytes=1 << 20)
    state.adapter_folder = AdapterFolder(root)
    state.keys = Keys(admin=key_digest(ADMIN))
    return state


@pytest.fixture
def client(state: ServiceState) -> Client:
    return Client(state, Authorization=f"Bearer {ADMIN}")


@pytest.fixture
def load(client: Client) -> Callable[..., Any]:
    def load(name: str = "tone", path: str = "tone", **fields: Any) -> Any:
        return client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, **fields})

    return load


def error_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return str(response.json()["error"]["message"])


def test_an_adapter_is_loaded_listed_and_unloaded_with_vllms_words(client: Client, load: Callable[..., Any]) -> None:
    loaded = load("billing-v1", "team/billing", is_3d_lora_weight=False)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'billing-v1' added successfully.")
    [listed] = client.get("/v1/adapters").json()["data"]
    assert listed.items() >= {
        "name": "billing-v1", "version": 1, "source": "team/billing", "pinned": False, "resident": True, "users": 0,
    }.items()  # fmt: skip
    assert len(listed["digest"]) == 64
    unloaded = client.post("/v1/unload_lora_adapter", {"lora_name": "billing-v1", "lora_int_id": 1})
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'billing-v1' removed successfully.")
    assert client.get("/v1/adapters").json() == {"object": "list", "data": []}


def test_a_name_that_is_loaded_is_400_unless_it_is_to_be_replaced(
    client: Client, load: Callable[..., Any], base: BasePack, root: Path
) -> None:
    load()
    assert "has already been loaded" in error_of(load(), 400)
    save(base, root / "tone", seed=9)
    assert load(load_inplace=True).status_code == 200
    assert [row["version"] for row in client.get("/v1/adapters").json()["data"]] == [2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"lora_name": "", "lora_path": "tone"}, "Both 'lora_name' and 'lora_path' must be provided."),
        ({"lora_name": "a", "lora_path": ""}, "Both 'lora_name' and 'lora_path' must be provided."),
        ({"lora_name": "a"}, "lora_path: it is needed"),
        ({}, "lora_name: it is needed"),
        ({"lora_name": 3, "lora_path": "tone"}, "lora_name"),
        ({"lora_name": BASE, "lora_path": "tone"}, "is the base's name"),
        ({"lora_name": "a b", "lora_path": "tone"}, "an adapter cannot be called 'a b'"),
        ({"lora_name": "\ud800", "lora_path": "tone"}, "cannot be called"),
        ({"lora_name": "a", "lora_path": "/etc/passwd"}, "relative to the adapter folder"),
        ({"lora_name": "a", "lora_path": "../adapters/tone"}, "relative to the adapter folder"),
        ({"lora_name": "a", "lora_path": "broken"}, "broken/adapter_config.json"),
    ],
)
def test_a_request_that_is_wrong_is_400_and_loads_nothing(client: Client, body: dict[str, Any], message: str) -> None:
    error = error_of(client.post("/v1/load_lora_adapter", body), 400)
    assert message in error
    assert "/tmp" not in error
    assert client.get("/v1/adapters").json()["data"] == []


def test_a_path_where_nothing_is_and_a_name_that_nobody_has_are_404(client: Client, load: Callable[..., Any]) -> None:
    assert "expected an .onnx_adapter file" in error_of(load(path="none"), 404)
    for path in ("/v1/unload_lora_adapter", "/v1/adapters/none/pin", "/v1/adapters/none/unpin"):
        assert error_of(client.post(path, {"lora_name": "none"}), 404) == "The lora adapter 'none' cannot be found."
    assert error_of(client.post("/v1/unload_lora_adapter", {"lora_name": ""}), 400)


def test_an_adapter_that_is_larger_than_the_budget_is_400(
    client: Client, state: ServiceState, load: Callable[..., Any]
) -> None:
    state.store = AdapterStore(state.base, budget_bytes=1000)
    refused = load()
    assert error_of(refused, 400).startswith("tone: the adapter has ")
    assert refused.json()["error"]["code"] == "adapter_too_large"


def test_an_adapter_that_finds_no_room_beside_one_in_use_is_503_until_that_has_ended(
    client: Client, state: ServiceState, load: Callable[..., Any]
) -> None:
    load()
    [status] = state.store.list()
    state.store = AdapterStore(state.base, budget_bytes=status.size_bytes)
    load()
    load("other", "team/billing")  # there is room for one: the first is evicted
    lease = state.store.lease("other")
    for refused in (load("third", "tone"), client.post("/v1/adapters/tone/pin", None)):
        assert "in use: other" in error_of(refused, 503)
        assert refused.json()["error"]["code"] == "adapter_memory_full"
        assert int(refused.headers["Retry-After"]) > 0
    lease.release()
    assert load("third", "tone").status_code == 200


def test_an_unload_waits_for_the_requests_that_use_the_adapter(
    client: Client, state: ServiceState, load: Callable[..., Any]
) -> None:
    load()
    lease = state.store.lease("tone")
    unloaded = client.post("/v1/unload_lora_adapter", {"lora_name": "tone"})
    assert (unloaded.status_code, "still run" in unloaded.text) == (202, True)
    with pytest.raises(UnknownAdapterError):
        state.store.lease("tone")
    lease.release()
    load()
    lease = state.store.lease("tone")
    threading.Timer(0.04, lease.release).start()
    assert client.post("/v1/unload_lora_adapter", {"lora_name": "tone"}).status_code == 200


def test_an_adapter_is_pinned_and_unpinned_by_its_name_with_slashes_in_it(
    client: Client, load: Callable[..., Any]
) -> None:
    load("team/billing", "team/billing")
    for verb, pinned in (("pin", True), ("unpin", False)):
        assert client.post(f"/v1/adapters/team/billing/{verb}", None).status_code == 204
        assert [row["pinned"] for row in client.get("/v1/adapters").json()["data"]] == [pinned]


def test_an_evicted_adapter_is_read_again_though_its_folder_has_changed(
    state: ServiceState, load: Callable[..., Any], base: BasePack, root: Path
) -> None:
    load()
    lease = state.store.lease("tone")
    digest, size_bytes = lease.version.digest, lease.version.size_bytes
    lease.release()
    state.store = AdapterStore(base, budget_bytes=size_bytes)
    load()
    load("other", "team/billing")  # there is room for one
    save(base, root / "tone", seed=9)
    assert state.store.lease("tone").version.digest == digest
    assert state.store.stats().evictions > 0


def test_copies_do_not_pile_up(state: ServiceState, load: Callable[..., Any], base: BasePack, root: Path) -> None:
    for seed in range(4):
        save(base, root / "tone", seed=seed)
        load(load_inplace=True)
        load(path="broken", load_inplace=True)
        load(load_inplace=True)  # the same content
    [status] = state.store.list()
    assert status.number == 4
    assert len(list(status.source.parents[1].iterdir())) == 1


def test_the_operators_routes_need_the_admin_key_and_ask_before_they_read(state: ServiceState) -> None:
    state.keys = Keys([ApiKey(name="web", digest=key_digest(WEB))], admin=key_digest(ADMIN))
    paths = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/adapters/tone/pin", "/v1/adapters/tone/unpin")
    for path in paths:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": f"Bearer {WEB}"}, 403),
        ):
            assert "admin key" in error_of(Client(state, **headers).request("POST", path, content=b"{no json"), status)
    state.keys = Keys()
    for path in paths:
        assert "FEDLORA_ADMIN_KEY" in error_of(Client(state).post(path, {}), 403)


def test_without_a_folder_nothing_is_loaded(state: ServiceState, load: Callable[..., Any]) -> None:
    state.adapter_folder = None
    assert "--adapter-folder" in error_of(load(), 403)


def test_a_key_sees_the_adapters_that_it_may_use(state: ServiceState, load: Callable[..., Any]) -> None:
    load("tone", "tone")
    load("team/billing", "team/billing")
    state.keys = Keys([ApiKey(name="web", digest=key_digest(WEB), models=("team/*",))])
    assert Client(state).get("/v1/adapters").status_code == 401
    listed = Client(state, Authorization=f"Bearer {WEB}").get("/v1/adapters").json()["data"]
    assert [row["name"] for row in listed] == ["team/billing"]


def test_an_adapter_that_is_unloaded_gives_its_series_back(
    client: Client, state: ServiceState, load: Callable[..., Any]
) -> None:
    load()
    state.metrics.request_started("tone")
    assert b'"tone"' in state.metrics.text()
    client.post("/v1/unload_lora_adapter", {"lora_name": "tone"})
    assert b'"tone"' not in state.metrics.text()
