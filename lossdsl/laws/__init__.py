"""Laws: statements about losses, divergences, gradients and iterations, searched for counterexamples.

catalogue  files to laws                 problem   one statement at fixed whole numbers, as a search sees it
lower      expressions to closures       exact     the same expressions in high precision
strategies examples by hypothesis        search    examples, gradients, confirmation, shrinking
verdict    what became of a statement    report    tables and JSON
"""
