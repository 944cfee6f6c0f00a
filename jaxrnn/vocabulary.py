"""The vocabulary: which token has which number, and the file that keeps it, checked as a stranger's."""

import json
from dataclasses import dataclass
from functools import cached_property

from .errors import ArtefactError, DataError

PADDING, UNKNOWN, END = "<padding>", "<unknown>", "<end>"
LARGEST = 1_000_000  # entries: bounds the memory that a stranger's vocabulary.json can ask for
LARGEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Vocabulary:
    """Which token has which number; `tokens[0]` is the padding, `tokens[1]` stands for every unknown token."""

    tokens: tuple[str, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        """token -> id"""
        return {token: number for number, token in enumerate(self.tokens)}

    @property
    def end(self) -> int | None:
        """The id of the end-of-text token, None where there is none."""
        return 2 if self.tokens[2:3] == (END,) else None

    def __len__(self) -> int:
        return len(self.tokens)

    def to_json(self) -> str:
        """One object, token -> id, one to a line. Raises DataError where `from_json` would refuse it for its size."""
        text = json.dumps(self.ids, indent=0) + "\n"
        if len(text) > LARGEST_BYTES:
            raise DataError(
                f"the vocabulary would be {len(text):,} bytes, expected at most {LARGEST_BYTES:,}: "
                "set tokenizer.size or tokenizer.min_count"
            )
        return text

    @classmethod
    def from_json(cls, text: str | bytearray | memoryview) -> "Vocabulary":
        """The vocabulary in a vocabulary.json (str or bytes); checked as a stranger's, raises ArtefactError."""
        if len(text) > LARGEST_BYTES:
            raise ArtefactError(f"vocabulary: {len(text):,} bytes, expected at most {LARGEST_BYTES:,}")
        try:
            text = text if isinstance(text, str) else str(text, "utf-8")
            if text.count('":') > 2 * LARGEST:
                raise ArtefactError(f"vocabulary: expected at most {LARGEST:,} tokens, found more")
            pairs = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise ArtefactError(f"vocabulary: expected a JSON object token -> id: {error}") from None
        if not isinstance(pairs, list) or not text.lstrip().startswith("{"):
            raise ArtefactError("vocabulary: expected a JSON object token -> id")
        if not 2 <= len(pairs) <= LARGEST:
            raise ArtefactError(f"vocabulary: {len(pairs):,} tokens, expected 2 to {LARGEST:,}")
        tokens: list[str | None] = [None] * len(pairs)
        for token, number in pairs:
            if type(number) is not int or not 0 <= number < len(pairs):
                raise ArtefactError(
                    f"vocabulary: id {number!r:.40} of token {token!r:.40}, expected 0 to {len(pairs) - 1}"
                )
            if tokens[number] is not None:
                raise ArtefactError(
                    f"vocabulary: id {number} stands twice, for {tokens[number]!r:.40} and {token!r:.40}"
                )
            if "\0" in token:
                raise ArtefactError(f"vocabulary: token {token!r:.40} of id {number} holds a NUL character")
            tokens[number] = token
        if tokens[:2] != [PADDING, UNKNOWN]:
            raise ArtefactError(
                f"vocabulary: expected {PADDING!r} as id 0 and {UNKNOWN!r} as id 1, found {tokens[:2]!r:.80}"
            )
        if len(set(tokens)) < len(tokens):
            raise ArtefactError("vocabulary: a token stands twice")
        return cls(tuple(token for token in tokens if token is not None))  # none is: every id is taken
