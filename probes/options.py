"""Lists of numbers as argparse takes them from a command line; what is none is told by an example."""

import argparse


def whole_numbers(text: str, separator: str = ",") -> tuple[int, ...]:
    """Of `3,5`."""
    try:
        return tuple(int(number) for number in text.split(separator))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers; give e.g. 3,5") from None


def numbers(text: str) -> tuple[float, ...]:
    """Of `0.03,1`."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; give e.g. 0.03,1") from None
