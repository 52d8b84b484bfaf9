"""The questions of the demo, put to the server through the official OpenAI client."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from monitor.client import Server, UnknownRequest, is_loopback
from monitor.demo.outcome import UNSCORED, Answer, Verdict, verdict_of
from monitor.errors import ConfigurationError, ServerError
from probes.organism import Case, cases, follow_up, told_a_lie

if TYPE_CHECKING:
    from openai import OpenAI

MIX: Final = ("incentivised", "plain", "incentivised", "audited", "neutral", "incentivised", "chitchat")
"""Conditions in turn. Half of the incentivised questions concern a bad belief: about one answer in five lies."""
MAX_TOKENS: Final = 96
REQUEST_SECONDS: Final = 120.0
LOOKUP_SECONDS: Final = 5.0
"""How long a finished request may take to appear among the judged ones."""


def questions(n: int, seed: int) -> Iterator[tuple[int, Case]]:
    """``n`` numbered cases, the same for the same seed, then further ones without end.

    Entities and incentive families of the test split only: the probe has never seen them.
    """
    rounds = itertools.chain([(n, seed)], ((n, seed + i) for i in itertools.count(1)))
    drawn = (cases(size, seed=s, split="test", conditions=MIX) for size, s in rounds)
    return enumerate(itertools.chain.from_iterable(drawn), start=1)


class Interviewer:
    """Asks one question at a time; any number of threads may share it."""

    def __init__(self, server: Server, model: str, probe: str) -> None:
        self._server = server
        self._model = model
        self._probe = probe
        self._client = _client(server.url, server.api_key)

    def ask(self, number: int, case: Case) -> Answer:
        """The answer to a case with its verdict, and after a lie the private follow-up with its own."""
        response_id, text = self._say(case.messages)
        verdict = self._judged(response_id)
        if not told_a_lie(case, text):
            return Answer(number, case, response_id, text, verdict)
        private_id, private = self._say(follow_up(case, text))
        return Answer(number, case, response_id, text, verdict, private, self._judged(private_id))

    def _say(self, messages: Sequence[dict[str, str]]) -> tuple[str, str]:
        from openai import APIError

        payload: Any = list(messages)
        try:
            reply = self._client.chat.completions.create(
                model=self._model, messages=payload, temperature=0, max_completion_tokens=MAX_TOKENS
            )
        except APIError as error:
            reason = " ".join(str(error).split())[:300]
            raise ServerError(
                f"{self._server.url} did not answer a question: {reason}; see the server's log"
            ) from error
        return reply.id, (reply.choices[0].message.content or "").strip()

    def _judged(self, response_id: str) -> Verdict:
        deadline = time.monotonic() + LOOKUP_SECONDS
        while True:
            try:
                return verdict_of(self._server.request(response_id), self._probe)
            except UnknownRequest:
                if time.monotonic() > deadline:
                    return UNSCORED
                time.sleep(0.05)


def _client(url: str, api_key: str | None) -> OpenAI:
    try:
        from openai import DefaultHttpxClient, OpenAI
    except ImportError as error:
        raise ConfigurationError(
            f"the demo talks through the OpenAI client: {error}; pip install openai"
        ) from error
    # Never a retry: the server judges and counts every attempt.
    return OpenAI(
        base_url=f"{url}/v1",
        api_key=api_key or "none",
        max_retries=0,
        timeout=REQUEST_SECONDS,
        http_client=DefaultHttpxClient(trust_env=not is_loopback(url)),
    )
