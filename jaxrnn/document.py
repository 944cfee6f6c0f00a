"""One page of HTML that needs nothing else: its style is inside, there is no script, every text is escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light; --ink: #2a2a2a; --soft: #6b6b6b; --line: #e4e4e4; }
body { font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink); background: #fafafa;
       margin: 0; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem; }
p.note, figcaption { color: var(--soft); margin: 0 0 .8rem; font-size: .92rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem; margin: 1rem 0;
          overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .65rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } td.word, th.word { text-align: left; font-weight: 600; }
tr:last-child td { border-bottom: 0; } tr.sum td { border-top: 2px solid #bbb; font-weight: 600; }
.unknown { color: #a33; } .bar { display: flex; align-items: center; gap: .7rem; margin: .15rem 0; font-size: .95rem; }
.bar b { min-width: 7rem; font-weight: 600; } .bar i { display: block; height: .9rem; border-radius: 3px; }
.words span { display: inline-block; padding: .12rem .45rem; margin: .12rem; border-radius: 5px; }
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; color: #fff; font-weight: 600; }
code { background: #f0f0f0; padding: .1rem .35rem; border-radius: 4px; font-size: .88rem; }
pre { font-size: .82rem; line-height: 1.45; margin: 0; } svg { display: block; max-width: 100%; height: auto; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #555; }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page around its parts, which are HTML already; the title is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def safe(text: Any) -> str:
    """Escaped, with a mark for what cannot be printed."""
    return escape("".join(c if c.isprintable() or c == " " else "\ufffd" for c in str(text)))
