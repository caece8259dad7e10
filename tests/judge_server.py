"""A scripted OpenAI-compatible server over real HTTP (it answers as a test says, fails in every way, and counts what it is asked), and a
tiny model for a real one."""
import collections
import json
import socket
import threading
import time

import fastapi
import uvicorn
from fastapi.responses import JSONResponse, Response, StreamingResponse


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """POST /v1/chat/completions. `faults` are used up one per request; then `reply(messages)` answers."""

    def __init__(self):
        self.faults, self.reply, self.asked, self.bodies, self.lock = [], lambda messages: verdict("A"), collections.Counter(), [], threading.Lock()
        self.now = self.most = 0  # requests being answered, and the most at one time
        app = fastapi.FastAPI()

        @app.post("/v1/chat/completions")
        def complete(body: dict):  # not async: a slow answer must not hold up the others
            with self.lock:
                self.bodies.append(body)
                fault = self.faults.pop(0) if self.faults else None
                self.now += 1
                self.most = max(self.most, self.now)
            try:
                if fault:
                    return fault(body)
                with self.lock:
                    self.asked[json.dumps(body["messages"])] += 1
                return completion(self.reply(body["messages"]))
            finally:
                with self.lock:
                    self.now -= 1

        self.port = free_port()
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="critical"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the scripted server did not start"
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


def verdict(word):
    return json.dumps({"reason": "because", "verdict": word})


def completion(text, prompt=10, out=5):
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": out, "total_tokens": prompt + out}}


def too_many(body):
    return JSONResponse({"error": {"message": "slow down"}}, 429, headers={"retry-after": "0.05"})


def status(code, words, **headers):
    """A fault: this status with these words, and headers by name (retry_after for Retry-After)."""
    return lambda body: JSONResponse({"error": {"message": words}}, code, headers={name.replace("_", "-"): value for name, value in headers.items()})


def sends(content):
    """A fault: status 200 with this JSON."""
    return lambda body: JSONResponse(content)


def broken(body):
    return JSONResponse({"error": {"message": "boom"}}, 500)


def no_json(body):
    return Response("{ half", media_type="application/json")


def other_json(body):
    return JSONResponse({"hello": 1})


def slow(body):
    """Longer than the three seconds that the client of the test waits."""
    time.sleep(4.0)
    return completion(verdict("A"))


def cut(body, headers={"content-length": "500"}):
    """The connection ends in the middle of the body."""
    def half():
        yield json.dumps(completion(verdict("A")))[:40].encode()
        raise ConnectionResetError
    return StreamingResponse(half(), media_type="application/json", headers=headers)


def cut_stream(body):
    """The same without a length: a stream of chunks that lacks its last one."""
    return cut(body, {})


# ---- what a real server serves ---------------------------------------------------------------------------------------

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def tiny_model(folder):
    """A random GPT-2 with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate([*letters, "<end>"])}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", pad_token="<end>", chat_template=CHAT).save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=4096, n_embd=16, n_layer=1, n_head=2, bos_token_id=256, eos_token_id=256)).save_pretrained(folder)
