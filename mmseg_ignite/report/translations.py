"""Texts of the report in English and Korean, read from ``translations.yml``."""

from pathlib import Path

from markupsafe import Markup, escape
from mmengine.fileio import load

LANGUAGES = ('en', 'ko')
_DATA = load(Path(__file__).with_suffix('.yml'))
CLASS_NAMES: dict[str, str] = _DATA['classes']
"""Korean names of classes and groups."""
TEXTS: dict[str, dict[str, str]] = _DATA['texts']
"""{key: {language: text}}."""


def both(key: str, **values: object) -> Markup:
    """Return a text in both languages, of which the style sheet shows one; ``values`` are escaped.

    A key without a text, e.g. a column of a user's own table, is returned as it is.
    """
    if key not in TEXTS:
        return escape(key.replace('_', ' '))
    form = Markup('<span lang="{}">{}</span>')
    return Markup('').join(form.format(x, Markup(TEXTS[key][x]).format(**values)) for x in LANGUAGES)


def class_name(name: str) -> Markup:
    """Return the name of a class: English, and Korean with the English name beside it."""
    if name not in CLASS_NAMES:
        return escape(name)
    form = '<span lang="en">{0}</span><span lang="ko">{1} <small>{0}</small></span>'
    return Markup(form).format(name, CLASS_NAMES[name])
