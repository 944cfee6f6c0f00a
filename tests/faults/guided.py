"""The readers of test_fuzz.py under atheris, which follows what a mutation reaches in the code, from the kept corpus.

    pip install atheris                                            Python 3.11 to 3.13, Linux
    python -m tests.faults.guided rows.csv -runs=100000            a reader and libFuzzer's options

It ends at the first file that is neither used nor refused by type, and leaves that file here as crash-*.
"""

import sys
import tempfile
from pathlib import Path


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["jaxrnn"]):
        from jaxrnn.errors import JaxrnnError
        from tests.faults.test_fuzz import CORPUS, READERS

    name, *options = sys.argv[1:]
    read, refusal = READERS[name]
    with tempfile.TemporaryDirectory() as folder:
        path, seeds = Path(folder, name), Path(folder, "seeds")
        seeds.mkdir()
        for good in (CORPUS / name, *CORPUS.glob(f"{name}.*.kept")):
            (seeds / good.name).write_bytes(good.read_bytes())

        def one(content: bytes) -> None:
            path.write_bytes(content)
            try:
                read(path)
            except JaxrnnError as error:
                assert type(error) is refusal and len(str(error)) < 3000

        atheris.Setup([sys.argv[0], *options, str(seeds)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
