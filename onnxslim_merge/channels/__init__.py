"""Which channels belong together: label arrays that travel through the graph by one rule per operator.

`labels` knows arrays and union-find only; `claims` holds the words that rules may say; `scope` is what a rule sees;
`analysis` walks the graph and `cells` groups the result. See docs/architecture.md, "Channels".
"""
