"""Which rows fit which stratum, for all rows of a prediction at once, from the raw values. Worker side, pure.

A row is kept with the largest rate of the strata that it fits, the base among them; it bears the name of the first that
has it. So the probability is a function of the row alone, whatever the order in which strata are declared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from agent.backends import Array
from agent.sampling.features import Names, Place, categories, numbers
from modules.sampling import BASE, LOW_CONFIDENCE, SamplingPolicy, Stratum
from modules.tensors import TensorSpec
from modules.windows import Categorical, Feature, Numeric

Arrays = Mapping[str, Array]
_Test = Callable[[Arrays, Arrays, int], Array]


class Strata:
    """The strata of a policy for one module. Raises PolicyError for a feature that it does not have."""

    def __init__(self, policy: SamplingPolicy, names: Names, scores: str) -> None:
        """`scores` is the output whose largest element is the confidence; empty when there is none."""
        self._base = policy.rate
        declared = list(policy.strata or ())
        if policy.low_confidence > 0.0 and policy.low_confidence_rate > 0.0:
            declared.insert(0, _old(policy))
        self.names = (BASE, *(LOW_CONFIDENCE if s.name == _OLD_NAME else s.name for s in declared))
        self._rates = (policy.rate, *(max(policy.rate, s.rate) for s in declared))
        self._tests = [_test(stratum, names, scores) for stratum in declared]

    @property
    def largest(self) -> float:
        """No row is kept with more."""
        return max(self._rates)

    @property
    def plain(self) -> bool:
        """Whether all rows are alike."""
        return not self._tests

    def fits(self, inputs: Arrays, outputs: Arrays, rows: int) -> Array:
        """Of each row the stratum that it is kept by: a place in `names`."""
        chosen = np.zeros(rows, np.int64)
        rates = np.full(rows, -1.0)
        for number, test in enumerate(self._tests, 1):
            better = test(inputs, outputs, rows) & (self._rates[number] > rates)
            chosen[better] = number
            rates[better] = self._rates[number]
        return chosen

    def rate(self, number: int) -> float:
        return self._rates[number]

    def which(self, name: str, inputs: Arrays, outputs: Arrays, rows: int) -> Array:
        """The rows that fit one stratum, whichever they are kept by; for the base those that fit no other."""
        asked = (test for test, of in zip(self._tests, self.names[1:], strict=True) if name in (of, BASE))
        tests = [test(inputs, outputs, rows) for test in asked]
        fit = np.logical_or.reduce(tests) if tests else np.zeros(rows, bool)
        return np.asarray(~fit if name == BASE else fit)


_OLD_NAME = "low_confidence_"  # of the two fields of before strata; the name that rows bear is without the underscore


def _old(policy: SamplingPolicy) -> Stratum:
    return Stratum(_OLD_NAME, policy.low_confidence_rate, "low_confidence", below=policy.low_confidence)


def _test(stratum: Stratum, names: Names, scores: str) -> _Test:
    if stratum.when in ("low_confidence", "low_margin"):
        return _of_scores(stratum, scores)
    if stratum.when in ("out_of_range", "missing"):
        return _any_of([_unusual(place, stratum.when) for place in _watched(stratum, names)])
    place = names.find(stratum.feature) if stratum.feature else _class(names, scores)
    return _equals(place, stratum.equals) if stratum.when == "equals" else _between(place, stratum)


def _of_scores(stratum: Stratum, scores: str) -> _Test:
    below, margin = stratum.below or 0.0, stratum.when == "low_margin"

    def test(_inputs: Arrays, outputs: Arrays, rows: int) -> Array:
        array = outputs.get(scores)
        if array is None or array.size == 0 or array.ndim < 2 or array.shape[0] != rows:
            return np.zeros(rows, bool)
        block = array.reshape(rows, -1)
        if not margin:
            return np.asarray(~(block.max(axis=1) >= below))  # NaN is low
        if block.shape[1] < 2:
            return np.zeros(rows, bool)
        two = np.sort(np.partition(block, block.shape[1] - 2, axis=1)[:, -2:], axis=1)
        return np.asarray(~(two[:, 1] - two[:, 0] >= below))

    return test


def _watched(stratum: Stratum, names: Names) -> list[Place]:
    if stratum.feature:
        return [names.find(stratum.feature)]
    return [names.find(f.name) for f in (names.reference.inputs if names.reference is not None else ())]


def _any_of(tests: list[_Test]) -> _Test:
    def test(inputs: Arrays, outputs: Arrays, rows: int) -> Array:
        found = np.zeros(rows, bool)
        for one in tests:
            found |= one(inputs, outputs, rows)
        return found

    return test


def _unusual(place: Place, when: str) -> _Test:
    feature = place.known

    def test(inputs: Arrays, outputs: Arrays, rows: int) -> Array:
        if isinstance(feature, Categorical):
            found = categories(place, inputs, outputs, rows)
            wrong = [text == "" if when == "missing" else text != "" and text not in known for text in found]
            return np.array(wrong, bool)
        values = numbers(place, inputs, outputs, rows)
        if when == "missing":
            return np.isnan(values)
        if not isinstance(feature, Numeric):
            return np.zeros(rows, bool)  # nobody has said what is in range
        return np.asarray((values < feature.edges[0]) | (values > feature.edges[-1]))

    known = _known(feature)
    return test


def _known(feature: Feature | None) -> frozenset[str]:
    return frozenset(feature.categories) if isinstance(feature, Categorical) else frozenset()


def _class(names: Names, scores: str) -> Place:
    """The class of the scores, as the reference profile calls it, or by the labels."""
    for feature in names.reference.outputs if names.reference is not None else ():
        if isinstance(feature, Categorical) and feature.take == "argmax":
            return names.find(feature.name)
    spec = names.specs.get(scores, (TensorSpec("none", "FP32", (-1, 1)), False))[0]
    return Place(spec, False, 0, "argmax")


def _equals(place: Place, wanted: str) -> _Test:
    def test(inputs: Arrays, outputs: Arrays, rows: int) -> Array:
        return np.array([text == wanted for text in categories(place, inputs, outputs, rows)], bool)

    return test


def _between(place: Place, stratum: Stratum) -> _Test:
    low = -np.inf if stratum.at_least is None else stratum.at_least
    high = np.inf if stratum.below is None else stratum.below

    def test(inputs: Arrays, outputs: Arrays, rows: int) -> Array:
        values = numbers(place, inputs, outputs, rows)
        return np.asarray((values >= low) & ((values < high) | (stratum.below is None)))

    return test
