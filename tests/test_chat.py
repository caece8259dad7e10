"""Talking to a checkpoint: streamed tokens, whole characters, the dialogue as a prompt, two columns on a real (pseudo) terminal."""
import argparse
import os
import re
import select
import signal
import subprocess
import sys
import time
from itertools import zip_longest
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_model import gpt  # noqa: F401  (a fixture)

from chat import FORGETS, Speaker, cells, main, pieces, safe, side_by_side, wrapped
from generate import generate, stream
from model import GPT, GPTConfig, save_model
from reward_model import RewardModel, save_reward_model
from runtime.config import ROOT
from runtime.errors import UserError
from sample import shortened
from tokenizer import clean_reply, encode_prompt, train_bpe

TEXT = "\n\nHuman: hello there, how are you?\n\nAssistant: I am fine 🙂, 日本 and naïve too."


@pytest.fixture(scope="module")
def tok():
    return train_bpe([TEXT], 275)


@pytest.fixture(scope="module")
def folders(tok, tmp_path_factory):
    """Two checkpoints with random weights: their replies are mostly single bytes, as hard for a terminal as replies get."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        (root / name).mkdir()
        save_model(GPT(GPTConfig(tok.vocab_size, 96, 1, 2, 32)), root / name, tok.eot_id)
        tok.save(root / name)
    return root


def options(**changed):
    return argparse.Namespace(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 24, "seed": 0} | changed)


def chat(*argv, said=""):
    return subprocess.run([sys.executable, "chat.py", *map(str, argv)], cwd=ROOT, input=said.encode(), capture_output=True, timeout=120)


# ---- tokens and characters -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 5}, {"seed": 5, "top_p": 0.8, "batch_size": 3}])
def test_streamed_ids_are_those_of_generate(gpt, settings):  # noqa: F811
    prompts = [[i, *range(1 + i % 7)] for i in range(12)]
    how = {"max_new_tokens": 9, "eot_id": 3, "stop": b"\x05\x06", "token_bytes": [bytes([i]) for i in range(97)]} | settings
    replies, ended = [[] for _ in prompts], []
    for i, token in stream(gpt, prompts, **how):
        assert i not in ended  # nothing comes after a reply's end
        ended.append(i) if token is None else replies[i].append(token)
    assert replies == generate(gpt, prompts, **how) and sorted(ended) == list(range(12))


def test_a_stream_leaves_gradients_and_mode_alone(gpt):  # noqa: F811
    gpt.train()
    tokens = stream(gpt, [[1, 2]], max_new_tokens=5, eot_id=-1)
    next(tokens)
    assert torch.is_grad_enabled() and not gpt.training
    tokens.close()  # nobody listens any more
    assert gpt.training


@pytest.mark.parametrize("seed", range(20))
def test_pieces_join_to_the_cleaned_reply(tok, seed):
    rng = np.random.default_rng(seed)
    words = [*tok.encode(TEXT + "<|endof"), *tok.encode("\n\nHum \r\n \t"), *range(256)]
    ids = [int(i) for i in rng.choice(words, 80)] + (tok.encode("\n\nHuman: and I") if seed % 2 else [])
    assert "".join(pieces(ids, tok)) == safe(tok.decode(ids)) and "" not in list(pieces(ids, tok))


@pytest.mark.parametrize("said, shown", [
    (" naïve 日本 🙂", "naïve 日本 🙂"),  # one byte at a time: characters come whole
    (" yes\n\nHumble folk", "yes\n\nHumble folk"),
    (" yes\n\nHuman: and now", "yes"),
    ("\n\nHuman: nothing", ""),
    (" a<|endoftext|> b", "a"),
    (" a <b\n ", "a <b"),
    (" red\x1b[31m\x9b2J \x07\x00end\r", "red[31m2J end")])  # no reply may steer the terminal
def test_what_is_shown_never_has_to_be_taken_back(tok, said, shown):
    seen = ""
    for piece in pieces(list(said.encode()), tok):
        seen += piece
        assert shown.startswith(seen)
    assert seen == shown


# ---- the dialogue --------------------------------------------------------------------------------------------------------

def test_the_dialogue_is_a_transcript(folders, tok):
    speaker = Speaker(str(folders / "one"), options(max_new_tokens=8))
    for turns, text in ((["a"], "\n\nHuman: a\n\nAssistant:"), (["a", "b", "c"], "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"),
                        (["a", "", "c"], "\n\nHuman: a\n\nAssistant:\n\nHuman: c\n\nAssistant:")):
        speaker.turns = turns
        assert speaker.prompt() == encode_prompt(tok, text)[0] and not speaker.forgets
    speaker.turns = ["hello"]
    said = "".join(speaker.reply())
    assert speaker.turns == ["hello", said]


def test_old_turns_leave_first_and_a_long_one_is_cut(folders, tok):
    speaker = Speaker(str(folders / "one"), options())
    for limit in range(24, 49, 4):
        speaker.a.max_new_tokens, speaker.forgets = limit, False
        speaker.turns = [word for i in range(6) for word in (f"how {i}", f"I am {i}")] + ["hello"]
        ids = speaker.prompt()
        text = tok.decode(ids[1:])
        assert speaker.forgets and speaker.turns[-1] == "hello" and ids[0] == tok.eot_id and len(ids) <= 96 - limit
        assert text.startswith(f"\n\nHuman: {speaker.turns[0]}") and set(speaker.turns[::2]) <= {"hello", *(f"how {i}" for i in range(6))}  # whole turns, the latest ones
        assert text.endswith("\n\nHuman: hello\n\nAssistant:") and (limit > 40 or "I am 5" in text)
    speaker.a.max_new_tokens = 40
    speaker.turns = ["x y " * 100]
    ids = speaker.prompt()
    assert len(ids) == 96 - 40 and ids[0] == tok.eot_id and tok.decode(ids).endswith("x y\n\nAssistant:")
    assert len(shortened(list(range(90)), 96, 1000)) == 48  # a reply as long as the block does not eat the question


def test_lines_from_a_pipe(folders):
    one = folders / "one"
    found = chat(one, "--max_new_tokens=12", said="hello there\n\n/what\nand you?\n/new\nhello there\n/quit\nnever read\n")
    assert found.returncode == 0 and found.stderr == b"/what is no command; there are /new and /quit.\n"
    sampled = subprocess.run([sys.executable, "sample.py", str(one), "hello there", "--max_new_tokens=12"], cwd=ROOT, check=True, capture_output=True)
    reply = safe(sampled.stdout.decode()) + "\n"
    out = found.stdout.decode()
    assert len(reply) > 3 and out.startswith(reply) and out.endswith(reply) and len(out) > 2 * len(reply)  # after /new the same again, another turn between
    again = chat(one, "--max_new_tokens=12", "--seed=1", said="hello there")  # no newline at the end
    assert again.returncode == 0 and again.stdout.decode() != reply


def test_a_full_block_is_said_once_and_each_model_keeps_its_own_replies(folders):
    found = chat(folders / "one", "--versus", folders / "two", "--max_new_tokens=20", said="hello there, how are you?\n" * 4)
    assert found.returncode == 0 and found.stderr.decode() == FORGETS + "\n"
    alone = {name: chat(folders / name, "--max_new_tokens=20", said="hello there, how are you?\n" * 4).stdout.decode() for name in ("one", "two")}
    out = found.stdout.decode()
    for name, said in alone.items():
        mine = re.findall(rf"\[{re.escape(str(folders / name))}\] (.*?)\n(?=\[/|\Z)", out, re.DOTALL)
        assert len(mine) == 4 and "\n".join(mine) + "\n" == said
    assert alone["one"] != alone["two"]


@pytest.mark.parametrize("argv, words", [
    (["./nowhere"], "./nowhere is neither a folder here nor"), (["{}"], "config.json is missing"), (["{}/one", "--versus={}/three"], "three is neither"),
    (["{}/reward"], "is a reward model"), (["{}/one", "--temperature=-1"], "--temperature must be 0 or more, not -1.0"), (["{}/one", "--top_p=0"], "--top_p must be"),
    (["{}/one", "--max_new_tokens=0"], "--max_new_tokens must be at least 1")])
def test_mistakes_are_one_sentence(folders, tok, argv, words):
    if not (folders / "reward").exists():
        (folders / "reward").mkdir()
        save_reward_model(RewardModel(GPT(GPTConfig(tok.vocab_size, 16, 1, 2, 32))), folders / "reward", tok.eot_id)
    with pytest.raises(UserError) as e:
        main([word.format(folders) for word in argv])
    assert words in str(e.value)


def test_a_mistake_ends_the_command_with_one_sentence():
    found = chat("./nowhere", said="hello\n")
    said = found.stderr.decode().strip()
    assert found.returncode == 2 and said.startswith("error: ") and "\n" not in said and not found.stdout


# ---- two columns -----------------------------------------------------------------------------------------------------------

def screen(data: str, lines: int) -> list[str]:
    """What a terminal of so many lines shows, with all that has scrolled away above it. Knows what chat.py uses: newline, cursor up, erase."""
    rows, r, c = [""], 0, 0
    for n, letter, char in re.findall(r"\x1b\[\??([0-9;]*)([A-Za-z])|([^\x1b])", data):
        if letter == "A":
            r = max(r - int(n), len(rows) - lines, 0)
        elif letter == "K":
            rows[r] = rows[r][:c]
        elif char == "\n":
            r, c = r + 1, 0
            rows += [""] * (r == len(rows))
        elif char == "\r":
            c = 0
        elif char:
            rows[r] = rows[r][:c].ljust(c) + char + rows[r][c + 1:]
            c += 1
    return rows


@pytest.mark.parametrize("seed", range(12))
def test_lines_above_the_last_never_change(seed):
    rng = np.random.default_rng(seed)
    words, text, before = ["a", "bb ", " ccc", "\n", "日本", "longer", "averyveryverylongword", " ", "ē"], "", [""]
    for _ in range(60):
        text += rng.choice(words)
        lines = wrapped(text, 10)
        assert lines[:len(before) - 1] == before[:-1] and max(map(cells, lines)) <= 10
        assert "".join("".join(lines).split()) == "".join(text.split())
        before = lines


@pytest.mark.parametrize("seed", range(12))
def test_the_screen_holds_both_replies_whole(seed, monkeypatch):
    """Replies of any lengths, one of them all newlines at times, on a terminal of ten lines."""
    monkeypatch.setenv("COLUMNS", "63")
    monkeypatch.setenv("LINES", "10")
    rng = np.random.default_rng(seed)
    replies = [[str(piece) for piece in rng.choice(["word ", "lo", "ng ", "\n", "a"] if seed % 3 else ["\n", "a"], rng.integers(1, 120))] for _ in range(2)]
    written = []
    out = SimpleNamespace(write=written.append, flush=lambda: None)
    side_by_side(*(SimpleNamespace(name=name, reply=lambda texts=texts: iter(texts)) for name, texts in zip("AB", replies)), out)
    columns = [wrapped("".join(texts), 30) for texts in replies]
    wanted = [f"{a:<30} | {b}" for a, b in zip_longest(*columns, fillvalue="")]
    assert screen("".join(written), 10) == [f"{'A':<30} | B", f"{'-' * 30}-+-{'-' * 30}", *wanted, ""]
    assert len(re.findall(r"\x1b\[K", "".join(written))) < 3 * sum(map(len, replies)) + len(wanted)  # the end is drawn again, not the whole


def read_until(fd: int, pattern: bytes, seconds: float = 60) -> bytes:
    """What a terminal prints until `pattern` is found in it."""
    seen, end = b"", time.time() + seconds
    while not re.search(pattern, seen, re.DOTALL) and time.time() < end and select.select([fd], [], [], end - time.time())[0]:
        try:
            seen += os.read(fd, 65536)
        except OSError:  # Linux's way to say that the other side is gone
            break
    assert re.search(pattern, seen, re.DOTALL), seen
    return seen


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("end", [b"\x03", b"\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_on_a_terminal(folders, end):
    """Two columns at 80 columns, one after the other at 50, and a clean end."""
    import fcntl
    import pty
    import struct
    import termios

    def resize(columns):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    names = [str(folders / name) for name in ("one", "two")]
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a runner of several processes ignores it, and its children would, too
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        os.execve(sys.executable, [sys.executable, "chat.py", names[0], "--versus", names[1], "--max_new_tokens=12"], env)
    resize(80)
    read_until(fd, b"you> ")
    os.write(fd, b"hello there\n")
    wide = screen(read_until(fd, b"-[+]-.*you> ").decode(), 24)
    rule = next(i for i, row in enumerate(wide) if "-+-" in row)
    rows = wide[rule + 1:-2]  # an empty line and the prompt follow
    assert wide[rule - 1].split(" | ") == [f"{names[0][-38:]:<38}", names[1][-38:]] and rows and all(row[38:41] == " | " for row in rows)
    resize(50)
    os.write(fd, b"/new\nhello there\n")
    narrow = read_until(fd, b"two[]] .*you> ").decode().replace("\r\n", "\n")
    second = narrow.split(f"[{names[1]}] ")[1].rsplit("\n\nyou>", 1)[0]
    assert "\x1b[1A" not in narrow and f"[{names[0]}] " in narrow
    assert "".join(row[41:] for row in rows).split() == "".join(wrapped(second, 38)).split()  # the same reply, laid out otherwise
    if end == b"\x03":  # half a line echoed: Python is at the keyboard, where a signal is seen at once
        os.write(fd, b"hel")
        read_until(fd, b"hel")
        time.sleep(0.5)
    os.write(fd, end)
    until, done = time.time() + 60, 0
    while not done and time.time() < until:
        time.sleep(0.05)
        done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(fd)
    assert done and os.waitstatus_to_exitcode(status) == 0
