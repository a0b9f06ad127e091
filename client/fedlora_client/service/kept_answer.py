"""The last update that a device made, kept until the next one: a courier that died may come and ask again."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import AtRestError, ConfigError, CourierError
from fedlora.files.at_rest import read_plain, written
from fedlora.files.atomic import whole_file

from fedlora_client.courier.question import Answer, Question

log = logging.getLogger("fedlora.device")
_MOST_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """A line of JSON with the question's digest and the answer's header, and the answer's bytes."""

    path: Path

    def of(self, question: Question, version: str) -> Answer | None:
        """The answer to the same question on the same data and base; None where another one, or none, is kept."""
        if question.kind != "train":
            return None
        try:
            line, _, data = read_plain(self.path, _MOST_BYTES).partition(b"\n")
            kept = json.loads(line)
            if kept["question"] != digest_of(question, version):
                return None
            answer = Answer.read(kept["answer"], bytearray(data))
            return answer if answer.data_digest == kept["bytes"] else None
        except AtRestError as error:
            log.warning("the last answer cannot be read: %s", error)
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, CourierError):
            return None

    def keep(self, question: Question, version: str, answer: Answer) -> None:
        """Write it; where that cannot be, the round is computed again if it is asked for again."""
        kept = {
            "question": digest_of(question, version), "answer": answer.header(), "bytes": answer.data_digest
        }  # fmt: skip
        try:
            line = json.dumps(kept).encode() + b"\n"
            size_bytes = len(line) + len(answer.data)
            with whole_file(self.path, is_private=True) as aside, written(aside, self.path.name, size_bytes) as file:
                file.write(line)
                file.write(answer.data)
        except (OSError, ConfigError) as error:
            log.warning("the answer was not kept: %s", error)


def digest_of(question: Question, version: str) -> str:
    """By which a question is known again, whatever time is left for it."""
    plain = json.dumps([question.kind, dict(question.run_config), version, question.data_digest], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()
