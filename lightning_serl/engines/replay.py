"""Replays recorded completions, to run filters, votes, the ledger and validation without a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_serl.engines.base import Receipt, Request, RolloutEngine, WeightUpdate, Who
from lightning_serl.errors import EngineFailure, InputError
from lightning_serl.jsonl import check_unicode, numbered_lines, parse_line, read_text
from lightning_serl.types import Completion


class ReplayEngine(RolloutEngine):
    """Answers each prompt with the responses recorded for it.

    A recording is a jsonl file of objects with a prompt and its responses; a response is a string, or an object with
    ``text`` and optionally ``finished``. Prompts that ask for new problems are answered from the rows without a prompt,
    in file order.

    Args:
        recordings: Path of the jsonl file, or a mapping from prompt to responses.
        prompt_field: Name of the field with the problem.
        responses_field: Name of the field with the list of responses.

    Raises:
        InputError: with file and line, if the recordings cannot be read or hold no responses.
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
        self._other_fields: set[str] = set()  # string fields of the rows without a prompt
        self._tokenizer: Any = None
        self._prompt_field = prompt_field
        if isinstance(recordings, Mapping):
            for prompt, responses in recordings.items():
                self._add(prompt, responses, "the mapping")
        else:
            self._read(Path(recordings), responses_field)
            if not self._texts and self._proposals and prompt_field != "problem":
                raise InputError(f"{recordings} {self._no_prompts()}")
        if not self._texts and not self._proposals:
            raise InputError(f"data.engine.recordings: {recordings} holds no recorded responses; give a jsonl file")

    def _read(self, path: Path, responses_field: str) -> None:
        text = read_text(path, f"data.engine.recordings: {path}", "give a jsonl file of recordings")
        for number, line in numbered_lines(text):
            where = f"{path}:{number}"
            row = parse_line(line, where, unique=False)
            if not isinstance(row, dict) or not isinstance(row.get(responses_field), list):
                raise InputError(
                    f"{where} has no list {responses_field!r}; set data.engine.responses_field to the field with it"
                )
            prompt = row.get(self._prompt_field)
            if prompt is None:
                self._other_fields |= {name for name, value in row.items() if isinstance(value, str)}
            self._add(prompt, row[responses_field], where)

    def _add(self, prompt: Any, responses: Sequence[Any], where: str) -> None:
        parsed = []
        if isinstance(responses, str):
            raise InputError(f"{where}: the responses to {prompt!r:.80} must be a list, got one string")
        for response in responses:
            text = response.get("text") if isinstance(response, Mapping) else response
            if not isinstance(text, str):
                raise InputError(f"{where}: a response must be a string or an object with a string `text`")
            check_unicode(text, f"{where}: a response")
            finished = bool(response.get("finished", True)) if isinstance(response, Mapping) else True
            parsed.append((text, finished))
        if prompt is None:
            self._proposals.extend(parsed)
        elif isinstance(prompt, str):
            self._texts.setdefault(prompt, []).extend(parsed)
        else:
            raise InputError(f"{where}: the prompt must be a string, got {type(prompt).__name__}")

    def _no_prompts(self) -> str:
        known = ", ".join(name[:20] for name in sorted(self._other_fields)[:8]) or "no other string field"
        return (
            f"has no row with a field {self._prompt_field[:40]!r} (found: {known}); set data.engine.prompt_field to "
            "the field with the problem"
        )

    @property
    def version(self) -> int:
        """Recordings have no policy version."""
        return -1

    def start(self, policy: Any, ranks: Any = None) -> None:
        """Take the policy's tokenizer, if there is one: it gives the recorded texts token ids to train on."""
        self._tokenizer = None if policy is None else policy.tokenizer

    def push(self, update: WeightUpdate) -> Receipt:
        """Do nothing: recordings do not change."""
        return Receipt(self.version)

    def score(self, token_ids: Sequence[Sequence[int]], who: Who = "policy") -> list[Tensor]:
        """Raise EngineFailure: recordings hold no log-probabilities."""
        raise EngineFailure("recordings hold no log-probabilities; a reward that scores text needs another data.engine")

    def generate(self, requests: Sequence[Request], who: Who = "policy") -> Iterator[tuple[int, list[Completion]]]:
        """Yield the first ``n`` recorded responses of each prompt, in request order; fewer if fewer were recorded."""
        for index, request in enumerate(requests):
            self.poll()
            if request.prompt:
                recorded = self._texts.get(request.prompt)
                if recorded is None:
                    missing = f"holds no response to {request.prompt[:80]!r}; record some"
                    raise EngineFailure(f"data.engine.recordings {missing if self._texts else self._no_prompts()}")
            else:  # a prompt that asks for new problems
                recorded = self._proposals[self._next_proposal : self._next_proposal + request.n]
                self._next_proposal += len(recorded)
            yield index, [self._completion(text, finished) for text, finished in recorded[: request.n]]

    def _completion(self, text: str, finished: bool) -> Completion:
        if self._tokenizer is None:
            return Completion((), text, None, finished)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return Completion((*ids, *([self._tokenizer.eos_token_id] if finished else [])), text, None, finished)
