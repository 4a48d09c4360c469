"""Games: several players, each with an objective of its own, and the methods that play them.

    game = load_game("forsaken")
    V = game.field(game.start)                      # [1, d]
    played = game.run("extragradient(step = 0.1, iterations = 2000)")
    game.critical_points()

Importing this package loads torch; the checker and `lossdsl explain` do without it.
"""

from lossdsl.games.critical import CriticalPoint
from lossdsl.games.game import Game, compile_game, load_game
from lossdsl.games.run import Trajectory

__all__ = ["CriticalPoint", "Game", "Trajectory", "compile_game", "load_game"]
