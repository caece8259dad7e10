"""Talk to a checkpoint:  python chat.py out/toy/dpo/best [--versus out/toy/sft/best] [--temperature 0.7] [--seed 0]

The dialogue so far is the prompt, in HH's layout. /new starts another one, /quit (or Ctrl-D) ends; --versus shows the replies of two
models side by side, and each remembers its own. Lines may come from a pipe:  printf 'hello\\n' | python chat.py out/toy/dpo/best
"""
import argparse
import codecs
import contextlib
import itertools
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TextIO

from data.sources import tidy
from generate import stream
from runtime.errors import run_main
from sample import check_sampling, open_checkpoint, sampling_options, shortened
from tokenizer import ASSISTANT, END_OF_TEXT, HUMAN, Tokenizer, clean_reply, encode_prompt

NARROW = 60  # columns of a terminal below which two replies are shown one after the other
FORGETS = "(the dialogue is longer than the model can read: from now on its oldest turns are left out)"


def safe(text: str) -> str:
    """A reply as a terminal may be given it: cleaned, without characters that would move the cursor or change the screen."""
    return clean_reply("".join(c for c in tidy(text) if c.isprintable() or c in "\n\t"))


def pieces(ids: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of a reply while its ids still come; joined, the pieces are `safe` of the whole text.

    Held back until they are decided: the first bytes of a character, white space (a reply does not end in any), and what may become the next "Human:".
    """
    decoder, text, shown = codecs.getincrementaldecoder("utf-8")("replace"), "", 0
    for token in itertools.chain(ids, [None]):
        text += decoder.decode(b"" if token is None else tokenizer.token_bytes(token), final=token is None)
        held = 0 if token is None else max((k for marker in (HUMAN, END_OF_TEXT) for k in range(1, len(marker)) if text.endswith(marker[:k])), default=0)
        settled = safe(text[:len(text) - held])
        if len(settled) > shown:
            yield settled[shown:]
            shown = len(settled)


class Speaker:
    """A checkpoint and the dialogue it has had: `turns` are the person's and its own, by turns."""

    def __init__(self, name: str, a: argparse.Namespace):
        self.name, self.a = name, a
        self.model, self.tokenizer = open_checkpoint(name)
        self.token_bytes = [self.tokenizer.token_bytes(i) for i in range(self.tokenizer.vocab_size)]
        self.turns: list[str] = []
        self.forgets = False  # something of this dialogue has been left out

    def prompt(self) -> list[int]:
        """Ids of the dialogue with its last turn unanswered. Oldest turns are dropped for good until it fits, a last one too long by itself is cut from the left."""
        while True:
            said = "".join(f"{marker} {turn}".rstrip() for marker, turn in zip(itertools.cycle((HUMAN, ASSISTANT)), self.turns))
            ids = encode_prompt(self.tokenizer, said + ASSISTANT)[0]
            fitting = shortened(ids, self.model.config.block_size, self.a.max_new_tokens)
            self.forgets |= len(fitting) < len(ids)
            if len(fitting) == len(ids) or len(self.turns) == 1:
                return fitting
            del self.turns[:2]

    def reply(self) -> Iterator[str]:
        """The answer to the last turn, in pieces; at its end it becomes a turn of the dialogue."""
        a, whole = self.a, ""
        ids = (token for _, token in stream(self.model, [self.prompt()], max_new_tokens=a.max_new_tokens, eot_id=self.tokenizer.eot_id, temperature=a.temperature, top_k=a.top_k,
                                            top_p=a.top_p, seed=a.seed, stop=HUMAN.encode(), token_bytes=self.token_bytes) if token is not None)
        for piece in pieces(ids, self.tokenizer):
            whole += piece
            yield piece
        self.turns.append(whole)


# ---- two columns -----------------------------------------------------------------------------------------------------

def cells(text: str) -> int:
    """Columns a terminal needs for a text: two for a wide character, none for an accent on the one before."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells. As text is added at its end, only the last line changes (textwrap may go back further)."""
    lines = []
    for paragraph in text.split("\n"):
        lines.append("")
        for word in paragraph.split():
            if lines[-1] and cells(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
                continue
            lines += [""] * bool(lines[-1])
            for c in word:
                if cells(lines[-1] + c) > width:
                    lines.append("")
                lines[-1] += c
    return lines


def side_by_side(left: Speaker, right: Speaker, out: TextIO) -> None:
    """Write both replies as they come, in two columns. Rows above the last line of a reply that still grows are never written again."""
    size = shutil.get_terminal_size()
    width, texts, replies = (size.columns - 3) // 2, ["", ""], [left.reply(), right.reply()]
    columns, live, fixed, below = [[""], [""]], [0, 1], 0, 0  # rows above `fixed` are final, `below` of them stand between it and the cursor
    out.write(f"{left.name[-width:]:<{width}} | {right.name[-width:]}\n{'-' * width}-+-{'-' * width}\n")
    while live:
        behind = min(len(columns[k]) for k in live)
        for k in [k for k in live if len(columns[k]) <= behind + size.lines // 2]:  # the cursor can go back on the screen only
            piece = next(replies[k], None)
            if piece is None:
                live.remove(k)
            else:
                texts[k] += piece
                columns[k] = wrapped(texts[k], width)
        rows = list(itertools.zip_longest(*columns, fillvalue=""))
        out.write(f"\x1b[{below}A" * bool(below) + "".join(f"\x1b[K{a}{' ' * (width - cells(a))} | {b}\n" for a, b in rows[fixed:]))
        out.flush()
        fixed = min((len(columns[k]) - 1 for k in live), default=len(rows))
        below = len(rows) - fixed


# ---- the conversation ------------------------------------------------------------------------------------------------

def answer(speakers: list[Speaker]) -> None:
    """Print what each speaker says to its last turn."""
    if len(speakers) == 2 and sys.stdout.isatty() and shutil.get_terminal_size().columns >= NARROW:
        return side_by_side(*speakers, sys.stdout)
    for speaker in speakers:
        print(f"[{speaker.name}] " * (len(speakers) > 1), end="")
        for piece in speaker.reply():
            print(piece, end="", flush=True)
        print()


def converse(speakers: list[Speaker]) -> None:
    """A line in, a reply out, until /quit or the end of the input (EOFError)."""
    while (line := input("\nyou> " if sys.stdin.isatty() else "").strip()) != "/quit":
        if line == "/new":
            for speaker in speakers:
                speaker.turns, speaker.forgets = [], False
        elif line.startswith("/") and " " not in line:
            print(f"{line} is no command; there are /new and /quit.", file=sys.stderr)
        elif line:
            known = any(speaker.forgets for speaker in speakers)
            for speaker in speakers:
                speaker.turns.append(line)
            answer(speakers)
            if not known and any(speaker.forgets for speaker in speakers):
                print(FORGETS, file=sys.stderr)


def main(argv: list[str]) -> None:
    """The command line."""
    a = sampling_options(__doc__)
    a.add_argument("--versus", default="", help="a second checkpoint, shown beside the first")
    a = a.parse_args(argv)
    check_sampling(a)
    speakers = [Speaker(name, a) for name in filter(None, (a.checkpoint, a.versus))]
    for file in (sys.stdin, sys.stdout):
        file.reconfigure(errors="replace")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() its arrow keys; not on Windows)
    if sys.stdin.isatty():
        print("/new starts another dialogue, /quit ends.")
    try:
        converse(speakers)
    except (EOFError, KeyboardInterrupt):  # Ctrl-D, Ctrl-C
        print("\n" * sys.stdin.isatty(), end="")


if __name__ == "__main__":
    run_main(main)
