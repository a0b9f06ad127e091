"""What of a question a device takes for its server's, and how it signs its answer.

The service has the pair, not the courier. It remembers the largest counter that it saw, the server's key by then, and
which record it was shown as that of each round: an instruction from before counts no more, and a server that tells another
history than it did is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedlora.config.run import Scalar
from fedlora.errors import ConfigError, IdentityError, PolicyError
from fedlora.files.atomic import write_text
from fedlora.files.documents import read_object
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.identity.rotation import reached
from fedlora.identity.statement import (
    ANSWER,
    INSTRUCTION,
    Statement,
    digest,
    digest_of,
    digest_of_config,
    digest_of_metrics,
    read_signed,
    signed,
)
from fedlora.wire.update import Update

from fedlora_client.courier.question import Answer, Question
from fedlora_client.service.config import DeviceConfig

log = logging.getLogger("fedlora.device")
_MOST_RUNS, _MOST_ROUNDS = 16, 64  # of which records are remembered


@dataclass(slots=True)
class _Memory:
    """What a device remembers of its server."""

    server: PublicKey  # that signed last
    counter: int = 0
    instruction: str = ""  # the digest of the one with that counter, which may be asked again
    heads: dict[str, dict[str, str]] = field(default_factory=dict)  # {run: {round: the digest of its record}}

    def with_head(self, said: Statement) -> dict[str, dict[str, str]]:
        """The records with one more. Raises PolicyError where another one was told of that round before."""
        run, number = digest(said.run.encode("utf-8", "surrogatepass")), str(said.head_round)
        known = self.heads.get(run, {})
        if said.head_round and known.get(number, said.head) != said.head:
            raise PolicyError(
                "policy-history",
                f"the record of round {number} is {said.head:.16} now, and was {known[number]:.16}; the server must not "
                "change what it committed",
            )
        rounds = dict(sorted({**known, number: said.head}.items(), key=lambda each: int(each[0]))[-_MOST_ROUNDS:])
        others = {each: heads for each, heads in self.heads.items() if each != run}
        return dict([*others.items(), (run, rounds)][-_MOST_RUNS:])


class Signing:
    """One device's pair, and its server's key."""

    def __init__(self, key: SigningKey, server: PublicKey, path: Path) -> None:
        """`path` is the file of what is remembered; a damaged one is refused, for it keeps old instructions out."""
        self.key, self._path, self._given = key, path, server.keyid
        self._memory = _remembered(path, server)

    @classmethod
    def of(cls, config: DeviceConfig) -> Signing | None:
        """None for a device whose fleet signs nothing. Raises FedloraError where a key cannot be read."""
        if not config.server.identity:
            return None
        return cls._read(config.server.identity, config.server.server_identity, config.state)

    @classmethod
    def of_node(cls, node: Mapping[str, Scalar]) -> Signing | None:
        """Of a device without a service, whose node configuration has the same. Raises FedloraError."""
        if "identity" not in node:
            return None
        if not all(node.get(key) for key in ("identity", "server-identity", "state-path")):
            raise ConfigError(
                "identity in the node's configuration needs server-identity and state-path beside it; give all three"
            )
        return cls._read(str(node["identity"]), str(node["server-identity"]), Path(str(node["state-path"])))

    @classmethod
    def _read(cls, identity: str, server: str, state: Path) -> Signing:
        return cls(SigningKey.read(Path(identity)), PublicKey.read(Path(server)), state / "signed.json")

    def answered(self, question: Question, answer: Callable[[], Answer]) -> Answer:
        """The answer, signed, to a question that is the server's. Raises FedloraError where it is not."""
        said = self.check(question)
        return self.signed(answer(), said)

    @property
    def server(self) -> PublicKey:
        """The key that the server signs with by now."""
        return self._memory.server

    def check(self, question: Question) -> Statement:
        """The instruction that the question is. Raises PolicyError unless the server signed it, for this device, now."""
        if not question.signed:
            raise PolicyError("policy-unsigned", "the instruction is not signed; expected one of the server's key")
        trusted = reached(self.server, [each.encode("utf-8", "replace") for each in question.rotated])
        try:
            said, signer, _ = read_signed(
                question.signed.encode("utf-8", "replace"), INSTRUCTION, trusted, "the instruction"
            )
            config = digest_of_config(question.run_config)
        except IdentityError as error:
            raise PolicyError("policy-key", str(error)) from None
        expected = replace(
            said,
            kind=question.kind,
            receiver=self.key.public.keyid,
            payload=question.data_digest,
            config=config,
        )
        if differing := said.differing(expected, "kind", "receiver", "payload", "config"):
            raise PolicyError(
                "policy-replay", f"the instruction is for another {differing}; expected what came with it"
            )
        memory, this = self._memory, digest_of(said)
        if said.counter < memory.counter or (said.counter == memory.counter and this != memory.instruction):
            raise PolicyError(
                "policy-replay",
                f"the instruction's counter is {said.counter}, and {memory.counter} was seen; expected a newer one",
            )
        self._keep(_Memory(signer, said.counter, this, memory.with_head(said)))
        return said

    def signed(self, answer: Answer, said: Statement) -> Answer:
        """The answer with its signature; one that brings nothing needs none."""
        if answer.said:
            return answer
        payload = answer.data_digest if said.kind == "train" else digest_of_metrics(answer.metrics)
        statement = replace(
            said, sender=self.key.public.keyid, receiver=said.sender, payload=payload, instruction=digest_of(said)
        )
        return replace(answer, signed=signed(statement, ANSWER, self.key).decode("ascii"))

    def _keep(self, memory: _Memory) -> None:
        if memory == self._memory:
            return
        self._memory = memory
        content = {
            "given": self._given, "server": memory.server.to_pem(), "counter": memory.counter,
            "instruction": memory.instruction, "heads": memory.heads,
        }  # fmt: skip
        try:
            write_text(self._path, json.dumps(content, indent=1) + "\n")
        except (OSError, ConfigError) as error:  # a full disk: it counts in this process
            log.warning("what was signed is not remembered beyond this process: %s", error)


def check_of(said: Statement, update: Update) -> None:
    """Raise PolicyError unless an update is of the run, the round and the base that its instruction says."""
    for name, got in (("run", update.run), ("round", update.server_round), ("base", update.base_fingerprint)):
        if getattr(said, name) != got:
            raise PolicyError("policy-replay", f"the update is of {name} {got!r:.80}; the instruction is of another")


def _remembered(path: Path, server: PublicKey) -> _Memory:
    if not path.exists():
        return _Memory(server)
    content: dict[str, Any] = read_object(path, ConfigError, "what the device remembers of its server")
    kinds = {"given": str, "server": str, "counter": int, "instruction": str, "heads": dict}
    if content.keys() != kinds.keys() or any(type(content[name]) is not kind for name, kind in kinds.items()):
        raise ConfigError(f"{path}: expected {', '.join(kinds)}; join the fleet anew in another --dir")
    heads = {str(run): {str(k): str(v) for k, v in dict(rounds).items()} for run, rounds in content["heads"].items()}
    # A key that was put in device.toml since is not one that the old one need have signed.
    known = PublicKey.from_pem(content["server"], str(path)) if content["given"] == server.keyid else server
    return _Memory(known, content["counter"], content["instruction"], heads)
