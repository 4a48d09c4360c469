"""Choices of whole numbers, elements of finite sets and architectures, in the order in which they are tried."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice, zip_longest

from lossdsl.check.law_typed import Choice, TypedLaw
from lossdsl.laws.catalogue import Law

Key = tuple[tuple[str, str], ...]


def shapes(law: Law, seed: int, most: int) -> Iterator[TypedLaw]:
    """The law at different choices, at most `most`: small ones, the ends of every range, every option of each with the others small,
    large or mixed, and the rest at random."""
    seen: set[Key] = set()
    known: dict[Key, TypedLaw] = {}
    for wanted in _orders(law, random.Random(seed), most):
        found = at(law, wanted, known)
        key = _key(found.choices)
        if key not in seen:
            seen.add(key)
            yield found
        if len(seen) >= most or not found.choices:
            return


def at(law: Law, wanted: Mapping[str, float], known: dict[Key, TypedLaw]) -> TypedLaw:
    """Each choice at a share of its options: 0 the first one, 1 the last one. known: laws at choices and at some of them, kept: the
    options of one name may depend on the choice of another, and to check a law takes longer than to search it a little."""
    chosen: dict[str, Choice] = {}
    found = law.first
    while left := [name for name in found.options if name not in chosen]:
        options = found.options[left[0]]
        chosen[left[0]] = options[min(int(wanted.get(left[0], 0.0) * len(options)), len(options) - 1)]
        key = _key(chosen)
        if key not in known:
            known[key] = found = law.at(chosen)
            known.setdefault(_key(found.choices), found)
        found = known[key]
    return found


def _key(choices: Mapping[str, Choice]) -> Key:
    return tuple(sorted((name, repr(v)) for name, v in choices.items()))


def _orders(law: Law, generator: random.Random, most: int) -> Iterator[dict[str, float]]:
    names = list(law.first.options)
    yield {}
    yield dict.fromkeys(names, 1.0)
    scans = [_scan(law, name, others, generator, most) for name in names for others in (0.0, None)]
    for together in zip_longest(*scans):
        yield from (wanted for wanted in together if wanted is not None)
    for _ in range(4 * most):
        yield {name: generator.random() ** generator.choice((1, 2)) for name in names}


def _scan(law: Law, name: str, others: float | None, generator: random.Random, most: int) -> Iterator[dict[str, float]]:
    """Every option of one name, from both ends inwards where there are many; the others first, or at random."""
    count = len(law.first.options[name])
    order = sorted(range(count), key=lambda i: (min(i, count - 1 - i), i)) if count > most // 2 else list(range(count))
    for i in islice(order, most):
        rest = {n: generator.random() if others is None else others for n in law.first.options}
        yield {**rest, name: (i + 0.5) / count}


def neighbours(law: Law, choices: Mapping[str, Choice]) -> Iterator[TypedLaw]:
    """The law with one choice a step further, up or down."""
    for name, options in law.first.options.items():
        value = choices.get(name)
        for step in (-1, 1):
            place = options.index(value) + step if value in options else -1
            if 0 <= place < len(options):
                yield law.at({**choices, name: options[place]})
