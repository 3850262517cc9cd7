import math

import numpy as np
import pytest
from scipy import stats

from examples.compare_methods.frontier import (
  COMPRESSIONS,
  chosen_rungs,
  compression_at,
  ends_reached,
  frontier,
  interval,
  ranked_rates,
)

COUNT = len(COMPRESSIONS)


def trial(rung, accuracies, seed=1, rate=0.1, test=None):
  return {
    **{"rung": rung, "rate": rate, "seed": seed},
    "validation": list(accuracies),
    "test": list(accuracies if test is None else test),
    "structured": [float(rung)] * COUNT,
  }


# The weak one is better up to 50x, the strong one from 70x on.
WEAK = np.where(np.array(COMPRESSIONS) <= 50, 0.98, 0.5)
STRONG = np.full(COUNT, 0.96)


def test_validation_chooses_and_test_is_reported():
  weak = [trial(0, WEAK, seed, test=WEAK - 0.01 * seed) for seed in (1, 2)]
  strong = [trial(1, STRONG, seed, test=STRONG + 0.01) for seed in (1, 2)]
  found = frontier([*weak, *strong])
  at = COMPRESSIONS.index(50)
  assert list(found["rung"][at : at + 2]) == [0, 1]
  np.testing.assert_allclose(found["test"][at], [0.97, 0.96])
  np.testing.assert_allclose(found["test"][at + 1], [0.97, 0.97])
  assert list(found["structured"][at + 1]) == [1, 1]


def test_a_strength_that_lacks_a_seed_does_not_count():
  trials = [trial(0, WEAK, 1), trial(0, WEAK, 2), trial(1, STRONG, 1)]
  assert set(frontier(trials)["rung"]) == {0}


def test_the_rate_is_the_one_whose_best_strengths_are_the_most_accurate():
  low = [trial(0, WEAK, rate=0.1), trial(1, STRONG, rate=0.1)]
  high = [trial(0, WEAK + 0.01, rate=0.2), trial(1, WEAK, rate=0.2)]
  assert ranked_rates([*low, *high]) == [0.1, 0.2]


def test_an_end_is_reached_where_it_is_best():
  middle = trial(1, np.full(COUNT, 0.97))
  assert chosen_rungs([trial(0, WEAK), middle]) == [0, 0, 1, 1, 1]
  assert ends_reached([trial(0, WEAK), middle]) == (True, True)
  worse = np.full(COUNT, 0.9)
  inside = [trial(0, worse), middle, trial(2, worse)]
  assert ends_reached(inside) == (False, False)
  # Where all are of no use, none of the ends is better.
  assert ends_reached([trial(rung, worse) for rung in range(3)]) == (0, 0)


def test_compressions_are_interpolated_in_the_logarithm():
  accuracies = 1 - 0.01 * np.log(COMPRESSIONS)
  for compression in (3.0, 77.0, 555.0):
    level = 1 - 0.01 * math.log(compression)
    found = compression_at(accuracies, level)
    assert found == pytest.approx(compression)
  assert compression_at(accuracies, 1.1) == 0
  assert compression_at(accuracies, 0.1) == math.inf


def test_a_dip_before_a_good_compression_does_not_count():
  accuracies = np.full(COUNT, 0.98)
  accuracies[3], accuracies[-1] = 0.9, 0.96
  found = compression_at(accuracies, 0.97)
  assert COMPRESSIONS[-2] < found < COMPRESSIONS[-1]


def test_intervals_are_those_of_student():
  values = [0.97, 0.98, 0.985]
  low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  assert interval(values) == pytest.approx((high - low) / 2)
  assert math.isnan(interval([0.9]))
