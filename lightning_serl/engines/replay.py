"""Recorded rollouts in place of a model: they drive filters, votes, ledger and validation end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_serl.engines.base import Receipt, Request, RolloutEngine, WeightUpdate, Who
from lightning_serl.errors import EngineFailure, InputError
from lightning_serl.types import Completion


class ReplayEngine(RolloutEngine):
    """Answers each prompt with the responses recorded for it.

    A recording is a jsonl file of objects with the prompt and its responses; a response is a string or an object with
    ``text`` and, optionally, ``finished``. Instruction prompts are answered from rows whose prompt field is absent:
    they are handed out in file order.

    Args:
        recordings: Path of the jsonl file, or a mapping from prompt to responses.
        prompt_field: Field that holds the problem.
        responses_field: Field that holds the list of responses.
    """

    samples_policy = False

    def __init__(
        self,
        recordings: str | Mapping[str, Sequence[str | Mapping[str, Any]]],
        prompt_field: str = "problem",
        responses_field: str = "responses",
    ) -> None:
        super().__init__()
        self._texts: dict[str, list[tuple[str, bool]]] = {}
        self._proposals: list[tuple[str, bool]] = []
        self._next_proposal = 0
        self._named: set[str] = set()  # the fields of rows without a prompt, beside the responses
        self._tokenizer: Any = None
        self._prompt_field = prompt_field
        if isinstance(recordings, Mapping):
            for prompt, responses in recordings.items():
                self._add(prompt, responses, "the mapping")
        else:
            self._read(Path(recordings), prompt_field, responses_field)
            if not self._texts and self._proposals and prompt_field != "problem":
                raise InputError(f"{recordings} {self._unnamed(prompt_field)}")
        if not self._texts and not self._proposals:
            raise InputError(f"{recordings} holds no recorded responses")

    def _read(self, path: Path, prompt_field: str, responses_field: str) -> None:
        try:
            data = path.read_bytes()
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            bad = data.count(b"\n", 0, error.start) + 1
            raise InputError(f"{path}:{bad} is not UTF-8 text; convert the recordings to UTF-8") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"recordings {path} cannot be read: {reason}") from error
        # str.splitlines would also split at form feeds and other signs that JSON strings may hold
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where} is not JSON ({error.msg} at column {error.colno})") from error
            except (RecursionError, ValueError) as error:
                raise InputError(f"{where} is not JSON that can be read ({type(error).__name__})") from error
            if not isinstance(row, dict) or not isinstance(row.get(responses_field), list):
                raise InputError(
                    f"{where} has no list {responses_field!r}; name the field with --data.engine.responses_field"
                )
            if row.get(prompt_field) is None:
                self._named |= {name for name, value in row.items() if isinstance(value, str)}
            self._add(row.get(prompt_field), row[responses_field], where)

    def _add(self, prompt: Any, responses: Sequence[Any], where: str) -> None:
        parsed = []
        if isinstance(responses, str):
            raise InputError(f"{where}: the responses to {prompt!r:.80} must be a list, got one string")
        for response in responses:
            text = response.get("text") if isinstance(response, Mapping) else response
            if not isinstance(text, str):
                raise InputError(f"{where}: a response must be a string or an object with a string `text`")
            if not _is_unicode(text):
                raise InputError(f"{where}: a response holds half of a surrogate pair; mend the encoding of the file")
            finished = bool(response.get("finished", True)) if isinstance(response, Mapping) else True
            parsed.append((text, finished))
        if prompt is None:
            self._proposals.extend(parsed)
        elif isinstance(prompt, str):
            self._texts.setdefault(prompt, []).extend(parsed)
        else:
            raise InputError(f"{where}: the prompt must be a string, got {type(prompt).__name__}")

    def _unnamed(self, prompt_field: str) -> str:
        known = ", ".join(name[:20] for name in sorted(self._named)[:8]) or "none but the responses"
        return (
            f"has no row with a field {prompt_field[:40]!r} (there is {known}); name the one of the problem with"
            " --data.engine.prompt_field"
        )

    @property
    def version(self) -> int:
        """Recordings have no policy version."""
        return -1

    def start(self, policy: Any, ranks: Any = None) -> None:
        """With a policy at hand, recorded texts get token ids, so that they can be trained on."""
        self._tokenizer = None if policy is None else policy.tokenizer

    def push(self, update: WeightUpdate) -> Receipt:
        """Recordings do not change."""
        return Receipt(self.version)

    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """Recordings carry no probabilities.

        Raises:
            EngineFailure: always.
        """
        raise EngineFailure("a recording has no log-probabilities; rewards that score text need a model")

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """The first ``n`` recorded responses of each prompt, in request order; fewer if fewer were recorded."""
        for index, request in enumerate(requests):
            self.poll()
            if request.prompt:
                recorded = self._texts.get(request.prompt)
                if recorded is None and not self._texts:
                    raise EngineFailure(f"the recording {self._unnamed(self._prompt_field)}")
                if recorded is None:
                    raise EngineFailure(f"the recording holds no response to {request.prompt[:80]!r}")
            else:  # an instruction prompt: nothing to look up
                first = self._next_proposal
                recorded = self._proposals[first : first + request.n]
                self._next_proposal = first + len(recorded)
            yield index, [self._completion(text, finished) for text, finished in recorded[: request.n]]

    def _completion(self, text: str, finished: bool) -> Completion:
        if self._tokenizer is None:
            return Completion((), text, None, finished)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return Completion((*ids, *([self._tokenizer.eos_token_id] if finished else [])), text, None, finished)


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8; a JSON escape can put half of a surrogate pair into a string."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
