"""The table itself: no case without a test."""

from pathlib import Path

from faultbench import CASES


def test_every_case_has_a_test():
    marked = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert len(CASES) == 46
    assert [case for case in CASES if f'"{case}"' not in marked] == []
