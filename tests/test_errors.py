"""Text from outside, made harmless."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xattn.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Grad-CAM: λ ≥ 0, 猫.jpg", "Grad-CAM: λ ≥ 0, 猫.jpg"),
        ("  indented", "  indented"),
        ("a\n   b\r\nc", "a b c"),
        ("a\rb", "a\\x0db"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x9b31m\x00\x7f", "\\x9b31m\\x00\\x7f"),
        ("photo\u202egpj.exe", "photo\\u202egpj.exe"),
        ("a\u2028b\u2066c\U000e0041", "a\\u2028b\\u2066c\\U000e0041"),
        ("caf\udce9.jpg", "caf\\xe9.jpg"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_what_would_act_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_text_keeps_both_ends() -> None:
    shown = printable("start" + "x" * 1_000_000 + "\n" * 1_000_000 + "the reason", 100)
    assert len(shown) == 100
    assert shown.startswith("start")
    assert shown.endswith("the reason")


@given(st.text(st.characters(codec=None), max_size=400), st.integers(20, 300))
def test_always_one_bounded_harmless_line(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1
    hidden = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert hidden <= {"\u200c", "\u200d"}
    assert printable(shown, limit) == shown
    shown.encode("utf-8")
