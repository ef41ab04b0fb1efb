"""Texts on which two ways to encode are compared: a page of many scripts and awkward places, and every character there is."""

import functools
import sys
import unicodedata

import numpy as np

PAGE = (
    "The quick brown fox doesn't jump; it'll stay, won't it? 'Tis 3.14159 or 1,234,567 -- they'Ve said \"no\" (twice)!\n",
    "def f(x):\n    if x  >  0:\n\t\treturn {'a': [1, 22, 333, 4444]}  # note\n\n\n    raise ValueError(f\"{x!r}\")\n\n",
    " leading,  two,   three,    four spaces \t\ttabs \r\n windows \r\n\r\n\n  \n trailing   ",
    "https://example.org/a/b?c=d&e=%20f#g user@host.net snake_case camelCase XMLHttpRequest v1.2.3-rc4 /* x */ a.\n/b !\n/c",
    "Caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m A\u030angstro\u0308m \ufb01ne \u017f's I\u0307stanbul \u212a's stra\u00dfe 1\u20442 \u2168 x\u00b2 \u0663\u0664\u0665",
    "\u0421\u044a\u0435\u0448\u044c \u0436\u0435 \u0435\u0449\u0451 \u044d\u0442\u0438\u0445 \u043c\u044f\u0433\u043a\u0438\u0445 \u0444\u0440\u0430\u043d\u0446\u0443\u0437\u0441\u043a\u0438\u0445 \u0431\u0443\u043b\u043e\u043a, \u0434\u0430 \u0432\u044b\u043f\u0435\u0439 \u0447\u0430\u044e.",
    "\u039e\u03b5\u03c3\u03ba\u03b5\u03c0\u03ac\u03b6\u03c9 \u03c4\u1f74\u03bd \u03c8\u03c5\u03c7\u03bf\u03c6\u03b8\u03cc\u03c1\u03b1 \u03b2\u03b4\u03b5\u03bb\u03c5\u03b3\u03bc\u03af\u03b1. \u0531\u0575\u0562 \u10d0\u10dc\u10d1\u10d0\u10dc\u10d8",
    "\u0635\u0650\u0641 \u062e\u064e\u0644\u0642\u064e \u062e\u064e\u0648\u062f\u064d \u0643\u064e\u0645\u0650\u062b\u0644\u0650 \u0661\u0662\u0663\u060c \u05d3\u05d2 \u05e1\u05e7\u05e8\u05df \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u06f1\u06f2 \u0710\u0712",
    "\u090b\u0937\u093f\u092f\u094b\u0902 \u0915\u094b \u0938\u0924\u093e\u0928\u0947 \u0935\u093e\u0932\u0947 \u0967\u0968\u0969 \u0986\u09ae\u09bf \u09ac\u09be\u0982\u09b2\u09be\u09af\u09bc \u0baf\u0bbe\u0bae\u0bb1\u0bbf\u0ba8\u0bcd\u0ba4 \u0c2e\u0c28 \u0d2e\u0d32\u0d2f\u0d3e\u0d33\u0d02",
    "\u0e40\u0e1b\u0e47\u0e19\u0e21\u0e19\u0e38\u0e29\u0e22\u0e4c\u0e2a\u0e38\u0e14\u0e1b\u0e23\u0e30\u0e40\u0e2a\u0e23\u0e34\u0e10 \u0ea5\u0eb2\u0ea7 \u1780\u1798\u17d2\u1796\u17bb\u1787\u17b6 \u1019\u103c\u1014\u103a\u1019\u102c \u0f56\u0f7c\u0f51\u0f0b \u12a0\u121b\u122d\u129b",
    "\u5929\u5730\u7384\u9ec4\uff0c\u5b87\u5b99\u6d2a\u8352\u3002\u3000\u3044\u308d\u306f\u306b\u307b\u3078\u3068\u30c9\u30b3\u30cb\u30ab \uff11\uff12\uff13\uff21\uff22 \ud0a4\uc2a4\uc758 \u1112\u1161\u11ab\uae00 \ua000\ua001 \u1820\u1821",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea\U0001f44d\U0001f3fd \u2764\ufe0f\u20e3 \U0001d54f\U0001d552 \U00010348\U0001f600\U0001f600  \u2026\u2014\u201cx\u201d\u00ab\u00bb\u2022",
    "a\u00a0b \u2003 c\u2028d\u2029e\u0085f\x0bg\x0ch\x1ci\x1fj\x00k\x7fl\u200bm\ufeffn\u180eo\u00adp \u202eq \ue000 \ufffd \ufdd0",
    "a\u0301\u0327\u0323 a\u0323\u0301 q\u0307\u0323 \u0958 \u2126 \u1100\u1161\u11a8 \u0344 \u0f73 \u1e9b\u0323 \u0041\u0300\u0301\u0302\u0303 \u0300x \n\u0301y",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 0000000000000000 ................ ---------------- \n\n\n\n\n\n\n\n ======== abababababab",
)
"""Every kind of place that a pattern or a normaliser may take in a way of its own."""

_UNIFORM = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xAC00, 0xD7A4), range(0x20000, 0x31350))
"""Letters of one kind by the thousand: some of them stand for all."""


def pages() -> list[str]:
    """The lines of the page alone, in other orders, and in one text."""
    shuffled = [PAGE[at] for at in np.random.default_rng(0).permutation(len(PAGE) * 8) % len(PAGE)]
    return [*PAGE, "".join(PAGE), " ".join(PAGE), *(before + after for before, after in zip(shuffled, shuffled[1:]))]


def characters() -> list[str]:
    """Every character that this Python's Unicode assigns, but for most of those that are of one kind."""
    wanted = ~np.isin(_categories(), ("Cn", "Cs", "Co"))
    for block in _UNIFORM:
        inside = wanted[block.start : block.stop - 2]
        inside[np.arange(inside.size) % 97 > 0] = False
    return [*map(chr, np.flatnonzero(wanted))]


def unassigned() -> np.ndarray:
    """Per code point, whether this Python's Unicode leaves it unassigned: other libraries may know more, bool [0x110000]."""
    return _categories() == "Cn"


def surrounded(character: str) -> str:
    """A character behind and before letters, digits, marks, spaces and itself."""
    c = character
    return f"a{c}b {c}\n1{c}{c}'s  {c}2e{c}\u0301 \u0327\u0301{c}\n"


@functools.cache
def _categories() -> np.ndarray:
    return np.array([*map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))])
