"""A declaration of a game to a typed game: players, their objectives, and how it is played."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

from lossdsl.check import game_players
from lossdsl.check.game_infer import SIGNATURE, GameInference
from lossdsl.check.game_typed import GameSolver, Region, TypedDraw, TypedGame, TypedPlayer
from lossdsl.check.options import validated
from lossdsl.check.params import Params
from lossdsl.check.recipe import Checker
from lossdsl.check.scope import ModelName, Report, Value, functions
from lossdsl.check.structure import introduced
from lossdsl.check.typed import Typed, same
from lossdsl.diagnostics import Related, suggest
from lossdsl.lang.games import GAME_SOLVERS
from lossdsl.lang.types import Kind
from lossdsl.source import Span
from lossdsl.syntax import tree as t

Start = tuple[tuple[float, ...], Region | None, int | None]
"""Where a player starts, its set, and its number of entries (None: a number)."""
_DRAWS = {"normal": 1, "uniform": 2, "rademacher": 0}
_KEEPS = {"clip": 1, "spectral": 0}


class GameChecker(Checker):
    """Checks one game. Params, models and players are known throughout it; everything else from where it is declared."""

    inference: GameInference

    def __init__(self, report: Report, overrides: Mapping[str, float | int], epoch: int = 1) -> None:
        super().__init__(report, overrides, epoch)
        self.inference = GameInference(report)
        self.params = Params(self.inference, overrides, epoch)
        self.starts: dict[str, Start] = {}
        self.players: list[TypedPlayer] = []
        self.draws: list[TypedDraw] = []
        self.columns: list[tuple[str, tuple[float, ...]]] = []
        self.keeps: dict[str, tuple[str, float]] = {}
        self.solver: GameSolver | None = None
        self.solved: Span | None = None

    def check_game(self, shared: tuple[t.Item, ...], node: t.Declaration) -> TypedGame | None:
        """Everything a game says; None if it cannot be played, after reporting why."""
        early = (t.Param, t.Player)
        self.later = frozenset(name for item in node.items if not isinstance(item, early) for name in introduced(item))
        for kind in (t.Param, t.Model, t.Player):
            for item in node.items:
                if isinstance(item, kind):
                    self._foretold(item)
        for item in shared:
            if isinstance(item, t.Def):
                self._define(item)
        for item in node.items:
            self.later -= frozenset(introduced(item))
            if not isinstance(item, t.Param | t.Model):
                getattr(self, "_" + type(item).__name__.lower())(item)
        header = Span(node.span.start, node.span.start + len(node.kind) + 1 + len(node.name), node.span.file)
        self._complete(node, header)
        if self.solver is None:
            return None
        return TypedGame(
            node.name, self.words.get("title", ""), self.words.get("source", ""), self.params.values, tuple(self.players),
            tuple(self.draws), tuple(self.columns), tuple(self.logs), self.solver, self.inference.models, self.keeps,
        )  # fmt: skip

    def declare(self, name: str, binding: object, span: Span, what: str) -> None:
        """Add a name; operations and names in use are refused. x, y, f, p, theta and K are free in a game."""
        taken = name in functions() - {"f", "p"} or (name == "x" and self.inference.models) or name == "pi"
        if taken and not (isinstance(binding, Value) and name not in ("x", "pi")):
            self.report.error("E032", f"{name} has a meaning of its own in a game", span, "choose another name")
        elif self.scope.get(name) is not None:
            related = (Related(self.places[name], f"{name} is introduced here"),) if name in self.places else ()
            self.report.error("E011", f"{name} is declared twice", span, "choose another name, or remove one of them", related=related)
        else:
            self.places[name] = span
            self.scope = self.scope.declare(name, binding)  # type: ignore[arg-type]

    def _foretold(self, item: t.Item) -> None:
        if isinstance(item, t.Param):
            self._param(item)
            if self.params.changing & {item.name}:
                self.report.error("E035", "a game has no epochs, and its params do not change", item.span, "give it one value")
        elif isinstance(item, t.Model):
            self._model(item)
        elif isinstance(item, t.Player) and item.name not in self.starts:
            game_players.foretell(self, item)

    # --- statements ---

    def _player(self, node: t.Player) -> None:
        player = game_players.check_player(self, node)
        if player is not None:
            self.players.append(player)

    def _model(self, node: t.Model) -> None:
        takes, gives = node.takes, node.gives
        if takes is None or gives is None:
            help = f"write model {node.name} : Input -> Real, or model {node.name}(v) = EXPR"
            self.report.error("E035", f"a game has to know what {node.name} takes and gives", node.span, help)
            return
        for word, known in ((takes, ("Input", "Latent")), (gives, tuple(SIGNATURE))):
            if word not in known:
                self.report.error(
                    "E013",
                    f"a model of a game does not {'take' if word == takes else 'give'} {word}",
                    node.span,
                    "types are " + ", ".join(known),
                )
                return
        self.inference.models[node.name] = (takes, gives)
        self.declare(node.name, ModelName(node.name, False, node.span), node.span, "model")

    def _let(self, node: t.Let) -> None:
        if node.mode is not None:
            self.report.error("E035", "a game has no modes", node.span, f"remove with f in {node.mode}")
        super()._let(replace(node, mode=None))

    def _def(self, node: t.Def) -> None:
        super()._def(replace(node, model=False))

    def _sample(self, node: t.Sample) -> None:
        draw = self._distribution(node)
        over = ("example", 1) if node.over is None else self._over(node.over)
        if draw is None or over is None:
            for name in node.names:
                self.declare(name, Value(Typed("?", (), Kind.REAL, node.span), node.span, "sample"), node.span, "sample")
            return
        low, high = {"normal": (-inf, inf), "rademacher": (-1.0, 1.0)}.get(draw[0], draw[1])
        kind = {"latent": Kind.VECTOR, "batch": Kind.CONST}.get(over[0], Kind.REAL)
        for name in node.names:
            self.draws.append(TypedDraw(name, draw[0], draw[1], over[0], over[1]))
            if over[0] == "latent":
                self.inference.sizes[name] = over[1]
            value = Typed("sample", (), kind, node.span, (name,), depends=frozenset({"random"}), low=low, high=high)
            self.declare(name, Value(value, node.span, "sample"), node.span, "sample")

    def _distribution(self, node: t.Sample) -> tuple[str, tuple[float, ...]] | None:
        e = node.distribution
        call = e if isinstance(e, t.Call) else t.Call(e, (), span=e.span)
        name = call.func.id if isinstance(call.func, t.Name) else ""
        if name not in _DRAWS or len(call.args) != _DRAWS[name]:
            help = "in a game: normal(s), uniform(lo, hi) or rademacher, with fixed numbers"
            self.report.error("E027", "a sample of a game is drawn from a distribution of numbers", e.span, help)
            return None
        numbers = [self.inference.number(a.value, self.scope, self.at, f"an argument of {name}") for a in call.args]
        if None in numbers:
            return None
        found = tuple(float(v) for v in numbers if v is not None)
        if (name == "normal" and found[0] < 0) or (name == "uniform" and found[0] > found[1]):
            help = "a standard deviation is not negative; the lower end of uniform comes first"
            self.report.error("E016", f"{name} cannot be drawn from with these numbers", call.span, help)
            return None
        return name, found

    def _over(self, e: t.Expr) -> tuple[str, int] | None:
        if isinstance(e, t.Name) and e.id in ("example", "batch"):
            return e.id, 1
        if isinstance(e, t.Call) and e.func == t.Name("latent") and len(e.args) == 1:
            size = self.inference.number(e.args[0].value, self.scope, self.at, "the size of a latent space")
            if isinstance(size, int) and size >= 1:
                return "latent", size
            if size is None:
                return None
        self.report.error("E027", "a draw of a game is over example, batch or latent(n)", e.span, "write for example over latent(2)")
        return None

    def _data(self, node: t.Data) -> None:
        """Columns of numbers, one row per example."""
        if self.columns:
            self.report.error("E011", "there are two data statements", node.span, "join them")
        rows: list[list[float]] = []
        for row in node.rows:
            if len(row.items) != len(node.names):
                said = f"this row has {len(row.items)} numbers, and there are {len(node.names)} names"
                self.report.error("E014", said, row.span, "write one number for each name")
                continue
            numbers = [self.inference.number(e, self.scope, self.at, "data") for e in row.items]
            rows.append([float(v) for v in numbers if v is not None])
        whole = all(len(row) == len(node.names) for row in rows)
        for n, name in enumerate(node.names):
            column = tuple(row[n] for row in rows) if whole else ()
            self.columns.append((name, column))
            limits = (min(column), max(column)) if column else (-inf, inf)
            value = Typed("sample", (), Kind.REAL, node.span, (name,), depends=frozenset({"batch"}), low=limits[0], high=limits[1])
            self.declare(name, Value(value, node.span, "data"), node.span, "data")

    def _keep(self, node: t.Keep) -> None:
        name = node.region.func.id if isinstance(node.region.func, t.Name) else ""
        if node.name not in self.inference.models:
            help = "a number or a vector stays in a set: player u in [-1, 1]"
            self.report.error("E035", f"keep holds the weights of a model, and {node.name} is none", node.span, help)
            return
        if name not in _KEEPS or len(node.region.args) != _KEEPS[name]:
            self.report.error("E020", "weights are kept in clip(c) or spectral", node.region.span, f"write keep {node.name} in clip(0.01)")
            return
        if node.name in self.keeps:
            self.report.error("E011", f"{node.name} is kept twice", node.span, "keep one of them")
        value = self.inference.number(node.region.args[0].value, self.scope, self.at, "the bound of clip") if name == "clip" else 1.0
        if value is not None and value <= 0:
            self.report.error("E016", "the bound of clip is above 0", node.region.span, "write for example clip(0.01)")
        self.report.used.add(node.name)
        self.keeps[node.name] = (name, float(value or 0.0))

    def _solve(self, node: t.Solve) -> None:
        """`solve SOLVER(step = a, iterations = n, noise = normal(s), ...)`."""
        if self.solved is not None:
            self.report.error("E011", "there are two solve statements", node.span, "keep one of them")
            return
        self.solved = node.span
        call = node.call
        name = call.func.id if isinstance(call.func, t.Name) else ""
        if name not in GAME_SOLVERS:
            otherwise = "the solvers of games are " + ", ".join(GAME_SOLVERS)
            self.report.misnamed("E023", f"games have no solver {name}".rstrip(), call.func.span, suggest(name, GAME_SOLVERS), otherwise)
            return
        args = tuple(self._noise(a) if a.name == "noise" else a for a in call.args)
        if None in args:
            return
        given = tuple(a for a in args if a is not None)
        options = validated(self.inference, GAME_SOLVERS[name].options, name, given, call.span, self.scope, self.at)
        if options is not None:
            self.solver = GameSolver(name, options, node.span)

    def _noise(self, arg: t.Argument) -> t.Argument | None:
        """`noise = normal(s)`: the standard deviation."""
        e = arg.value
        if isinstance(e, t.Call) and e.func == t.Name("normal") and len(e.args) == 1 and e.args[0].name is None:
            return replace(arg, value=e.args[0].value)
        self.report.error("E027", "the noise of an oracle is normal", e.span, "write noise = normal(0.1)")
        return None

    def _refused(self, node: t.Item) -> None:
        self.report.error(
            "E035", "a game has players, and no levels, inputs or training of a recipe", node.span, "remove it, or declare a recipe"
        )

    _level = _upper = _find = _state = _train = _input = _refused

    def _keyword(self, node: t.Keyword) -> None:
        if node.keyword == "count":
            self.report.error("E033", "a game counts nothing", node.span, "count belongs to an attack")
            return
        super()._keyword(node)

    # --- the game as a whole ---

    def _complete(self, node: t.Declaration, header: Span) -> None:
        if self.report.lost_words:
            return
        if not any(isinstance(i, t.Player) for i in node.items):
            self.report.error("E035", f"game {node.name} has no player", header, "add: player u = 0.5 minimize EXPR")
        if self.solved is None:
            help = "add: solve extragradient(step = 0.1, iterations = 1000)"
            self.report.error("E035", f"game {node.name} does not say how it is played", header, help)
        if self.report.failed:
            return
        for fault in (self._nested, self._of_models, self._own_optimizers):
            fault()
        self._unused(node)

    def _nested(self) -> None:
        """best_response and danskin need a minimiser and a maximiser of one objective."""
        assert self.solver is not None
        if not GAME_SOLVERS[self.solver.name].nested:
            return
        name, senses = self.solver.name, sorted(p.sense for p in self.players)
        if senses != ["maximize", "minimize"] or not same(self.players[0].objective, self.players[1].objective):
            help = "name the objective with let, and write player u minimize Phi, player v maximize Phi"
            self.report.error("E035", f"{name} is for one minimiser and one maximiser of the same objective", self.solver.span, help)
            return
        answering = next(p for p in self.players if p.sense == "maximize")
        if answering.region is None:
            help = f"write player {answering.name} in [-1, 1] maximize ..."
            self.report.error("E020", f"{name} draws starts of {answering.name} from its set, and it has none", answering.span, help)

    def _of_models(self) -> None:
        """Which solvers models can play, and what they need."""
        assert self.solver is not None
        models = any(p.model for p in self.players)
        name, row = self.solver.name, GAME_SOLVERS[self.solver.name]
        if models and not row.models:
            able = ", ".join(r.name for r in GAME_SOLVERS.values() if r.models)
            self.report.error("E035", f"{name} does not play models", self.solver.span, f"solvers for models are {able}")
        elif models != (self.solver.options.batch is not None):
            said = "a game of models draws batches" if models else "this game has no model and draws no batches"
            self.report.error("E035", said, self.solver.span, "add batch = 64" if models else "remove batch")
        elif name == "ppm" and (constrained := next((p for p in self.players if p.region is not None), None)):
            self.report.error("E020", f"ppm plays without sets, and {constrained.name} has one", constrained.span, "use extragradient")
        free = next((m for m in self.inference.models if m not in {p.name for p in self.players}), None)
        if free is not None:
            self.report.error("E035", f"the model {free} is no player", self.places[free], f"add: player {free} minimize EXPR")

    def _own_optimizers(self) -> None:
        """Where players take turns each has an optimizer, and nowhere else."""
        assert self.solver is not None
        turns = self.solver.name == "alternating"
        for player in self.players:
            if turns and player.optimizer is None:
                self.report.error(
                    "E018", f"the player {player.name} has no optimizer for its turns", player.span, "add: by adam(lr = 1e-3)"
                )
            elif not turns and player.optimizer is not None:
                help = "remove by, or write solve alternating(iterations = ...)"
                self.report.error("E035", f"{self.solver.name} moves all players by its own step", player.span, help)

    def _unused(self, node: t.Declaration) -> None:
        for item in node.items:
            if isinstance(item, t.Param | t.Let | t.Sample | t.Def | t.Data) and not (isinstance(item, t.Let) and item.recorded):
                what = "model" if isinstance(item, t.Def) and item.model else type(item).__name__.lower()
                for name in (n for n in introduced(item) if n not in self.report.used):
                    self.report.warn("T09", f"the {what} {name} of this game is never used", item.span, "remove it, or use it")


def check_game(report: Report, overrides: Mapping[str, float | int], shared: tuple[t.Item, ...], node: t.Declaration) -> TypedGame | None:
    """The typed game; findings go into the report."""
    return GameChecker(report, overrides).check_game(shared, node)
