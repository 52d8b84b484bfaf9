"""What is drawn: `html`, `sections` and `plots` for the report card, `profile` for a sweep.

matplotlib is known here alone.
"""
