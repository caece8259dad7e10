"""A scripted stand-in for the language models of the study: a local OpenAI-compatible server that invents, writes, judges and summarises by rule.

For the miniature and for trying the commands without a model. What it rates can be counted in the text (words a turn, slang, lower case, questions), with
seeded noise: so the miniature's score measures exactly what its writers vary, which is no evidence about people.
"""
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any

from studies.human_likeness.dialogue import turns
from studies.human_likeness.synthesize import PARTS

MARKED = re.compile(r"=== \w+ ([\w ]+) begins ===\n(.*?)\n=== \w+ \1 ends ===", re.DOTALL)
SLANG = re.compile(r"\b(kinda|gonna|dunno|yeah|nah|tbh|lol|ugh)\b", re.IGNORECASE)
TRAITS = {  # what is measured: item id -> (group, the item, statements that mean it)
    "brevity": ("style", "Answers are short, with nothing that was not asked for.", ("keeps answers short", "says little at a time", "gives short answers without explaining", "short replies and nothing more")),
    "slang": ("style", "Uses slang or sloppy everyday words.", ("uses slang words", "talks in slang and everyday words", "sloppy slang in place of proper words", "slang like people use in chat")),
    "lowercase": ("style", "Begins sentences in lower case.", ("begins sentences in lower case", "writes lower case letters at the start", "no capital letters, all lower case", "lower case where capitals belong")),
    "asks_back": ("flow", "Asks the other one a question after answering.", ("never asks questions back", "does not return a question after answering", "leaves the questions to the other one", "asks no question in return"))}
COMPLAINTS = ("back", "knee", "stomach", "throat", "shoulder", "head", "neck", "hip", "ankle", "chest")
TIMES = ("monday", "last week", "the weekend", "yesterday", "two weeks", "a month")
HUMAN = ("my {part} hurts", "yeah its my {part}, since {time}", "dunno, {time} maybe", "ugh, its worse at night", "nah", "kinda sore tbh", "gonna need a note for work", "ok thx", "yeah")
FORMAL = ("Good morning, Doctor. I have been experiencing considerable discomfort in my {part} since {time}. What would you recommend?",
          "The discomfort in my {part} began approximately {time} ago and has become noticeably worse in the evenings. Is that a cause for concern?",
          "I appreciate your thorough explanation. Furthermore, I would like to know whether I should avoid any activities?",
          "That is an excellent question. It tends to intensify after a long day of work. Could it be related to my posture?",
          "Thank you very much for your time, Doctor. I will certainly follow your advice. When should I return?")
ASKS = ("What brings you in today?", "How long has it been like this?", "Is it worse at some time of the day?", "Have you had this before?")
STYLES = {"plain": (0.5, 1.0), "formal": (0.0, 0.5), "mixed": (0.0, 1.0)}  # writers: how human their patients talk


def talk(rng: Random, human: float, part: str, time: str, tags: tuple[str, str], exchanges: int) -> str:
    """A dialogue in which every turn of the first speaker is of the human kind with probability `human`."""
    lines = []
    for k in range(exchanges):
        said = rng.choice(HUMAN[1:] if rng.random() < human else FORMAL).format(part=part, time=time) if k else \
            (HUMAN[0] if rng.random() < human else FORMAL[0]).format(part=part, time=time)
        lines += [f"{tags[0]}: {said}", f"{tags[1]}: {ASKS[(k + len(part)) % len(ASKS)]}"]
    return "\n".join([*lines, f"{tags[0]}: {rng.choice(('ok thx', 'yeah bye') if rng.random() < human else FORMAL[-1:])}"])


def measure(text: str, speaker: str, noise: Random | None = None) -> dict[str, int]:
    """Ratings from 1 to 5 of a speaker's turns, by trait; with `noise` one rating in six is off by one."""
    own = [turn.text for turn in turns(text, ("P", "D") if speaker == "P" else ("W", "I")) if turn.speaker == speaker] or [""]
    share = lambda hits: sum(hits) / len(own)  # noqa: E731
    words = sum(len(turn.split()) for turn in own) / len(own)
    found = {"brevity": 5 - sum(words > limit for limit in (5, 8, 12, 18)), "slang": 1 + round(4 * share(bool(SLANG.search(t)) for t in own)),
             "lowercase": 1 + round(4 * share(t[:1].islower() for t in own)), "asks_back": 1 + round(4 * share("?" in t for t in own))}
    if noise:
        found = {name: min(5, max(1, value + (noise.random() < 1 / 6) * noise.choice((-1, 1)))) for name, value in found.items()}
    return found


def answer(body: dict[str, Any]) -> str:
    """What the scripted model `body["model"]` says to a request: decided by the schema it is to fill, and without one by the prompt."""
    asked = body["messages"][-1]["content"]
    rng = Random(hashlib.sha256(json.dumps([body["model"], body["messages"], body.get("seed")]).encode()).hexdigest())
    fields = set(body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {}))
    parts = dict(MARKED.findall(asked))
    if fields == {"verdict", "statements"}:
        return json.dumps(finding(parts["conversation A"], parts["conversation B"], rng))
    if fields == {"items", "left_out"}:
        return json.dumps(questionnaire(parts["statements"]))
    if fields == set(PARTS):
        return json.dumps(portrait(rng))
    if fields:
        text = parts["dialogue"]
        rated = measure(text, "P" if re.search(r"^P:", text, re.MULTILINE) else "W", rng)
        return json.dumps({name: rated.get(name, 3) for name in fields})
    part, time = (re.search(pattern, asked)[1] for pattern in (r"pain in the (\w+)", r"since ([\w ]+)\."))
    low, high = STYLES[body["model"]]
    return f"<dialogue>\n{talk(rng, rng.uniform(low, high), part, time, ('P', 'D'), rng.randint(2, 3))}\n</dialogue>"


def finding(a: str, b: str, rng: Random) -> dict[str, Any]:
    """A verdict on two witnesses, and what made the human one human: the traits in which they differ most, in changing words. One in eight says A unseen."""
    first, second = measure(a, "W", rng), measure(b, "W", rng)
    gaps = {name: (first[name] - second[name]) * (-1 if name == "asks_back" else 1) for name in TRAITS}
    verdict = "A" if rng.random() < 1 / 8 or sum(gaps.values()) > 0 else "B"
    named = sorted(gaps, key=lambda name: -gaps[name] if verdict == "A" else gaps[name])[:3]
    return {"verdict": verdict, "statements": [f"{rng.choice(TRAITS[name][2])} {rng.choice(('', 'mostly', 'again and again', 'in most turns'))}".strip() for name in named]}


def questionnaire(statements: str) -> dict[str, Any]:
    """Items for the numbered statements: each trait's item stands for those that use its words, and what fits none is left out with the reason."""
    items: dict[str, list[int]] = {}
    left_out = []
    for number, text in re.findall(r"^(\d+)\. (.*)$", statements, re.MULTILINE):
        name = next((name for name, (_, _, said) in TRAITS.items() if any(phrase in text for phrase in said)), None)
        if name:
            items.setdefault(name, []).append(int(number))
        else:
            left_out.append({"number": int(number), "why": "no trait of its own"})
    return {"items": [{"id": name, "group": TRAITS[name][0], "text": TRAITS[name][1], "from": numbers} for name, numbers in sorted(items.items())], "left_out": left_out}


def portrait(rng: Random) -> dict[str, str]:
    """A person with a pain in some part since some time."""
    part, time = rng.choice(COMPLAINTS), rng.choice(TIMES)
    about = "A person who lives nearby, gets up early, works with other people, cooks in the evening, likes a walk, keeps to a routine, seldom complains, and talks in a way of their own."
    return {"biography": about, "medical_condition": f"pain in the {part}", "reason_for_visit": f"It hurts since {time}."}


class Server:
    """The scripted models behind an address of this machine: `with Server() as url: ...`; `asked` counts the requests."""

    def __init__(self) -> None:
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.asked += 1
                text = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                said = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "scripted", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                                   "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
