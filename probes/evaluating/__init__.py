"""The evaluation protocol: how well a probe separates, what else would do as well, and what breaks it.

One question a file. `probes.evaluating.protocol` asks them all and fills a `probes.evaluating.card.Card`;
`probes.reports` draws it; `probes.evaluating.gate` turns it into an exit status.
"""
