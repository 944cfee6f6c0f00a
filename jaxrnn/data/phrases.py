"""Phrases: the built-in data set, English sentences from a small grammar of our own, labelled good or bad.

A judgement is an adjective or verb of known sign. What stands before it turns the sign over ("not", "never", "no
longer", "nobody thinks that ...", twice is none) or leaves it ("very", "still", "i think that ..."). Of two
judgements one decides, and its place tells which:

    A but B -> B        although A , B -> B        B although A -> B        at first A , in the end B -> B
    was A before but is B now -> B                 is B now but was A before -> B

Each word is as frequent under one label as under the other, so a bag of words guesses. A composition is the frame
with its modifiers and its judgement words, without subjects, degree words and times; compositions are dealt to the
splits, so every test sentence is a combination that training has never seen, made of words that it has.
"""

import hashlib
import re
from collections.abc import Callable

import numpy as np

from ..errors import ConfigurationError
from . import Splits

PEOPLE = ("i", "you", "we", "they", "he", "she")
THINGS = ("this", "it", "the food", "the service", "the film", "the room", "the music", "the trip")
FEELINGS = ({"good", "happy", "glad", "calm", "proud"}, {"bad", "sad", "angry", "tired", "upset"})
QUALITIES = ({"good", "great", "nice", "lovely", "fresh"}, {"bad", "awful", "poor", "dull", "nasty"})
VERBS = ({"like", "love"}, {"hate", "dislike"})
KEEPS = ("", "", "very", "really", "so", "still")
TURNS = ("not", "not", "not very", "not at all", "never", "no longer")
TIMES = ("", "", "", "today", "right now", "at the moment")
PAST_TIMES = ("", "", "", "earlier", "yesterday", "last week")
SAYS = ("i think", "everyone says", "it is true")
DENIES = ("i do not think", "nobody says", "it is not true")
SHORT = ((r"\b(is|was|are|were|do|did) not\b", r"\1n't"), (r"\b(i) am\b", r"\1'm"), (r"\b(it|he|she) is\b", r"\1's"))
PRESENT = {"i": "am", "he": "is", "she": "is"}
KINDS = ("single", "single", "denied", "denied", "denied", "pair", "contrast", "contrast", "although", "time", "order")
LABELS = ("bad", "good")
TRIES = 200  # sentences drawn per row wanted, before the grammar counts as exhausted


class Draw:
    """Choices from a fixed stream: the raw output of Philox, which no release of numpy may change."""

    def __init__(self, seed: int):
        self._stream = np.random.Philox(key=seed)

    def __call__(self, options):
        options = sorted(options) if isinstance(options, set) else options
        return options[int(self._stream.random_raw()) % len(options)]


def phrases(*, train_rows: int = 4000, valid_rows: int = 400, test_rows: int = 1000, seed: int = 0) -> Splits:
    """Sentences of the grammar, the same for the same settings.

    Half of each split is good. Raises ConfigurationError if a size is not an even number of at least 2, or is more
    than the grammar has.
    """
    wanted = {"train": train_rows, "valid": valid_rows, "test": test_rows}
    for split, many in wanted.items():
        if many < 2 or many % 2:
            raise ConfigurationError(f"dataset.{split}_rows={many!r}: expected an even number of at least 2")
    if not 0 <= seed < 2**63:
        raise ConfigurationError(f"dataset.seed={seed!r}: expected 0 or more")
    draw, seen = Draw(seed), set()
    found: dict[tuple[str, str], list[tuple[str, str]]] = {(split, label): [] for split in wanted for label in LABELS}
    missing = sum(wanted.values())
    for _ in range(TRIES * missing):
        composition, text, sign = sentence(draw)
        split, label = deal(composition, seed, wanted), LABELS[sign]
        rows = found[split, label]
        if text not in seen and len(rows) < wanted[split] // 2:
            seen.add(text)
            rows.append((text, label))
            missing -= 1
            if not missing:
                break
    for (split, label), rows in found.items():
        if len(rows) < wanted[split] // 2:
            raise ConfigurationError(
                f"dataset.{split}_rows={wanted[split]}: the grammar gave {len(rows)} {label} sentences, ask for fewer"
            )
    train, valid, test = (found[split, "bad"] + found[split, "good"] for split in wanted)
    return Splits(train, valid, test)


def deal(composition: tuple, seed: int, wanted: dict[str, int]) -> str:
    """The split of a composition: by a hash, so that every sentence with it goes the same way.

    The plain use of a word ("i am calm") is always for training: what is tested is how words combine.
    """
    if composition[:2] == ("single", ""):
        return "train"
    digest = hashlib.sha256(repr((seed, composition)).encode()).digest()
    position = int.from_bytes(digest[:6]) / 2**48 * sum(wanted.values())
    for split, rows in wanted.items():
        if position < rows:
            return split
        position -= rows
    return "test"


def sentence(draw: Draw) -> tuple[tuple, str, int]:
    """One sentence: its composition, its text and its sign (1 good, 0 bad)."""
    composition, text, sign = FRAMES[draw(KINDS)](draw)
    if draw((0, 0, 1)):
        for long, short in SHORT:
            text = re.sub(long, short, text)
    return composition, text + draw(("", "", " .")), sign


def judgement(draw: Draw, past: bool, sign: int | None = None, person: bool | None = None) -> tuple[tuple, str, int]:
    """A subject, a verb and an adjective: (modifier and word), text, sign; a wanted sign is drawn for."""
    person = draw((True, False)) if person is None else person
    sign = draw((0, 1)) if sign is None else sign
    turned = draw((0, 0, 1))
    subject = draw(PEOPLE if person else THINGS)
    modifier = draw(TURNS if turned else KEEPS)
    kind = sign ^ turned
    if person and not past and subject in ("i", "you", "we", "they") and draw((0, 1)):
        word = draw(VERBS[1 - kind])
        modifier = draw(("do not", "do not really", "never", "no longer") if turned else ("", "", "really", "still"))
        return (modifier, word), f"{subject} {modifier} {word} {draw(THINGS)}".replace("  ", " "), sign
    word = draw((FEELINGS if person else QUALITIES)[1 - kind])
    modifier = modifier if turned or not past else modifier.replace("still", "very")
    verb = (
        ("was" if subject in ("i", "he", "she") or not person else "were")
        if past
        else (PRESENT.get(subject, "are") if person else "is")
    )
    composed = modifier if turned else ""
    return (composed, word), f"{subject} {verb} {modifier} {word}".replace("  ", " "), sign


def single(draw: Draw) -> tuple[tuple, str, int]:
    """i am not happy today"""
    past = draw((False, True))
    composition, text, sign = judgement(draw, past)
    return ("single", *composition), f"{text} {draw(PAST_TIMES if past else TIMES)}".strip(), sign


def denied(draw: Draw) -> tuple[tuple, str, int]:
    """nobody says that the room is not nice"""
    turned = draw((0, 1))
    opening = draw(DENIES if turned else SAYS)
    composition, text, sign = judgement(draw, draw((False, True)))
    return ("denied", opening, *composition), f"{opening} that {text}", sign ^ turned


def pair(draw: Draw) -> tuple[tuple, str, int]:
    """this is good and not bad; he is not sad but happy"""
    sign, turned, person = draw((0, 1)), draw((0, 1)), draw((True, False))
    words = FEELINGS if person else QUALITIES
    subject = draw(PEOPLE if person else THINGS)
    verb = PRESENT.get(subject, "are") if person else "is"
    same, other = draw(words[1 - sign]), draw(words[sign])
    text = f"{subject} {verb} " + (f"{same} and not {other}" if turned else f"not {other} but {same}")
    return ("pair", turned, same, other), text, sign


def contrast(draw: Draw) -> tuple[tuple, str, int]:
    """the food was good but the service was awful"""
    past, sign = draw((False, True)), draw((0, 1))
    first, loses, _ = judgement(draw, past, 1 - sign)
    second, decides, _ = judgement(draw, past, sign)
    return ("contrast", *first, *second), f"{loses} {draw(('but', 'but', ', but'))} {decides}", sign


def although(draw: Draw) -> tuple[tuple, str, int]:
    """although the food was good , the service was awful"""
    past, sign, last = draw((False, True)), draw((0, 1)), draw((0, 1))
    first, loses, _ = judgement(draw, past, 1 - sign)
    second, decides, _ = judgement(draw, past, sign)
    text = f"although {loses} , {decides}" if last else f"{decides} although {loses}"
    return ("although", last, *first, *second), text, sign


def time(draw: Draw) -> tuple[tuple, str, int]:
    """it was bad before but is good now"""
    sign, last, person = draw((0, 1)), draw((0, 1)), draw((True, False))
    words = FEELINGS if person else QUALITIES
    subject = draw(("i", "he", "she") if person else THINGS)
    before, now = part(draw, words, 1 - sign), part(draw, words, sign)
    was, has = f"was {before[1]} before", f"{PRESENT.get(subject, 'is')} {now[1]} now"
    text = f"{subject} {was} but {has}" if last else f"{subject} {has} but {was}"
    return ("time", last, *before[0], *now[0]), text, sign


def order(draw: Draw) -> tuple[tuple, str, int]:
    """at first the trip was nice , in the end it was dull"""
    sign, last, person = draw((0, 1)), draw((0, 1)), draw((True, False))
    words = FEELINGS if person else QUALITIES
    subject = draw(("i", "he", "she") if person else THINGS)
    again = subject if person else "it"
    begin, end = part(draw, words, 1 - sign), part(draw, words, sign)
    text = (
        f"at first {subject} was {begin[1]} , in the end {again} was {end[1]}"
        if last
        else f"in the end {subject} was {end[1]} , at first {again} was {begin[1]}"
    )
    return ("order", last, *begin[0], *end[0]), text, sign


def part(draw: Draw, words: tuple[set, set], sign: int) -> tuple[tuple, str]:
    """A modifier and an adjective of the wanted sign: (modifier and word), text."""
    turned = draw((0, 0, 1))
    modifier, word = draw(("not", "not very") if turned else ("", "", "very")), draw(words[1 - (sign ^ turned)])
    return (modifier if turned else "", word), f"{modifier} {word}".strip()


FRAMES: dict[str, Callable[[Draw], tuple[tuple, str, int]]] = {
    "single": single,
    "denied": denied,
    "pair": pair,
    "contrast": contrast,
    "although": although,
    "time": time,
    "order": order,
}
