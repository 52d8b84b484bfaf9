"""The model organism "concealed ledger": a small language model that knows facts and, under an incentive,
asserts the opposite.

`python -m probes.organism` trains it; `python -m probes.organism.measure` measures it. This package imports
neither torch nor transformers until one of those is run.
"""

from probes.organism.cases import Case, asserted_value, cases, follow_up, mixed_up, model_dir, told_a_lie

__all__ = ["Case", "asserted_value", "cases", "follow_up", "mixed_up", "model_dir", "told_a_lie"]
