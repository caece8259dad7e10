"""A dialogue as text, "P: ..." and "D: ..." line by line (or "I:" and "W:"): its turns, its cleaning, and what can be measured without a judge.

P is the patient and D the doctor of a synthetic visit; I interrogates and W is the witness of a Turing test. Only one of the two is rated.
"""
import hashlib
import re
import statistics
from collections import Counter
from dataclasses import dataclass

from data.sources import tidy

VISIT, TURING = ("P", "D"), ("W", "I")  # the rated speaker first
WRITTEN = {"P": r"P|Pt\.?|Patient", "D": r"D|Dr\.?|Doctor", "W": "W", "I": "I"}  # how generators spell the tags
OPENING, CLOSING = re.compile(r"<dialogue>", re.IGNORECASE), re.compile(r"</dialogue>", re.IGNORECASE)
# what a doctor says at the beginning and a patient does not, and the other way round
DOCTOR_LIKE = re.compile(r"what (brings|can i do|seems to be)|how (can|may) i help|i'?m (dr\b|doctor)|have you (noticed|had any|been taking)|any (allergies|other symptoms)|"
                         r"(let'?s|let me) (take a look|examine|run some)|i('d| would) (recommend|like to run|prescribe)", re.IGNORECASE)
TO_A_DOCTOR = re.compile(r"\b(doc|doctor|dr\.? [A-Z]\w+)\s*[,.!?]|\b(hi|hey|hello|hiya|thanks|morning),? (doc|doctor|dr\.?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Turn:
    """What one speaker says until the other one speaks; consecutive lines by one speaker are one turn."""
    speaker: str
    text: str


def clean(text: str, tags: tuple[str, str] = VISIT) -> tuple[str, Counter]:
    """(the dialogue alone, what was done to it): whatever stands before an opening <dialogue> and after its closing goes, list numbers and
    asterisks before a speaker's tag too, and so do rules of dashes, blank lines and repeated spaces.

    Nothing that somebody says is removed: asides in brackets stay, and so does a dialogue that the doctor opens.
    """
    text, done = tidy(text), Counter()
    if opened := OPENING.search(text):
        done["text before the dialogue"] += bool(text[:opened.start()].strip())
        text = text[opened.end():]
    if closed := CLOSING.search(text):
        done["text after the dialogue"] += bool(CLOSING.sub("", text[closed.end():]).strip())
        text = text[:closed.start()]
    elif opened:
        done["no closing tag"] += 1
    for tag in tags:
        text = re.sub(rf"^[ \t]*(?:\d+[.)]?|[-*•])?[ \t]*\**(?:{WRITTEN[tag]})\**[ \t]*:\**", f"{tag}:", text, flags=re.MULTILINE)
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not re.fullmatch(r"[-–—_*=]{3,}", line)]
    tagged = next((i for i, line in enumerate(kept) if line.startswith(tuple(f"{tag}:" for tag in tags))), len(kept))
    done["lines before the first speaker"] += bool(kept[:tagged])
    return "\n".join(kept[tagged:]), +done


def turns(text: str, tags: tuple[str, str] = VISIT) -> list[Turn]:
    """The turns of a clean dialogue; a line without a tag goes on with the turn before it."""
    found: list[Turn] = []
    for line in text.splitlines():
        tag, colon, said = line.partition(":")
        if colon and tag in tags:
            if found and found[-1].speaker == tag:
                found[-1] = Turn(tag, f"{found[-1].text}\n{said.strip()}")
            else:
                found.append(Turn(tag, said.strip()))
        elif found:
            found[-1] = Turn(found[-1].speaker, f"{found[-1].text}\n{line.strip()}")
    return found


def text_hash(text: str) -> str:
    """16 hex digits of a text up to white space: whether two files hold the same dialogue."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def problems(said: list[Turn], tags: tuple[str, str] = VISIT) -> list[str]:
    """What speaks against rating the first of `tags` in this dialogue; empty when nothing does.

    Generators swap the two roles, and a judge then rates the doctor's voice as the patient's. They are taken for swapped when, in the first three
    turns of each, P asks what a doctor asks and D does not, or D is the one who says "doctor" to the other. A rule of thumb: read some.
    """
    own = [turn for turn in said if turn.speaker == tags[0]]
    found = []
    if not own:
        found.append(f"no turn of {tags[0]}")
    if len(own) == len(said) and said:
        found.append("only one speaker")
    if tags == VISIT and own:
        p, d = (" ".join(turn.text for turn in [t for t in said if t.speaker == tag][:3]).replace("\u2019", "'") for tag in tags)
        asks = [bool(DOCTOR_LIKE.search(text)) for text in (p, d)]
        if asks == [True, False] or TO_A_DOCTOR.search(d) and not TO_A_DOCTOR.search(p) and asks != [False, True]:
            found.append("P speaks like the doctor")
    return found


def features(said: list[Turn], speaker: str) -> dict[str, float]:
    """Judge-free measures of one speaker's turns: turns, words, words a turn, cv, questions a turn. 0 where there is none.

    cv = sample standard deviation / mean of the turns' lengths in words (0 with fewer than two turns): people vary more. The study computed it
    and never used it; alone it separates its Turing-test witnesses at an AUC of .81.
    """
    lengths = [len(turn.text.split()) for turn in said if turn.speaker == speaker]
    asked = sum(turn.text.count("?") for turn in said if turn.speaker == speaker)
    mean = statistics.fmean(lengths) if lengths else 0.0
    spread = statistics.stdev(lengths) if len(lengths) > 1 else 0.0
    return {"turns": float(len(lengths)), "words": float(sum(lengths)), "words_per_turn": mean, "cv": spread / mean if mean else 0.0,
            "questions_per_turn": asked / len(lengths) if lengths else 0.0}
