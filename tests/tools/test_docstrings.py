from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.tools.docstrings import describe

NAMES = ("city", "days", "unit")


def google(city: str, days: str) -> str:
    return f"""Weather in a city.

    Slow.

    Args:
        city: {city}
        days (int, optional): {days}

    Returns:
        One line a day.
    """


def numpy(city: str, days: str) -> str:
    return f"""Weather in a city.

    Slow.

    Parameters
    ----------
    city : str
        {city}
    days : int, optional
        {days}

    Returns
    -------
    str
        One line a day.
    """


def sphinx(city: str, days: str) -> str:
    return f"""Weather in a city.

    Slow.

    :param city: {city}
    :type city: str
    :param int days: {days}
    :returns: One line a day.
    """


@pytest.mark.parametrize(
    ("style", "rest"),
    [
        (google, "Returns:\n    One line a day."),
        (numpy, "Returns\n-------\nstr\n    One line a day."),
        (sphinx, ":returns: One line a day."),
    ],
)
def test_each_style_gives_the_parameters_and_keeps_the_rest(style: object, rest: str) -> None:
    assert callable(style)
    assert describe(style("The city.", "How many: 1 to 7."), NAMES) == (
        f"Weather in a city.\n\nSlow.\n\n{rest}",
        {"city": "The city.", "days": "How many: 1 to 7."},
    )


PLAIN = st.text(st.sampled_from("abc XYZ,.()'0"), min_size=1).map(str.strip).filter(str.strip)


@given(st.sampled_from([google, numpy, sphinx]), PLAIN, PLAIN)
def test_no_style_loses_a_parameter(style: object, city: str, days: str) -> None:
    assert callable(style)
    assert describe(style(city, days), NAMES)[1] == {"city": city, "days": days}


@pytest.mark.parametrize(
    "doc",
    [
        "Weather in a city.",
        "Weather.\n\nNote: with colons,\n    an indented part\n    x: y\n\n\nand two blank lines.",
        "Weather.\n\nArgs:\n    other: not one of ours",
        "Weather.\n\n:param other: not one of ours\n:odd one",
        "Weather.\n\nParameters\n----------\nother : int\n    Not one of ours.",
        "Weather.\n\nArgs: city: on one line",
        "Weather.\n\nReturns:\n    A text.",
        "Steps:\ngo\n    there",
    ],
)
def test_a_text_that_describes_no_parameter_stays_whole(doc: str) -> None:
    assert describe(doc, NAMES) == (doc, {})


@pytest.mark.parametrize("doc", [None, "", "  \n "])
def test_no_docstring_is_no_text(doc: str | None) -> None:
    assert describe(doc, NAMES) == ("", {})


def test_google_oddities() -> None:
    doc = """Weather.

    Args:
        city: The city.
            Its second line: with a colon.
        A line that begins no entry.
        days(Literal['a', 'b']):How many.

        **unit: A star.

    Raises:
        ValueError without a colon
    Only ten are returned.
    """
    assert describe(doc, NAMES) == (
        "Weather.\n\nRaises:\n    ValueError without a colon\nOnly ten are returned.",
        {
            "city": "The city.\nIts second line: with a colon.\nA line that begins no entry.",
            "days": "How many.",
            "unit": "A star.",
        },
    )


def test_numpy_oddities() -> None:
    doc = """Weather.

    Parameters
    ---
    city
        No type, short dashes.
    days, unit : int
        Two at once.

        In two paragraphs.
    Only ten are returned.
    """
    both = "Two at once.\n\nIn two paragraphs."
    assert describe(doc, NAMES) == (
        "Weather.\n\nOnly ten are returned.",
        {"city": "No type, short dashes.", "days": both, "unit": both},
    )


def test_sphinx_oddities() -> None:
    doc = """Weather.

    :param city: The city,
        on two lines.
    :param dict of str unit: A type of three words.
    :type days: int
    :keyword days: How many.
    :odd
    """
    assert describe(doc, NAMES) == (
        "Weather.\n\n:odd",
        {"city": "The city,\non two lines.", "unit": "A type of three words.", "days": "How many."},
    )


def test_styles_may_be_mixed_and_the_first_description_of_a_name_counts() -> None:
    doc = "Weather.\n\nArgs:\n    city: Google.\n\n:param city: Sphinx.\n:param days: Sphinx."
    assert describe(doc, NAMES) == ("Weather.", {"city": "Google.", "days": "Sphinx."})


def test_a_section_on_the_first_line() -> None:
    assert describe("Args:\n        city: The city.\n    ", NAMES) == ("", {"city": "The city."})


@given(st.text(st.sampled_from("Args:\n -=city,days*param()"), max_size=80))
def test_any_text_is_described(doc: str) -> None:
    text, said = describe(doc, NAMES)
    assert set(said) <= set(NAMES)
    assert "" not in said.values()
    assert text == text.strip("\n")


def test_a_plain_docstring_does_not_load_the_parser() -> None:
    program = (
        "import sys; from treadle.tools.docstrings import describe; describe('Plain. Args: none', ['x']);"
        "assert 'docstring_parser' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0
