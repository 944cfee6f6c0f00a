"""python -m jaxrnn.evaluate RUN [--split S | --file F] [--detail] [--behaviour] [--json]: a run, measured again.

The data set is read again as the run recorded it; if it is not what the run was trained on, that is said, not measured.
"""

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrnn import artefact, command, devices, orders, predict, runs
from jaxrnn.data import Splits, files
from jaxrnn.errors import ArtefactError, ConfigurationError, DataError, many, unknown
from jaxrnn.steptable import padded, printable, width
from jaxrnn.types import Corpus

ROWS = 128  # of a batch
WIDEST = 12  # classes of a confusion matrix that is printed
PAIRS = 10  # printed in its place, of classes that were confused


class Opened(NamedTuple):
    """A trained run and its data set, read again."""

    folder: Path
    trained: artefact.Loaded
    rows: Splits  # texts and labels
    corpus: Corpus
    device: Any
    answered: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # rows -> their logits [R, C] and numbers [R]


class Other(NamedTuple):
    """Another file of labelled texts to measure on; its columns are by default those of the run's own files."""

    file: str
    text: str | None = None
    label: str | None = None


def numbered(other: Other, trained: artefact.Loaded) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, offset and target of a file's rows as `text.encode` numbers those of a run; DataError for new labels."""
    from jaxrnn import text

    own_text, own_label, limits = artefact.reading(trained.record["dataset"])
    columns = own_text if other.text is None else other.text, own_label if other.label is None else other.label
    number, target = {label: place for place, label in enumerate(trained.labels)}, array("i")

    def texts() -> Iterator[str]:
        for row, label in files.table(Path(other.file), *columns, limits):
            if label not in number:
                raise DataError(f"{other.file}: {unknown('label', label[:80], trained.labels)}")
            target.append(number[label])
            yield row

    limit = trained.record["max_length"]
    tokens, offset, _ = text.encode_texts(texts(), trained.tokenizer, trained.vocabulary, limit, (1,))
    if not target:
        raise DataError(f"{other.file}: holds no rows, expected at least one")
    return tokens, offset, np.array(target, np.int32)


def joined(corpus: Corpus, tokens: np.ndarray, offset: np.ndarray, target: np.ndarray) -> Corpus:
    """The corpus and more rows, which are now those to test on."""
    if len(corpus.tokens) + len(tokens) >= 1 << 31:
        raise DataError("more than 2,147,483,647 tokens with those of the run's own rows: expected a smaller file")
    return corpus._replace(
        tokens=np.concatenate([corpus.tokens, tokens]),
        offset=np.concatenate([corpus.offset, corpus.offset[-1] + offset[1:]]),
        target=np.concatenate([corpus.target, target]),
        test=np.arange(len(corpus.target), len(corpus.target) + len(target), dtype=np.int32),
    )


def opened(run: str, device: str = "auto", other: Other | None = None) -> Opened:
    """The network and the rows of a run, `other` in place of its test rows.

    ArtefactError if the data set is not what it was trained on.
    """
    devices.set_flags()
    folder = runs.find(run)
    trained = artefact.load(folder)
    from jaxrnn import text

    more = other and numbered(other, trained)
    try:
        rows = artefact.again(trained.record["dataset"])
        encoded = text.encode(rows, trained.tokenizer, max_length=trained.record["max_length"])
    except (ConfigurationError, TypeError, ValueError, OverflowError) as error:  # settings of the record that are none
        raise ArtefactError(f"{folder}: the recorded data set cannot be read again: {error}") from error
    if encoded.vocabulary.tokens != trained.vocabulary.tokens or encoded.labels != trained.labels:
        raise ArtefactError(
            f"{folder}: trained on {len(trained.vocabulary):,} tokens and labels {trained.labels[:10]}, the data now "
            f"give {len(encoded.vocabulary):,} and {encoded.labels[:10]}: its files have changed since"
        )
    import jax

    from jaxrnn import programs

    (place,) = devices.choose(device)
    devices.open_cache(lambda line: None)
    corpus = joined(encoded.corpus, *more) if more else encoded.corpus
    with jax.default_device(place):
        data = programs.Data(corpus.tokens, corpus.offset, corpus.target)
        answers = jax.jit(programs.make_answers(trained.model, int(corpus.length.max())))

    def answered(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = orders.plain(wanted, corpus.length, ROWS)
        with jax.default_device(place):
            _, logits = answers(trained.params, data, order, np.int32(len(order)))
        return np.asarray(logits)[order >= 0], order[order >= 0]

    return Opened(folder, trained, rows, corpus, place, answered)


def evaluate(
    run: str,
    split: str = "test",
    device: str = "auto",
    *,
    detail: bool = False,
    behave: bool = False,
    other: Other | None = None,
) -> dict[str, Any]:
    """The object of `--json`, on `other` if there is one.

    With detail, the temperature is the one that suits the validation split.
    """
    import jax

    folder, trained, _, corpus, place, answered = opened(run, device, other)
    from jaxrnn import baselines, behaviour, metrics

    good = behaviour.positive(trained.labels) if behave else 0
    logits, rows = answered(getattr(corpus, split))
    target = corpus.target[rows]
    found = {
        "run": str(folder),
        "split": other.file if other else split,
        **metrics.measure(logits, target),
        "labels": trained.labels,
        "baselines": {
            "majority": baselines.majority(corpus, split),
            "bag_of_words": baselines.bag_of_words(corpus, len(trained.vocabulary), split),
        },
    }
    if detail:
        valid, valid_rows = answered(corpus.valid)
        temperature = metrics.temperature(valid, corpus.target[valid_rows])
        found |= {
            "f1_macro_bootstrap95": list(metrics.bootstrap_ci95(logits, target, metrics.f1_macro)),
            "temperature": temperature,
            "ece_at_temperature": metrics.ece(logits / temperature, target),
            "accuracy_by_length": metrics.accuracy_by_length(logits, target, corpus.length[rows]),
        }
    if behave:
        answer = predict.predictor(trained)
        with jax.default_device(place):
            found["behaviour"] = behaviour.measured(
                lambda texts: answer(texts)[0].argmax(axis=1) == good,
                behaviour.suite(int(corpus.length[corpus.train].max())),
            )
    return found


def table(found: dict[str, Any]) -> str:
    """The same for people, with the confusion matrix, whose rows are the true labels; of many classes `by_class`."""
    low, high = found["accuracy_ci95"]
    lines = [
        f"{found['run']}, {found['split']}, {many(found['rows'], 'row')}",
        f"  accuracy           {found['accuracy']:.4f}   95 % interval {low:.4f} - {high:.4f}",
        f"  bag of words       {found['baselines']['bag_of_words']['accuracy']:.4f}",
        f"  majority           {found['baselines']['majority']['accuracy']:.4f}",
        f"  loss               {found['loss']:.4f} nats",
        f"  F1, macro          {found['f1_macro']:.4f}",
        f"  calibration error  {found['ece']:.4f}",
    ]
    if "temperature" in found:
        low, high = found["f1_macro_bootstrap95"]
        lines[-2] += f"   95 % interval {low:.4f} - {high:.4f}, bootstrap"
        cooled = f"{found['ece_at_temperature']:.4f} at temperature {found['temperature']:.2f}"
        lines[-1] += f"   {cooled}, fitted to validation"
        lines += ["", "  accuracy by length of the text"]
        lines += [
            f"  {_tokens(*part['tokens']):<19}{part['accuracy']:.4f}   {many(part['rows'], 'row')}"
            for part in found["accuracy_by_length"]
        ]
    labels = [printable(label) for label in found["labels"]]
    if len(labels) > WIDEST:
        lines += by_class(labels, np.array(found["confusion"]))
    else:
        wide = max(8, *(len(label) + 2 for label in labels))
        lines.append(f"\n  {'true / answered':<{wide + 8}}" + "".join(f"{label:>{wide}}" for label in labels))
        for label, counts in zip(labels, found["confusion"], strict=True):
            lines.append(f"  {label:<{wide + 8}}" + "".join(f"{count:>{wide},}" for count in counts))
    if "behaviour" in found:
        from jaxrnn import behaviour

        lines += ["", behaviour.table(found["behaviour"])]
    return "\n".join(lines)


def by_class(labels: Sequence[str], confusion: np.ndarray) -> list[str]:
    """Lines: precision, recall and F1 of every class, the one of most rows first, and the pairs most often confused."""
    rows, answered, right = confusion.sum(axis=1), confusion.sum(axis=0), np.diag(confusion)
    wide = max(map(width, labels))

    def share(part: int, whole: int) -> str:
        return f"{part / whole:>11.4f}" if whole else f"{'-':>11}"

    lines = ["", f"  {padded('true', wide, right=False)}{'rows':>9}{'precision':>11}{'recall':>11}{'F1':>11}"]
    for n in np.argsort(-rows, kind="stable"):
        shares = share(right[n], answered[n]) + share(right[n], rows[n]) + share(2 * right[n], rows[n] + answered[n])
        lines.append(f"  {padded(labels[n], wide, right=False)}{rows[n]:>9,}{shares}")
    wrong = (confusion - np.diag(right)).ravel()
    most = [int(place) for place in np.argsort(-wrong, kind="stable")[:PAIRS] if wrong[place]]
    lines += ["", f"  {padded('true', wide, right=False)}{'rows':>9}  answered"] if most else []
    for true, other in (divmod(place, len(labels)) for place in most):
        lines.append(f"  {padded(labels[true], wide, right=False)}{confusion[true, other]:>9,}  {labels[other]}")
    return lines


def _tokens(low: int, high: int) -> str:
    return f"{low} to {high} tokens" if low < high else many(low, "token")


def main(arguments: Sequence[str]) -> int:
    """The command: -> exit code."""
    parser = command.Parser(prog="jaxrnn-evaluate", description="Measure a trained run.")
    parser.add_argument("run", metavar="RUN", help="a run folder, a job folder of a sweep, or latest")
    parser.add_argument("--split", choices=("test", "valid", "train"), help="default: test")
    parser.add_argument("--file", metavar="F", help="a .csv, .tsv or .jsonl of labelled texts in place of a split")
    parser.add_argument("--text", metavar="COLUMN", help="of F; default: that of the run's own files, or text")
    parser.add_argument("--label", metavar="COLUMN", help="of F; default: that of the run's own files, or label")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="default: auto")
    parser.add_argument("--detail", action="store_true", help="also temperature, bootstrap, accuracy by length")
    parser.add_argument("--behaviour", action="store_true", help="also negation, names, unknown words, long texts")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    given = parser.parse_args(arguments)
    if given.file is None and (given.text, given.label) != (None, None):
        raise ConfigurationError("--text and --label name columns of a --file: expected one")
    if given.file is not None and given.split is not None:
        raise ConfigurationError("expected --split or --file, found both")
    other = None if given.file is None else Other(given.file, given.text, given.label)
    split, behave = given.split or "test", given.behaviour
    found = evaluate(given.run, split, given.device, detail=given.detail, behave=behave, other=other)
    print(json.dumps(found, ensure_ascii=False) if given.json else table(found))
    return 0


def entry() -> None:
    command.run("evaluate", main)


if __name__ == "__main__":
    entry()
