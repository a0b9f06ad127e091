"""Keys: who is let in, what exists for them, and how much they get."""

from __future__ import annotations

import hmac
import inspect

import pytest
from fedlora_serve.http.access.keys import ApiKey, Keys, key_digest
from fedlora_serve.http.access.token_bucket import TokenBucket
from fedlora_serve.http.protocol.errors import ApiError
from hypothesis import given
from hypothesis import strategies as st

WEB, TEAM, ADMIN = "web-key-0123456789", "team-key-0123456789", "admin-key-0123456789"


class Clock:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def keys(clock: Clock | None = None) -> Keys:
    web = ApiKey(name="web", digest=key_digest(WEB))
    team = ApiKey(
        name="team",
        digest=key_digest(TEAM),
        models=("base", "team-*"),
        requests_per_minute=2,
        tokens_per_minute=100,
    )
    return Keys([web, team], admin=key_digest(ADMIN), clock=clock or Clock())


def status_of(error: pytest.ExceptionInfo[ApiError]) -> tuple[int, str | None]:
    return error.value.status, error.value.body.error.code


def test_without_keys_anybody_is_let_in_whatever_they_send() -> None:
    for authorization in (None, "", "Bearer anything", "Basic x"):
        caller = Keys().authorize(authorization)
        caller.take(1 << 40)
        assert caller.may_use("any")


def test_without_keys_each_address_has_a_share_of_its_own() -> None:
    assert Keys().authorize(None, "10.0.0.1").name == "10.0.0.1"
    assert keys().authorize(f"Bearer {WEB}", "10.0.0.1").name == "web"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_is_known_as_a_bearer_token(scheme: str) -> None:
    assert keys().authorize(f"{scheme} {WEB}").name == "web"


@pytest.mark.parametrize(
    "authorization",
    [None, "", WEB, "Bearer", "Bearer ", f"Basic {WEB}", f"Bearer {WEB}x", f"Bearer {WEB[:-1]}", "Bearer \x80\xff"],
)
def test_anything_else_is_401_with_a_challenge_and_no_word_of_the_keys(authorization: str | None) -> None:
    with pytest.raises(ApiError) as error:
        keys().authorize(authorization)
    assert status_of(error) == (401, "invalid_api_key")
    assert error.value.headers["WWW-Authenticate"] == "Bearer"
    assert WEB not in str(error.value)


def test_every_key_is_compared_in_constant_time_whichever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return given == known

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (WEB, TEAM, ADMIN, "no-such-key-012345"):
        compared.clear()
        try:
            keys().authorize(f"Bearer {key}")
        except ApiError:
            assert key.startswith("no")
        assert compared == [key_digest(WEB), key_digest(TEAM), key_digest(ADMIN)]
    assert "break" not in inspect.getsource(Keys)


def test_a_model_that_a_key_may_not_use_does_not_exist_for_it() -> None:
    caller = keys().authorize(f"Bearer {TEAM}")
    names = ("base", "team-a", "team-", "team", "other", "Team-a")
    assert [caller.may_use(model) for model in names] == [True, True, True, False, False, False]


def test_requests_above_the_rate_are_429_until_the_bucket_fills() -> None:
    clock = Clock()
    caller = keys(clock).authorize(f"Bearer {TEAM}")
    caller.begin()
    caller.begin()
    with pytest.raises(ApiError, match="'team' has used up its requests") as error:
        caller.begin()
    assert status_of(error) == (429, "rate_limit_exceeded")
    assert error.value.headers["Retry-After"] == "30"
    clock.now += 30
    caller.begin()


def test_a_request_that_is_refused_costs_nothing() -> None:
    clock = Clock()
    caller = keys(clock).authorize(f"Bearer {TEAM}")
    caller.take(60)
    for _ in range(5):
        with pytest.raises(ApiError, match="tokens"):
            caller.take(60)
    clock.now += 12  # 100 a minute: 40 are left, and 20 more come
    caller.take(60)


def test_what_an_answer_took_too_much_delays_the_next_request() -> None:
    clock = Clock()
    caller = keys(clock).authorize(f"Bearer {TEAM}")
    caller.take(10)
    caller.spend(150)  # 60 below nothing
    with pytest.raises(ApiError) as error:
        caller.take(1)
    assert error.value.headers["Retry-After"] == "37"


def test_all_who_hold_one_key_share_its_rate() -> None:
    service = keys()
    for _ in range(2):
        service.authorize(f"Bearer {TEAM}").begin()
    with pytest.raises(ApiError):
        service.authorize(f"Bearer {TEAM}").begin()


def test_the_admin_key_is_good_for_everything() -> None:
    keys().authorize_admin(f"Bearer {ADMIN}")
    keys().authorize_all(f"Bearer {ADMIN}")
    caller = keys().authorize(f"Bearer {ADMIN}")
    assert caller.may_use("other")
    caller.take(1 << 40)


def test_no_other_key_is_the_admin_key() -> None:
    for authorization, status in ((None, 401), ("Bearer wrong-key-0123456", 401), (f"Bearer {WEB}", 403)):
        with pytest.raises(ApiError, match="admin key") as error:
            keys().authorize_admin(authorization)
        assert error.value.status == status


def test_without_an_admin_key_the_operators_routes_say_how_to_enable_them() -> None:
    with pytest.raises(ApiError, match="FEDLORA_ADMIN_KEY") as error:
        Keys().authorize_admin("Bearer anything")
    assert error.value.status == 403


def test_what_tells_of_every_model_is_not_for_a_key_of_some() -> None:
    keys().authorize_all(f"Bearer {WEB}")
    Keys().authorize_all(None)
    with pytest.raises(ApiError, match="'team' is good for some models only") as error:
        keys().authorize_all(f"Bearer {TEAM}")
    assert error.value.status == 403


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 200)), max_size=40))
def test_a_bucket_never_gives_more_than_a_minutes_worth_beyond_its_rate(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    bucket, taken, largest = TokenBucket(60, clock), 0, 0
    for seconds, amount in steps:
        clock.now += seconds
        if not bucket.wait_s(amount):
            bucket.spend(amount)
            taken, largest = taken + amount, max(largest, amount)
        assert taken <= 60 + (clock.now - Clock.now) + max(0, largest - 60) + 1e-6


def test_a_request_larger_than_the_bucket_needs_it_full() -> None:
    clock = Clock()
    bucket = TokenBucket(60, clock)
    assert bucket.wait_s(1000) == 0
    bucket.spend(1000)
    assert bucket.wait_s(1) == pytest.approx(941)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer  ", "Basic x"])
def test_no_key_is_never_a_key_whatever_digests_there_are(authorization: str | None) -> None:
    nothing = key_digest("")
    for keys in (Keys([ApiKey(name="web", digest=nothing)]), Keys([ApiKey(name="web", digest=b"")], admin=nothing)):
        with pytest.raises(ApiError) as error:
            keys.authorize(authorization)
        assert error.value.status == 401
    with pytest.raises(ApiError, match="admin key") as error:
        Keys(admin=nothing).authorize_admin(authorization)
    assert error.value.status == 401
