"""Which indices of which arrays can only be cut together."""

from collections.abc import Callable, Iterable

import numpy as np

# For every index of an axis the unit that it belongs to.
Ids = np.ndarray
Axes = tuple[Ids, ...]


class Units:
  """Units, the ties between them, and those that must stay.

  A unit is what is cut or kept as one, such as a neuron. Unit 0 always stays:
  it is that of axes which nothing can be cut from.
  """

  def __init__(self):
    self.count = 1
    self._ties: list[tuple[np.ndarray, Axes]] = []
    self._fixed: list[Ids] = [np.zeros(1, int)]

  def new(self, size: int) -> Ids:
    """Returns new units for an axis; one index alone is never cut."""
    if size == 1:
      return np.zeros(1, int)
    self.count += size
    return np.arange(self.count - size, self.count)

  def tie(self, whole: Ids, *parts: Ids) -> None:
    """Says that an index of whole stays where it stays in all its parts.

    Args:
      whole: the units of one axis.
      parts: the units of the axes that it is made of, the last one fastest.
    """
    parts = tuple(part for part in parts if len(part) > 1)
    if any(map(np.any, (whole, *parts))):
      self._ties.append((whole.reshape([len(p) for p in parts]), parts))

  def fix(self, *axes: Ids) -> None:
    """Says that all units of some axes stay."""
    self._fixed.extend(axes)

  def close(
    self,
    alive: np.ndarray,
    needs: Iterable[Callable[[np.ndarray], None]] = (),
  ) -> np.ndarray:
    """Returns the fewest units that stay if the given ones do.

    Args:
      alive: a bool for every unit.
      needs: functions that mark in place what else stays.
    """
    alive = alive.copy()
    for ids in self._fixed:
      alive[ids] = True
    before = -1
    while before < (before := np.count_nonzero(alive)):
      # There and back, so that news travels far in one round.
      for whole, parts in (*self._ties, *self._ties[::-1]):
        _level(alive, whole, parts)
      for need in needs:
        need(alive)
    return alive


def _level(alive: np.ndarray, whole: np.ndarray, parts: Axes) -> None:
  stays = alive[whole]
  for axis, part in enumerate(parts):
    others = tuple(a for a in range(whole.ndim) if a != axis)
    alive[part] |= stays.any(axis=others)
  every = np.ones((), bool)
  for part in parts:
    every = every[..., None] & alive[part]
  alive[whole] |= every
