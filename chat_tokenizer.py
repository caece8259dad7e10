"""Any Hugging Face tokenizer with its chat template: a conversation -> prompt ids + response ids.

A chat model knows conversations in one layout only. Its **chat template**, a small Jinja program that comes with the tokenizer, writes messages
out as one text with control tokens between the turns. `ChatTokenizer` learns the layout by asking the template and knows no model family by
name. It takes care of what goes wrong when templates are simply called:

1. a reply ends in the one token that ends an assistant's turn, exactly once;
2. a control token that somebody typed is text: "<|im_end|>" in a question must not end the question;
3. a template that prints today's date would give other ids tomorrow: here the day is fixed;
4. prompt and reply are tokenized apart and joined as ids, so that both replies to a prompt start from the same ids, and are still the ids of
   the whole conversation.
"""
import functools
import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from runtime.errors import UserError
from tokenizer import BYTE_OF, CHAT_TEMPLATE, read_name, to_bytes

Message = dict[str, str]  # {"role": "system", "user" or "assistant", "content": text}

THE_DAY = datetime(2024, 7, 26)  # the one that Llama 3.1's template names when it is told none
TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
# Tokenizers without a template (GPT-2) get HH's layout, as in tokenizer.py, with a start token and an end.
HH_TEMPLATE = "{{ bos_token or eos_token }}" + CHAT_TEMPLATE + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"

# Three characters that Unicode keeps for a program's own use (in a text they become U+FFFD, as half surrogate pairs do) mark ...
OWN = "\ufdd0"    # a control token of the template's, in a text where somebody typed one as well
TYPED = "\ufdd1"  # a typed one: it stands before each of its characters, so that none is left to be taken for the template's
ENDED = "\ufdd2"  # the place where an assistant's words end
UNUSABLE = re.compile("[\ufdd0-\ufdd2\ud800-\udfff]")

SYSTEM, QUESTION, ANSWER = ({"role": role, "content": word} for role, word in  # asked once, to see what a template does
                            (("system", "Zyx7system"), ("user", "Zyx7question"), ("assistant", "Zyx7answer")))


class ChatTokenizer:
    """A fast Hugging Face tokenizer `hf` with its template; same `hash`, same ids. Raises UserError for a template that cannot be used.

    eot_id ends an assistant's turn; bos_id starts a prompt (None: this family starts without one); vocab_size is the largest id + 1;
    has_system: the template has a place for a system message (without one it joins the first user turn).
    """

    def __init__(self, hf: Any, name: str):
        self.hf, self.name, self.backend = hf, name, hf.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = hf.split_special_tokens = False  # True in our own folders, which have one control token
        self.vocab_size = max(hf.get_vocab().values()) + 1
        given = HH_TEMPLATE if hf.chat_template in (None, CHAT_TEMPLATE) else hf.get_chat_template()
        hf.chat_template = self.template = TODAY.sub(lambda call: repr(THE_DAY.strftime(call[2])), given)
        try:
            if "strftime_now(" in self.template:
                raise ValueError("it prints the date in a way that cannot be fixed")
            self._look_at_template()
        except ValueError as e:
            raise UserError(f"the chat template of {name} cannot be used: {e}.") from None

    def _look_at_template(self) -> None:
        """Render one question and its answer, and note what the template does with them. Raises ValueError when that cannot work."""
        prompt, whole = self._render([QUESTION]), self._render([QUESTION, ANSWER], ask=False)
        asked, answered = (text.rfind(m["content"]) + len(m["content"]) for text, m in ((prompt, QUESTION), (whole, ANSWER)))
        if QUESTION["content"] not in prompt or ANSWER["content"] not in whole:
            raise ValueError("it leaves out the question or the answer")
        try:
            with_system = self._render([SYSTEM, QUESTION])
        except ValueError:
            with_system = ""
        self.has_system = SYSTEM["content"] in with_system
        # Control tokens: what the tokenizer calls special, what else of its added tokens the template writes, and the end of a turn.
        added = {token.content: token.special for token in self.hf.added_tokens_decoder.values() if token.content.strip()}
        end = _any_of(added).search(whole, answered)
        end_token = end[0] if end else self.hf.eos_token
        if end_token is None:
            raise ValueError("it ends an assistant's turn with no token of its own, and there is no end-of-text token")
        control = [token for token, special in added.items() if special or token in prompt + with_system or token == end_token]
        self.control, self.eot_id = set(control), self.hf.convert_tokens_to_ids(end_token)
        self._control = _any_of(control)
        # `_tail`, the end of every prompt, and `_after`, space before the end token, frame a reply.
        self._prompt, self._tail, self._after = prompt, prompt[asked:], whole[answered:end.start()] if end else ""
        self._tail_ids = self._encode([self._tail])[0].ids
        self._ending = re.compile(rf"(?:{re.escape(self._after)}|\s*)(?={OWN}?{re.escape(end_token)})")
        # A family has a start token when its tokenizer puts one before a text. Then a prompt begins with it, and only once.
        ids, bos = self._encode([prompt])[0].ids, self.hf.bos_token_id
        once, twice = ids[:1] == [bos], ids[:2] == [bos, bos]
        if twice or not once and self.backend.encode("x").ids[:1] == [bos]:
            raise ValueError(f"it puts {'two' if twice else 'no'} {self.hf.bos_token} before a prompt, where one belongs")
        self.bos_id = bos if once else None

    @functools.cached_property
    def hash(self) -> str:
        """sha256 over everything that decides the ids: tokenizer.json, the template, start and end."""
        return hashlib.sha256(json.dumps([self.backend.to_str(), self.template, self.bos_id, self.eot_id]).encode()).hexdigest()

    # ---- texts ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _twin(self) -> tokenizers.Tokenizer:
        """The same tokenizer, except that each control token is called OWN + its name: then the bare name is text like any other.

        (Hugging Face's switch for this, split_special_tokens, works on a whole text: the template's tokens would become text too.)
        """
        content = json.loads(self.backend.to_str())
        model, name = content["model"], lambda token: OWN + token if token in self.control else token
        for token in content["added_tokens"]:
            token["content"] = name(token["content"])
        vocab = model["vocab"]  # {token: id}, or [[token, score], ...]
        model["vocab"] = {name(t): i for t, i in vocab.items()} if isinstance(vocab, dict) else [[name(t), score] for t, score in vocab]
        model |= {"unk_token": name(model["unk_token"])} if model.get("unk_token") else {}
        if "merges" in model:  # some vocabularies can glue "<s" and ">" together
            pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
            model["merges"] = [pair for pair in pairs if "".join(pair) not in self.control]
        return tokenizers.Tokenizer.from_str(json.dumps(content))

    def _written(self, text: str) -> str:
        """What somebody wrote, as it goes into a template: control tokens in it are marked."""
        return self._control.sub(lambda token: re.sub("", TYPED, token[0]), UNUSABLE.sub("\ufffd", text))

    def _settled(self, text: str) -> str:
        """A rendered text without the marks of typed control tokens; instead, where there were any, the template's are marked."""
        return self._control.sub(OWN + r"\g<0>", text).replace(TYPED, "") if TYPED in text else text

    def _encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Ids and offsets of rendered texts, on all cores. Offsets count the characters of `_settled(text)` without ENDED."""
        ordinary, typed = ([self._settled(t).replace(ENDED, "") for t in texts if (TYPED in t) == with_typed] for with_typed in (False, True))
        done = {False: iter(self.backend.encode_batch(ordinary, add_special_tokens=False)),
                True: iter(self._twin.encode_batch(typed, add_special_tokens=False) if typed else ())}
        return [next(done[TYPED in text]) for text in texts]

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text, without start and end; control tokens written in it are several ordinary ids."""
        return self._encode([self._written(text)])[0].ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, control tokens included."""
        return self.hf.decode([int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id. Vocabularies spell them with GPT-2's characters, or as "▁word" and "<0x0A>"; a gap has none."""
        token = self.hf.convert_ids_to_tokens(token_id) or ""
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
        if token_id in self.hf.added_tokens_decoder or byte is None and "ByteLevel" not in str(self.backend.decoder):
            return token.replace("▁", " ").encode()
        return bytes([int(byte[1], 16)]) if byte else to_bytes(token)

    # ---- conversations ----------------------------------------------------------------------------------------------

    def _render(self, messages: list[Message], ask: bool = True) -> str:
        """What the template makes of the messages; `ask` ends it where a reply begins. ValueError when the template refuses them."""
        try:
            return self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        except Exception as e:  # a template is a program from elsewhere and can fail in any way
            raise ValueError((str(e) or type(e).__name__).splitlines()[0].rstrip(". ")) from None

    def _marked(self, message: Message) -> Message:
        """A message with the marks of typed control tokens and of the end of an assistant's words."""
        text = self._written(message["content"])
        words = text.rstrip()  # templates trim: the mark goes before the space at the end
        return message | {"content": words + ENDED + text[len(words):] if message["role"] == "assistant" else text}

    def join_system(self, messages: list[Message]) -> list[Message]:
        """The messages as the template can take them: without a place for a system message, it opens the first user turn."""
        if self.has_system or [m["role"] for m in messages[:2]] != ["system", "user"]:
            return messages
        return [{"role": "user", "content": "\n\n".join(filter(None, (m["content"] for m in messages[:2])))}, *messages[2:]]

    def encode_messages(self, messages: list[Message]) -> tuple[list[int], np.ndarray]:
        """Ids of a prompt (messages that end with a user turn), those of `apply_chat_template(messages, add_generation_prompt=True)`, and the
        role of each (uint8): 1 for earlier assistant turns and the one token that ends each, else 0. ValueError when the template refuses it.
        """
        if isinstance(result := self.encode_conversations([messages])[0], ValueError):
            raise result
        return result

    def encode_conversations(self, conversations: Sequence[list[Message]]) -> list[tuple[list[int], np.ndarray] | ValueError]:
        """`encode_messages` for many conversations at once; one that the template refuses comes as a ValueError that says why."""
        rendered: list[str | ValueError] = []
        for messages in conversations:
            try:
                if not messages or messages[-1]["role"] != "user":
                    raise ValueError("a prompt ends with a user turn")
                rendered.append(self._render([self._marked(message) for message in self.join_system(messages)]))
            except ValueError as e:
                rendered.append(e)
        encodings = iter(self._encode([text for text in rendered if isinstance(text, str)]))
        return [self._with_roles(text, next(encodings), messages) if isinstance(text, str) else text
                for text, messages in zip(rendered, conversations)]

    def _with_roles(self, rendered: str, encoding: tokenizers.Encoding, messages: list[Message]) -> tuple[list[int], np.ndarray] | ValueError:
        """The ids and their roles: where each of the earlier replies stands in the rendered text, and the token behind it."""
        roles, end = np.zeros(len(encoding.ids), np.uint8), 0
        replies = [UNUSABLE.sub("\ufffd", m["content"]).rstrip() for m in messages if m["role"] == "assistant"]
        rendered = self._settled(rendered)
        pieces = rendered.split(ENDED)
        if len(pieces) != len(replies) + 1:
            return ValueError("the chat template leaves out an earlier reply")
        ends = [stop for _, stop in encoding.offsets]  # where each token ends; a token of spaces can have no width
        for piece, reply in zip(pieces, replies):
            end += len(piece)
            # Templates drop the beginning of a reply (spaces, a block of thinking): what they kept of it is its end, up to their own token.
            kept = os.path.commonprefix([piece[::-1], reply[::-1]]).rstrip()
            own = [token.end() for token in self._control.finditer(piece) if OWN not in rendered or piece[token.start() - 1] == OWN]
            start = end - min(len(kept), len(piece) - max(own, default=0))
            closed = self._ending.match("".join(pieces), end)  # else (HH's layout) the next marker's first token says that the turn is over
            roles[bisect_right(ends, start):bisect_right(ends, closed.end() if closed else end) + 1] = 1
        return encoding.ids, roles

    def encode_response(self, text: str) -> list[int]:
        """Ids of a reply, as the template places it behind a prompt (space around it is removed), then `eot_id`, which is nowhere else."""
        return self.encode_responses([text])[0]

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_response` for many replies at once."""
        framed = []
        for reply in (self._marked(ANSWER | {"content": text.strip()}) for text in texts):
            whole = self._render([QUESTION, reply], ask=False)
            # A template that opens a block of thinking in the prompt may not go on from there: then the words alone follow it.
            words = whole[len(self._prompt):] if whole.startswith(self._prompt) else reply["content"]
            # What stands before a reply can change its first token (a space, "▁"), so it is encoded behind the end of a prompt ...
            framed.append(self._tail + words.partition(ENDED)[0] + self._after)
        rows, n = [encoding.ids for encoding in self._encode(framed)], len(self._tail_ids)
        for i, row in enumerate(rows):
            if row[:n] != self._tail_ids:  # ... unless its first character is glued to that (":" and ")" to ":)")
                rows[i] = self._tail_ids + self._encode([framed[i][len(self._tail):]])[0].ids
        return [row[n:] + [self.eot_id] for row in rows]

    def save(self, folder: str | Path, block_size: int | None = None) -> None:
        """Write what `load_chat_tokenizer(folder)`, and AutoTokenizer, read again; block_size becomes Hugging Face's model_max_length."""
        self.hf.model_max_length = block_size or self.hf.model_max_length
        self.hf.save_pretrained(str(folder))
        file = Path(folder) / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8")) | {"name_or_path": self.name}
        file.write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the words, the longest first; nothing when there are none."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")


def load_chat_tokenizer(folder: str | Path, name: str = "") -> ChatTokenizer:
    """The tokenizer in a Hugging Face folder; `name` is what messages call it. Raises UserError when there is none that can be used."""
    from transformers import AutoTokenizer  # a second to import
    try:
        if not Path(folder).is_dir():
            raise ValueError("there is no such folder")
        hf = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        if getattr(hf, "backend_tokenizer", None) is None:
            raise ValueError("no tokenizer.json, and none can be made from what is there")
        name = name or read_name(Path(folder))
    except Exception as e:  # transformers has a dozen ways to say that files are missing or damaged
        raise UserError(f"the tokenizer in {folder} cannot be read: {(str(e) or type(e).__name__).splitlines()[0].rstrip('. ')}.") from None
    return ChatTokenizer(hf, name)
