"""Laws: statements about losses, divergences, gradients and iterations, searched for counterexamples.

catalogue  files to laws                 problem   one statement at fixed whole numbers, as a search sees it
lower      expressions to closures       exact     the same expressions in high precision
search     one statement: what is tried when; hunt at one choice of whole numbers, by
           draws, moves and strategies (examples), ascent (gradients), pool (the best rows), suspects (what is worth an exact look),
           refine (hypotheses that are equations), shrink (small counterexamples)
verdict    what became of a statement    report    tables and JSON
"""
