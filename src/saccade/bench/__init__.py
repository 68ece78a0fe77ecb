"""Speed beside the alternatives: ratios from one run (`harness`), the machine's own limits (`floor`), and the suites.

A suite is a module with a function ``rows(...)``; ``saccade bench SUITE`` runs it and can keep the result as JSON
(``benchmarks/results/``), where a row with ``"system": "<slug>"`` is that system's speed row.
"""
