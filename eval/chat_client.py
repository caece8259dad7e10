"""Questions to any OpenAI-compatible server (hosted models, Ollama, vLLM, `transformers serve`): retried, cached, counted, replayable.

Every answer is written to the cache before it is used, so a killed run loses nothing and asks nothing twice. A question that
is in the cache is never sent. With `replay` nothing is sent at all: no key, no network, the same figures. One process at a
time may use a cache.
"""
import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path

from tqdm import tqdm

from runtime.errors import UserError

Messages = list[dict[str, str]]
NO_KEY = "none"  # what a local server is told
ADDRESS = (401, 403, 404)  # wrong key, wrong address, wrong model
PASSING = (408, 409, 425, 429)  # these and every 5xx may pass
# a 400 or 422 in such words is about one question; in any other words it is about the settings, and so about all questions
DECLINED = re.compile(r"content.?(filter|policy|management)|safety|moderation|context.?(length|window|size)|too long", re.IGNORECASE)
COUNTED = ("requests", "retries", "from_cache", "refused_by_server", "cut_at_max_tokens", "without_usage",
           "prompt_tokens", "completion_tokens", "reasoning_tokens")


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
    seed: int | None = 0  # None = not sent: some servers refuse it
    max_tokens: int = 512
    reasoning_effort: str = ""  # passed through when given
    timeout: float = 120.0  # seconds without a word from the server
    tries: int = 6
    wait: float = 1.0  # seconds before the second try; doubles every time
    longest_wait: float = 120.0  # seconds; a server that asks for more ends the run
    concurrency: int = 4
    replay: bool = False
    price: tuple[float, float] | None = None  # money per million prompt and completion tokens, if you know it
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))

    def __post_init__(self):
        if min(self.concurrency, self.tries, self.max_tokens) < 1 or self.timeout <= 0:
            raise UserError("LLM judge: concurrency, tries and max-tokens must be at least 1, and the timeout more than 0 seconds.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"LLM judge: a temperature is a number from 0 up, not {self.temperature:g}.")
        self.file = self.cache / (re.sub(r"[^\w.-]+", "_", self.model)[-100:] + ".jsonl")  # a model may be a long path; its keys tell it apart
        self.lock, self.stopped, self.schemas, self.seconds = threading.Lock(), threading.Event(), True, 0.0
        self.draw = 0  # stands for the seed in the keys where none is sent: see `reseeded`
        self.server = None if self.replay else self._connect()
        self.known = _read_cache(self.file, self.replay)

    def _connect(self):
        try:
            import openai
        except ImportError:
            raise UserError("LLM judges need the openai package: pip install openai") from None
        secret = os.environ.get("OPENAI_API_KEY", "").strip()  # a key read from a file often ends in a newline
        if not (secret.isascii() and secret.isprintable()):  # said here, because the package's own message would show the key
            raise UserError("OPENAI_API_KEY holds characters that no key has: copy it again.")
        # a local server needs no key, but the package insists on one; its own retries are off, since ours are counted
        server = openai.OpenAI(base_url=self.base_url or None, api_key=secret or NO_KEY, max_retries=0, timeout=self.timeout)
        if server.base_url.scheme not in ("http", "https"):
            raise UserError(f"{server.base_url} is no address of a server: it must begin with http:// or https://, such as http://localhost:8000/v1.")
        return server

    @contextmanager
    def reseeded(self, k: int) -> Iterator[None]:
        """Within it questions are asked with the seed k further on, and so are new questions, also where no seed is sent: what was said
        to the k-th asking is no answer to the next."""
        first, drawn = self.seed, self.draw
        self.seed, self.draw = None if first is None else first + k, drawn + k
        try:
            yield
        finally:
            self.seed, self.draw = first, drawn

    def key(self, messages: Messages, schema: dict | None) -> str:
        """Content hash of a question."""
        seed = f"not sent, {self.draw}" if self.seed is None and self.draw else self.seed
        asked = [self.model, messages, schema, self.temperature, seed, self.max_tokens, self.reasoning_effort]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def ask_all(self, questions: Sequence[Messages], schema: dict | None = None, show: str = "") -> list[str | None]:
        """The answer texts, think-blocks removed, in order; None where the server declined that one question (its content, its length).

        UserError when the server cannot be used at all, or not after `tries` attempts; what was answered by then is kept.
        """
        keys = [self.key(messages, schema) for messages in questions]
        missing = {key: messages for key, messages in zip(keys, questions) if key not in self.known}
        self.counts["from_cache"] += sum(key in self.known for key in keys)
        if missing and self.replay:
            raise UserError(f"replay: {len(missing)} of {len(set(keys))} answers are not in {self.file}; run once without --replay.")
        started = time.time()
        self.stopped.clear()
        with ThreadPoolExecutor(self.concurrency) as pool:
            jobs = [pool.submit(self._ask, key, messages, schema) for key, messages in missing.items()]
            try:
                for job in tqdm(as_completed(jobs), total=len(jobs), desc=show, disable=not show, leave=False):
                    job.result()
            except BaseException:  # one failure, or Ctrl-C, ends the run; what is under way is still kept
                self.stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                self.seconds += time.time() - started
        answers = [self.known[key]["text"] for key in keys]
        return [None if text is None else strip_thoughts(text) for text in answers]

    def _ask(self, key: str, messages: Messages, schema: dict | None) -> None:
        """One question; its answer goes into the cache. One that fails stops the others: nothing new is begun, nobody waits for another try."""
        if self.stopped.is_set():
            return
        try:
            answer = self._retried(messages, schema)
        except BaseException:
            self.stopped.set()
            raise
        if answer is not None:
            self._keep(key, answer)

    def _retried(self, messages: Messages, schema: dict | None) -> dict | None:
        """The answer, after as many tries as it takes; None when the run was stopped meanwhile. UserError after `tries`."""
        for attempt in range(self.tries):
            try:
                return self._send(messages, schema)
            except Retry as problem:
                if attempt + 1 == self.tries:
                    raise UserError(f"{self.model} did not answer after {self.tries} tries ({problem}); {self._kept()}") from None
                pause = self._pause(attempt, problem)
            with self.lock:
                self.counts["retries"] += 1
            if self.stopped.wait(pause):
                return None

    def _keep(self, key: str, answer: dict) -> None:
        """Count an answer and write it to disk, before anything uses it."""
        declined = answer["text"] is None
        with self.lock:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **answer}, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.known[key] = answer
            if declined and not self.counts["refused_by_server"]:
                tqdm.write(f"{self.model}: the server declined a question ({answer['declined']}); such questions have no answer.")
            self.counts["refused_by_server"] += declined
            self.counts["cut_at_max_tokens"] += answer.get("cut", False)
            self.counts["without_usage"] += not declined and None in (answer["prompt_tokens"], answer["completion_tokens"])
            for name in ("prompt_tokens", "completion_tokens", "reasoning_tokens"):
                self.counts[name] += answer[name] or 0

    def _pause(self, attempt: int, problem: Retry) -> float:
        """Seconds until the next try: exponential, and never sooner than the server asked. UserError when it asks for too much."""
        if (problem.after or 0) > self.longest_wait:
            raise UserError(f"{self.model} asks to wait {problem.after:,.0f} s ({problem}); {self._kept()}") from None
        # half of the wait is luck, so that refused clients do not all come back at the same moment
        pause = min(self.longest_wait, self.wait * 2**attempt) * (0.5 + random.random() / 2)
        return max(pause, (problem.after or 0) * (1 + random.random() / 10))

    def _kept(self) -> str:
        return f"{len(self.known)} answers are kept in {self.file}: run the same command again."

    def _send(self, messages: Messages, schema: dict | None) -> dict:
        """One request. Raises Retry for what may pass and UserError for what will not."""
        import openai
        with self.lock:
            self.counts["requests"] += 1
        settings: dict = {"model": self.model, "messages": [{name: _sendable(text) for name, text in message.items()} for message in messages]}
        if self.seed is not None:
            settings["seed"] = self.seed
        if self.reasoning_effort:  # reasoning models take no temperature and count their thoughts in this limit
            settings |= {"reasoning_effort": self.reasoning_effort, "max_completion_tokens": self.max_tokens}
        else:
            settings |= {"temperature": self.temperature, "max_tokens": self.max_tokens}
        with_schema = bool(schema) and self.schemas  # remembered: another thread may find out meanwhile that the server takes none
        if with_schema:
            settings["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        try:
            return _unpack(self.server.chat.completions.create(**settings))
        except openai.APIStatusError as e:
            return self._status(e, messages, with_schema)
        except openai.APITimeoutError:
            raise Retry(f"no answer within {self.timeout:g} s") from None
        except openai.APIConnectionError as e:
            raise Retry(f"no connection to {self.server.base_url}: {e.__cause__ or e}") from None
        except (openai.APIError, ValueError) as e:  # a body that is no JSON, or JSON of another kind
            raise Retry(f"malformed answer: {str(e)[:100]}") from None

    def _status(self, e, messages: Messages, with_schema: bool) -> dict:
        """What to do about a status that is no success."""
        words, secret = " ".join(str(e).split()), self.server.api_key
        words = (words if secret == NO_KEY else words.replace(secret, "..."))[:200]
        if e.status_code in PASSING or e.status_code >= 500:
            raise Retry(words, retry_after(e.response.headers.get("retry-after", "")))
        if e.status_code in ADDRESS:
            raise UserError(f"{self.server.base_url} answered {words}: check --base-url, --model and OPENAI_API_KEY.")
        if e.status_code in (400, 422) and DECLINED.search(words):
            return {"text": None, "declined": words, "prompt_tokens": 0, "completion_tokens": 0, "reasoning_tokens": 0}
        if e.status_code in (400, 422) and with_schema:
            answer = self._send(messages, None)  # only if this works was the schema to blame
            with self.lock:
                if self.schemas and answer["text"] is not None:
                    tqdm.write(f"{self.model}: the server takes no JSON schema ({e.status_code}); answers are parsed from plain text instead.")
                    self.schemas = False
            return answer
        raise UserError(f"{self.server.base_url} refuses the request ({words}): change what it names "
                        "(--reasoning-effort sends no temperature and max_completion_tokens; --no-seed sends no seed).")

    def totals(self) -> dict:
        """What this run sent, received and took (cached answers cost nothing). Cost only when a price was given and every answer told its tokens."""
        cost = None
        if self.price and not self.counts["without_usage"]:
            cost = (self.counts["prompt_tokens"] * self.price[0] + self.counts["completion_tokens"] * self.price[1]) / 1e6
        return self.counts | {"seconds": round(self.seconds, 1), "cost": cost}


def retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date (RFC 9110, section 10.2.3); None when it says nothing."""
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _unpack(response) -> dict:
    """Text and token counts of a chat completion; Retry for anything else. The package does not check what the server sends."""
    try:
        choice = response.choices[0]
        text = choice.message.content
    except (AttributeError, LookupError, TypeError):
        raise Retry(f"malformed answer: {str(getattr(response, 'error', None) or 'no message')[:100]}") from None
    if not isinstance(text, str | None):
        raise Retry(f"malformed answer: the text is a {type(text).__name__}")
    usage = getattr(response, "usage", None)
    prompt, completion = (_count(getattr(usage, name, None)) for name in ("prompt_tokens", "completion_tokens"))
    thoughts = _count(getattr(getattr(usage, "completion_tokens_details", None), "reasoning_tokens", None)) or 0
    return {"text": _sendable(text or ""), "cut": getattr(choice, "finish_reason", None) == "length",
            "prompt_tokens": prompt, "completion_tokens": completion, "reasoning_tokens": thoughts}


def _sendable(text: str) -> str:
    """Half a surrogate pair, which JSON may hold and UTF-8 may not, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _count(value) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _read_cache(file: Path, replay: bool) -> dict[str, dict]:
    """The answers on disk, the last one per key. Replay changes nothing on disk and takes declined questions as they were; otherwise they
    are asked again, since nothing was judged. A kill leaves half a last line, which is cut off so that the next answer starts its own."""
    if not replay:
        file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        return {}
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data) and not replay:
        os.truncate(file, whole)
    known, damaged = {}, 0
    for line in data[:whole].splitlines():
        try:
            row = json.loads(line)
            if row["text"] is not None or replay:
                known[row.pop("key")] = row
        except (ValueError, LookupError, TypeError):
            damaged += 1
    if damaged:
        tqdm.write(f"{file}: damaged lines left out: {damaged}; their questions count as not asked.")
    return known


def strip_thoughts(text: str) -> str:
    """The answer behind a reasoning model's <think> block, closed, unclosed (then nothing is left) or opened by the template."""
    if text.lstrip().startswith("{"):  # JSON from its first character: no thoughts stand before it, and a tag inside is a quotation
        return text.strip()
    text = re.sub(r"<think>.*?(?:</think>|\Z)", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2].strip()
