"""Questions to any OpenAI-compatible server (hosted models, Ollama, vLLM, `transformers serve`): retried, cached, counted, replayable.

Every answer is written to the cache before it is used, so a killed run loses nothing and asks nothing twice. A question that
is in the cache is never sent. With `replay` nothing is sent at all: no key, no network, the same figures.
"""
import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from runtime.errors import UserError

Messages = list[dict[str, str]]
FINAL = (401, 403, 404)  # wrong key, wrong address, wrong model: no retry and no other question will help


class Retry(Exception):
    """Something that may pass: too many requests, a server error, a cut connection, a body that is no answer."""

    def __init__(self, why: str, after: float | None = None):
        super().__init__(why)
        self.after = after


@dataclass
class ChatClient:
    """One model behind one address. Settings that change an answer are part of the cache's key; the address is not: the same
    model is the same model elsewhere."""
    model: str
    cache: Path  # folder
    base_url: str = ""  # empty = OPENAI_BASE_URL, or the package's own default
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 512
    reasoning_effort: str = ""  # passed through when given
    timeout: float = 120.0  # seconds per request
    tries: int = 6
    wait: float = 1.0  # seconds before the second try; doubles every time
    concurrency: int = 4
    replay: bool = False
    price: tuple[float, float] | None = None  # money per million prompt and completion tokens, if you know it
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(
        ("requests", "retries", "from_cache", "refused_by_server", "prompt_tokens", "completion_tokens", "reasoning_tokens"), 0))

    def __post_init__(self):
        self.cache.mkdir(parents=True, exist_ok=True)
        self.file = self.cache / (re.sub(r"[^\w.-]+", "_", self.model) + ".jsonl")
        self.known, self.lock, self.schemas, self.seconds = _read_cache(self.file), threading.Lock(), True, 0.0
        self.server = None if self.replay else self._connect()

    def _connect(self):
        try:
            import openai
        except ImportError:
            raise UserError("LLM judges need the openai package: pip install openai") from None
        # a local server needs no key, but the package insists on one; its own retries are off, since ours are counted
        return openai.OpenAI(base_url=self.base_url or None, api_key=os.environ.get("OPENAI_API_KEY") or "none", max_retries=0, timeout=self.timeout)

    def key(self, messages: Messages, schema: dict | None) -> str:
        """Content hash of a question."""
        asked = [self.model, messages, schema, self.temperature, self.seed, self.max_tokens, self.reasoning_effort]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def ask_all(self, questions: Sequence[Messages], schema: dict | None = None, show: str = "") -> list[str | None]:
        """The answer texts, think-blocks removed, in order; None where the server declined that one question (400, 422).

        UserError when the server cannot be used at all, or not after `tries` attempts; what was answered by then is kept.
        """
        keys = [self.key(messages, schema) for messages in questions]
        missing = {key: messages for key, messages in zip(keys, questions) if key not in self.known}
        self.counts["from_cache"] += len(keys) - len(missing)
        if missing and self.replay:
            raise UserError(f"replay: {len(missing)} of {len(keys)} answers are not in {self.file}; run once without --replay.")
        started = time.time()
        with ThreadPoolExecutor(self.concurrency) as pool:
            jobs = [pool.submit(self._ask, key, messages, schema) for key, messages in missing.items()]
            try:
                for job in tqdm(jobs, desc=show, disable=not show, leave=False):
                    job.result()
            except BaseException:  # one failure ends the run: those not yet begun are not begun
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                self.seconds += time.time() - started
        return [strip_thoughts(self.known[key]["text"]) if self.known[key]["text"] is not None else None for key in keys]

    def _ask(self, key: str, messages: Messages, schema: dict | None) -> None:
        """One question, with retries; the answer goes into the cache."""
        for attempt in range(self.tries):
            try:
                answer = self._send(messages, schema)
                break
            except Retry as problem:
                if attempt + 1 == self.tries:
                    raise UserError(f"{self.model} did not answer after {self.tries} tries ({problem}); {len(self.known)} answers are kept in {self.file}: "
                                    "run the same command again.") from None
                with self.lock:
                    self.counts["retries"] += 1
                # half of the wait is luck, so that refused clients do not all come back at the same moment
                time.sleep(problem.after if problem.after is not None else min(60.0, self.wait * 2**attempt) * (0.5 + random.random() / 2))
        with self.lock:
            for name in ("prompt_tokens", "completion_tokens", "reasoning_tokens"):
                self.counts[name] += answer[name]
            self.counts["refused_by_server"] += answer["text"] is None
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **answer}, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.known[key] = answer

    def _send(self, messages: Messages, schema: dict | None) -> dict:
        """One request. Raises Retry for what may pass and UserError for what will not."""
        import openai
        with self.lock:
            self.counts["requests"] += 1
        settings: dict = {"model": self.model, "messages": messages, "seed": self.seed}
        if self.reasoning_effort:  # reasoning models take no temperature and count their thoughts in this limit
            settings |= {"reasoning_effort": self.reasoning_effort, "max_completion_tokens": self.max_tokens}
        else:
            settings |= {"temperature": self.temperature, "max_tokens": self.max_tokens}
        if schema and self.schemas:
            settings["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        try:
            return _unpack(self.server.chat.completions.create(**settings))
        except openai.APIStatusError as e:
            return self._status(e, messages, schema)
        except openai.APITimeoutError:
            raise Retry(f"no answer within {self.timeout:g} s") from None
        except openai.APIConnectionError as e:
            raise Retry(f"no connection to {self.server.base_url}: {e.__cause__ or e}") from None
        except (openai.APIError, ValueError) as e:  # a body that is no JSON, or JSON of another kind
            raise Retry(f"malformed answer: {str(e)[:100]}") from None

    def _status(self, e, messages: Messages, schema: dict | None) -> dict:
        words = str(e)[:200]
        if e.status_code in FINAL:
            raise UserError(f"{self.server.base_url} answered {e.status_code} ({words}): check --base-url, --model and OPENAI_API_KEY.")
        if e.status_code in (408, 409, 429) or e.status_code >= 500:
            after = e.response.headers.get("retry-after", "")
            raise Retry(f"status {e.status_code}: {words}", float(after) if re.fullmatch(r"\d+(\.\d+)?", after) else None)
        if schema and self.schemas:
            with self.lock:
                if self.schemas:
                    tqdm.write(f"{self.model}: the server takes no JSON schema ({e.status_code}); answers are parsed from plain text instead.")
                self.schemas = False
            return self._send(messages, schema)
        return {"text": None, "declined": words, "prompt_tokens": 0, "completion_tokens": 0, "reasoning_tokens": 0}

    def totals(self) -> dict:
        """Requests, retries, tokens, seconds; cost only when a price was given."""
        cost = None
        if self.price:
            cost = (self.counts["prompt_tokens"] * self.price[0] + self.counts["completion_tokens"] * self.price[1]) / 1e6
        return self.counts | {"seconds": round(self.seconds, 1), "cost": cost}


def _unpack(response) -> dict:
    """Text and token counts of a chat completion; Retry for anything else."""
    choices = getattr(response, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise Retry("malformed answer: no choices")
    usage = getattr(response, "usage", None)
    details = getattr(usage, "completion_tokens_details", None)
    return {"text": choices[0].message.content or "", "prompt_tokens": getattr(usage, "prompt_tokens", 0) or 0,
            "completion_tokens": getattr(usage, "completion_tokens", 0) or 0, "reasoning_tokens": getattr(details, "reasoning_tokens", 0) or 0}


def _read_cache(file: Path) -> dict[str, dict]:
    """The answers on disk; half a last line, which a kill leaves, is cut off so that the next answer starts a line of its own."""
    if not file.exists():
        return {}
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(file, whole)
    rows = [json.loads(line) for line in data[:whole].splitlines()]
    return {row.pop("key"): row for row in rows}


def strip_thoughts(text: str) -> str:
    """The answer behind a reasoning model's <think> block, closed, unclosed (then nothing is left) or opened by the template."""
    text = re.sub(r"<think>.*?(?:</think>|\Z)", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2].strip()
