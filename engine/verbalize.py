# ruff: noqa: RUF001 (signs)
"""Numbers, dates, money, times, units, abbreviations and addresses to plain words.

Works on ASCII text whose runs of digits and letters the caller has bounded (`MAX_DIGITS`), so that
every pattern here is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_DIGITS = 15  # longer numbers are read digit by digit

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = (
    (10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"),
    (100, "hundred"),
)  # fmt: skip
ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth",
    "nine": "ninth", "twelve": "twelfth",
}  # fmt: skip
MONTHS = (
    "January February March April May June July August September October November December"
).split()
MONTH_NAMES = {name[:3].lower(): name for name in MONTHS} | {"sept": "September"}
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"), "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"), "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
}  # fmt: skip
MULTIPLES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion",
             "tn": "trillion"}  # fmt: skip
UNITS = {
    "kg": "kilogram", "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "m": "meter",
    "mg": "milligram", "g": "gram", "lb": "pound", "lbs": "pound", "oz": "ounce", "mi": "mile",
    "ms": "millisecond", "gb": "gigabyte", "mb": "megabyte", "kb": "kilobyte", "tb": "terabyte",
    "ml": "milliliter", "l": "liter", "min": "minute", "hrs": "hour", "hr": "hour", "sec": "second",
    "kw": "kilowatt", "yd": "yard",
}  # fmt: skip
FIXED_UNITS = {
    "khz": "kilohertz", "mhz": "megahertz", "ghz": "gigahertz", "hz": "hertz", "ft": "feet",
    "mph": "miles per hour", "km/h": "kilometers per hour", "kph": "kilometers per hour",
    "kbps": "kilobits per second", "mbps": "megabits per second", "db": "decibels",
    "°c": "degrees Celsius", "°f": "degrees Fahrenheit", "kwh": "kilowatt hours",
    "m/s": "meters per second", "fps": "frames per second",
}  # fmt: skip
# Abbreviations that end in a full stop; matched without regard to case.
ABBREVIATIONS = {
    "mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "drs": "doctors",
    "prof": "professor", "jr": "junior", "sr": "senior", "vs": "versus", "capt": "captain",
    "gen": "general", "col": "colonel", "lt": "lieutenant", "sgt": "sergeant", "rev": "reverend",
    "hon": "honorable", "gov": "governor", "sen": "senator", "rep": "representative",
    "pres": "president", "inc": "incorporated", "ltd": "limited", "co": "company",
    "corp": "corporation", "dept": "department", "approx": "approximately", "ave": "avenue",
    "blvd": "boulevard", "rd": "road", "mt": "mount", "ft": "fort", "messrs": "messieurs",
    "etc": "et cetera", "est": "established", "e.g": "for example", "i.e": "that is",
    "a.m": "AM", "p.m": "PM", "al": "al", "cf": "compare", "ca": "circa", "assn": "association",
}  # fmt: skip
# Ordinary words too in small letters: "one more rep."
TITLES = frozenset("gen col rep hon gov sen pres rev est mt ft co ave ca capt".split())
NUMBERED = {"no": "number", "fig": "figure", "vol": "volume", "p": "page", "pp": "pages",
            "ch": "chapter", "sec": "section", "art": "article"}  # fmt: skip
ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10}
SIGNS = {"&": "and", "@": "at", "+": "plus", "=": "equals", "×": "times", "÷": "divided by",
         "±": "plus or minus", "°": "degrees", "§": "section", "<": "less than",
         ">": "greater than"}  # fmt: skip


def cardinal(number: int) -> str:
    """Words of 0 <= number < 10**15, American style: 'two hundred thirty four'."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")
    for scale, name in SCALES:
        if number >= scale:
            rest = number % scale
            return f"{cardinal(number // scale)} {name}" + (f" {cardinal(rest)}" if rest else "")
    raise AssertionError(number)


def ordinal(number: int) -> str:
    """'twenty first' for 21."""
    head, _, last = cardinal(number).rpartition(" ")
    last = ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return f"{head} {last}".strip()


def year(number: int) -> str:
    """'nineteen oh five' for 1905, for the years 1100 to 2099."""
    high, low = divmod(number, 100)
    if 2000 <= number < 2010 or (low == 0 and high % 10 == 0):
        return cardinal(number)
    if low == 0:
        return f"{cardinal(high)} hundred"
    return f"{cardinal(high)} {'oh ' if low < 10 else ''}{cardinal(low)}"


def digits(text: str) -> str:
    """'five five five' for '555'; other characters are skipped."""
    return " ".join(ONES[int(d)] for d in text if d in "0123456789")


def _telephone(match: re.Match[str]) -> str:
    groups = re.findall(r"\d+", match.group(0))
    return f" {', '.join(map(digits, groups))} "


def number(text: str, years: bool = False) -> str:
    """Words of '1,234.50', '007' or, where years is true, '1999' as a year."""
    whole, point, fraction = text.replace(",", "").partition(".")
    if len(whole) > MAX_DIGITS or (len(whole) > 1 and whole.startswith("0")):
        words = digits(whole)
    elif years and not point and "," not in text and len(whole) == 4 and 1100 <= int(whole) < 2100:
        return year(int(whole))
    else:
        words = cardinal(int(whole)) if whole else ""
    return f"{words} point {digits(fraction)}".strip() if fraction else words


def _plural(word: str) -> str:
    return word[:-1] + "ies" if word.endswith("y") else word + "s"


def _money(match: re.Match[str]) -> str:
    sign, amount, multiple = match.groups()
    one, many, small, smalls = CURRENCIES[sign]
    if multiple:
        name = multiple.strip()
        return f" {number(amount)} {MULTIPLES.get(name.lower(), name.lower())} {many} "
    whole, _, fraction = amount.replace(",", "").partition(".")
    if len(fraction) != 2:
        return f" {number(amount)} {one if amount == '1' else many} "
    cents = int(fraction)
    parts = []
    if int(whole or "0") or not cents:
        parts.append(f"{number(whole or '0')} {one if whole == '1' else many}")
    if cents:
        parts.append(f"{cardinal(cents)} {small if cents == 1 else smalls}")
    return f" {' and '.join(parts)} "


def _clock(match: re.Match[str]) -> str:
    hours, minutes, half = int(match.group(1)), match.group(2), match.group(3)
    if hours > 24 or (minutes and int(minutes) > 59) or not (minutes or half):
        return match.group(0)
    words = cardinal(hours)
    if minutes and int(minutes):
        words += f" {'oh ' if minutes[0] == '0' else ''}{cardinal(int(minutes))}"
    elif minutes and not half:
        words += " hundred" if hours > 12 else " o'clock"
    return f" {words} {half[0].upper() + 'M' if half else ''} "


def _numeric_date(match: re.Match[str]) -> str:
    month, day, of_year = (int(part) for part in match.groups())
    return _date(month, day, of_year) or match.group(0)


def _iso_date(match: re.Match[str]) -> str:
    of_year, month, day = (int(part) for part in match.groups())
    return _date(month, day, of_year) or match.group(0)


def _date(month: int, day: int, of_year: int) -> str:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return ""
    if of_year < 100:
        of_year += 2000 if of_year < 50 else 1900
    return f" {MONTHS[month - 1]} {ordinal(day)}, {number(str(of_year), years=True)} "


def _month_day(match: re.Match[str]) -> str:
    name = MONTH_NAMES.get(match.group(1).lower()[:4], MONTH_NAMES.get(match.group(1).lower()[:3]))
    day = int(match.group(2))
    return f"{name} {ordinal(day)}" if name and 1 <= day <= 31 else match.group(0)


def _fraction(match: re.Match[str]) -> str:
    whole, top, bottom = match.group(1), int(match.group(2)), int(match.group(3))
    if not (0 < top < 100 and 2 <= bottom <= 20):
        return f" {match.group(1) or ''} {cardinal(top)} over {cardinal(bottom)} "
    part = {2: "half", 4: "quarter"}.get(bottom) or ordinal(bottom)
    if top > 1:
        part = "halves" if bottom == 2 else part + "s"
    words = f"{cardinal(top)} {part}"
    return f" {number(whole.strip())} and {words} " if whole else f" {words} "


def _unit(match: re.Match[str]) -> str:
    amount, unit = match.group(1), match.group(2)
    if unit.lower() in FIXED_UNITS:
        return f"{amount} {FIXED_UNITS[unit.lower()]}"
    if unit.isupper() and len(unit) == 1:  # 5M and 4K are not meters
        return match.group(0)
    name = UNITS[unit.lower()]
    return f"{amount} {name if amount == '1' else _plural(name)}"


def _decade(match: re.Match[str]) -> str:
    value = int(match.group(1))
    words = year(value) if value >= 1100 else cardinal(value)
    return _plural(words)


def _address(match: re.Match[str]) -> str:
    text = re.sub(r"^[a-zA-Z]+://", "", match.group(0)).removeprefix("www.")
    tail = text[len(text.rstrip(".,!?;:)'\"")) :]
    text = text[: len(text) - len(tail)]
    for sign, word in ((".", "dot"), ("/", "slash"), ("@", "at"), ("-", "dash"), (":", "colon")):
        text = text.rstrip("/").replace(sign, f" {word} ")
    return " " + re.sub(r"[^A-Za-z0-9']", " ", text) + tail


def _roman(match: re.Match[str]) -> str:
    if not match.group(0):  # of "IIX" the pattern takes nothing
        return ""
    values = [ROMAN_DIGITS[letter] for letter in match.group(0)]
    return cardinal(
        sum(-v if v < next_v else v for v, next_v in zip(values, [*values[1:], 0], strict=True))
    )


def is_abbreviation(word: str) -> bool:
    """True for a word of ABBREVIATIONS, without its full stop; titles need a capital."""
    lower = word.lower()
    return lower in ABBREVIATIONS and (lower not in TITLES or word[0].isupper())


def _abbreviation(match: re.Match[str]) -> str:
    word = match.group(1)
    return ABBREVIATIONS[word.lower()] if is_abbreviation(word) else match.group(0)


def _saint_or_street(match: re.Match[str]) -> str:
    following = match.string[match.end() : match.end() + 2].lstrip()
    return "Saint" if following[:1].isupper() else "Street"


_TOP_DOMAINS = "com|org|net|edu|gov|io|co|uk|dev|info|ai|de|fr|eu"
_AMOUNT = r"(?:\d{1,3}(?:,\d{3}){1,5}(?!\d)|\d{1,15})(?:\.\d{1,15})?"
_MONTH = "|".join([*MONTHS, r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.?"])
_WORD_UNITS = "|".join(sorted(map(re.escape, [*UNITS, *FIXED_UNITS]), key=len, reverse=True))

_RULES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\b(?:https?|ftp)://\S{1,200}|\bwww\.\S{1,200}"), _address),
    (re.compile(r"(?<![\w.])[\w.+-]{1,60}@[\w-]{1,60}(?:\.[\w-]{1,30}){1,4}"), _address),
    (re.compile(rf"(?<![\w.-])[A-Za-z0-9-]{{2,40}}(?:\.[A-Za-z0-9-]{{2,30}}){{0,3}}"
                rf"\.(?:{_TOP_DOMAINS})\b(?:/\S{{0,100}})?"), _address),
    (re.compile(r"\b(?:[A-Za-z]\.){2,8}(?![A-Za-z])"),
     lambda m: m.group(0) if m.group(0)[:-1].lower() in ABBREVIATIONS
     else m.group(0).replace(".", "").upper()),
    (re.compile(r"\b([A-Z]{1,3})&([A-Z]{1,3})\b"),
     lambda m: f"{' '.join(m.group(1))} and {' '.join(m.group(2))}"),
    (re.compile(r"([$£€¥₹])(\d{1,9})\s?-\s?[$£€¥₹]?(?=\d)"), r"\2 to \1"),
    (re.compile(rf"([$£€¥₹])\s?({_AMOUNT})(\s?(?:thousand|million|billion|trillion)\b"
                rf"|\s?(?:[kKmMbB]|[mbt]n)\b)?"), _money),
    (re.compile(rf"({_AMOUNT})\s?%"), r"\1 percent "),
    (re.compile(r"(?<![\w/.-])(\d{4})-(\d{1,2})-(\d{1,2})(?![\w/-])"), _iso_date),
    (re.compile(r"(?<![\w/.-])(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})(?![\w/-])"), _numeric_date),
    (re.compile(rf"\b({_MONTH})\s(\d{{1,2}})(?:st|nd|rd|th)?\b(?![:.]?\d)"), _month_day),
    (re.compile(r"\b([A-Z][a-z]{2,3})\.\s(?=(?:\d{4})\b)"),
     lambda m: f"{MONTH_NAMES.get(m.group(1).lower(), m.group(1))} "),
    (re.compile(r"(?<![\w.])\+?(?:\d{1,3}[ -])?\(?\d{3}\)?[ -]\d{3}[ -]\d{4}\b"),
     _telephone),
    (re.compile(r"(?<=\d[AaPp][Mm])-(?=\d)"), " to "),
    (re.compile(r"(?<=\d)\s?x\s?(?=\d)"), " by "),
    (re.compile(r"\b(9)/(11)\b|\b(24)/(7)\b"),
     lambda m: " ".join(cardinal(int(part)) for part in m.groups() if part)),
    (re.compile(r"(?<![\w:])(\d{1,2}):(\d{2})(?::\d{2})?\s?([AaPp]\.?[Mm]\b\.?)?(?!\d)"), _clock),
    (re.compile(r"(?<![\w:.])(\d{1,2})()\s?([AaPp]\.?[Mm]\b\.?)"), _clock),
    (re.compile(r"(?<![\d/])(\d{1,3}\s)?(\d{1,3})/(\d{1,3})(?![\d/])"), _fraction),
    (re.compile(r"(?<!\w)(\d{1,2})'\s?(\d{1,2})(?:\"|'')"), r"\1 foot \2 "),
    (re.compile(rf"(?<![\w.])({_AMOUNT})\s?({_WORD_UNITS})(?![\w'/])", re.I), _unit),
    (re.compile(r"(?<![\w.,])'?(\d{2}0|\d0|\d{3}0)'?s\b"), _decade),
    (re.compile(r"(?<![\w.])(\d[\d,]{0,18})(?:st|nd|rd|th)\b", re.I),
     lambda m: ordinal(int(m.group(1).replace(",", "")[:MAX_DIGITS]))),
    (re.compile(r"\b([CF])#"), r"\1 sharp"),
    (re.compile(r"#\s?(?=\d)"), "number "),
    (re.compile(r"#(?=[A-Za-z])"), "hashtag "),
    (re.compile(r"\b(\d{1,15})\s?-\s?(?=\d)"), r"\1 to "),
    (re.compile(r"(?<![\w.])-(?=\.?\d)"), "minus "),
    (re.compile(r"\d{1,15}(?:\.\d{1,15}){2,}"), lambda m: m.group(0).replace(".", " point ")),
    (re.compile(rf"\b({'|'.join(NUMBERED)})\.\s?(?=\d)", re.I),
     lambda m: NUMBERED[m.group(1).lower()] + " "),
    (re.compile(r"(?<=[A-Za-z])-?(?=\d)|(?<=\d)(?=[A-Za-z])"), " "),
    (re.compile(rf"(?<![\d.])\.(?=\d)|{_AMOUNT}"),
     lambda m: " point " if m.group(0) == "." else f" {number(m.group(0), years=True)} "),
    (re.compile(r"\b[Ss]t\."), _saint_or_street),
    (re.compile(r"\b([A-Za-z](?:\.[A-Za-z])?|[A-Za-z]{2,6})\."), _abbreviation),
    (re.compile(r"\bw/(?=\s|\w)"), "with "),
    # Up to 39; I, V and X alone are letters.
    (re.compile(r"\b(?=[IVX]{2})X{0,3}(?:IX|IV|V?I{0,3})\b(?!')"), _roman),
    (re.compile(r"(?<=\w)[<>](?=\w)|[&@+=×÷±°§]|(?<=\s)[<>](?=\s)"),
     lambda m: f" {SIGNS[m.group(0)]} "),
]  # fmt: skip


def verbalize(text: str) -> str:
    """Words for everything in a sentence that is not yet a word; punctuation stays.

    Args:
        text: one sentence, ASCII plus currency and unit signs, single spaces, digit runs of at
            most MAX_DIGITS.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
