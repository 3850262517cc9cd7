"""What a compiled program does, counted in its text.

The text is XLA's HLO after all passes. A kernel is what is started on the
device: a fusion, a copy, a call of a library. It reads its operands once and
writes its results once. A loop counts as often as it is known to run, and else
once: programs for TPUs do not say it. Of a conditional the branch that moves
less counts, and a loop that goes on by a flag alone not at all: that is what
most steps do.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "reduce-scatter",
)
# Names for memory that is there, and not work.
_NAMES = {
  *("after-all", "bitcast", "constant", "get-tuple-element", "opt-barrier"),
  *("parameter", "partition-id", "replica-id", "tuple"),
}
# In a TPU: to and from the memory on the chip, beside the computation; and how
# often the compiler's analysis counts them.
_TRANSFERS = {"copy": 4, "slice": 3}

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*?^}", re.M | re.S)
_INSTRUCTION = re.compile(
  r"^  (?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)(.*)$", re.M
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
_TILE = re.compile(r":T\(([\d,]+)\)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(
  r"(?:calls|to_apply|body|(?:true|false)_computation|branch_computations)="
  r"(\{[^}]*\}|%[\w.-]+)"
)


class Instruction(NamedTuple):
  """One line of a computation: %name = shape opcode(operands), attributes."""

  shape: str
  opcode: str
  operands: list[str]
  attributes: str


class Work(NamedTuple):
  """What runs from the start to the end of a program.

  Attributes:
    kernels: how many are started.
    moved: bytes read from and written to the device's main memory, the padding
      of a TPU's tiles included.
    accessed: bytes of all operands and results wherever they are, which is what
      the compiler's own analysis counts.
    conditionals: how many there are, with loops that go on by a flag.
    collectives: by kind, how many run.
    exchanged: by kind, the bytes of their results.
  """

  kernels: int = 0
  moved: int = 0
  accessed: int = 0
  conditionals: int = 0
  collectives: Mapping[str, int] = {}
  exchanged: Mapping[str, int] = {}


def work(text: str) -> Work:
  """Counts what a program does, given as ``compiled.as_text()``."""
  computations, entry = parse(text)
  return _work(computations, entry)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """Returns the instructions of each computation, and which is the first."""
  computations, entry = {}, ""
  for found in _COMPUTATION.finditer(text):
    is_entry, name = found.groups()
    entry = name if is_entry else entry
    computations[name] = {
      result: Instruction(
        shape, opcode, re.findall(r"%([\w.-]+)", given) or given.split(), rest
      )
      for result, shape, opcode, given, rest in _INSTRUCTION.findall(found[0])
    }
  return computations, entry


def nbytes(shape: str, *, physical: bool = False) -> int:
  """Returns the bytes of an array or a tuple of them.

  Args:
    shape: as in HLO, ``f32[10,4]{1,0:T(8,128)S(1)}``.
    physical: whether to count what main memory holds: tiles are full, and what
      is in a memory on the chip, S(1), counts nothing.
  """
  total = 0
  for dtype, dims, layout in _ARRAY.findall(shape):
    sizes = [int(n) for n in dims.split(",") if n]
    if physical and "S(" in layout:
      continue
    if physical and (tile := _TILE.search(layout)):
      order = [int(n) for n in layout.split(":")[0].split(",") if n]
      for axis, n in zip(order, reversed(tile[1].split(","))):
        sizes[axis] = -(-sizes[axis] // int(n)) * int(n)
    bits = re.search(r"\d+", dtype)
    total += math.prod(sizes) * (int(bits[0]) if bits else 8) // 8
  return total


def _work(computations, name):
  total = Work()
  for one in computations[name].values():
    total = _sum(total, _work_of(one, computations[name], computations))
  return total


def _work_of(one, instructions, computations):
  """Returns the work of one instruction, and of what it calls."""
  kind = one.opcode.removesuffix("-start").removesuffix("-done")
  called = re.findall(r"%([\w.-]+)", " ".join(_CALLED.findall(one.attributes)))
  if one.opcode in _NAMES or "ConcatBitcast" in one.attributes:
    return Work()
  if one.opcode in ("call", "async-start"):
    return _work(computations, called[0])
  if one.opcode == "while":
    trips = _TRIPS.search(one.attributes)
    body = re.search(r"body=%([\w.-]+)", one.attributes)
    if trips:
      return _times(int(trips[1]), _work(computations, body[1]))
    test = re.search(r"condition=%([\w.-]+)", one.attributes)
    *_, goes_on = computations[test[1]].values()
    if goes_on.opcode == "get-tuple-element":
      return Work(conditionals=1)
    return _work(computations, body[1])
  if one.opcode == "conditional":
    branches = [_work(computations, name) for name in called]
    least = min(branches, key=lambda work: work.moved)
    return least._replace(conditionals=least.conditionals + 1)
  if kind in _TRANSFERS and kind != one.opcode:
    if one.opcode.endswith("-start"):
      return Work()
    begun = instructions[one.operands[0]]
    source = instructions[begun.operands[0]].shape
    size = nbytes(one.shape)
    # Of the source as much as arrives.
    moved = size * bool(nbytes(source, physical=True))
    moved += nbytes(one.shape, physical=True)
    return Work(moved=moved, accessed=_TRANSFERS[kind] * size)
  if one.opcode.endswith("-done"):
    return Work()
  inputs = [instructions[name].shape for name in dict.fromkeys(one.operands)]
  if kind in COLLECTIVES:
    # Beside the results of what only starts stand its operands.
    beside = inputs if kind != one.opcode and kind != "all-reduce" else ()
    size = nbytes(one.shape) - sum(map(nbytes, beside))
    return Work(1, collectives={kind: 1}, exchanged={kind: size})
  if one.opcode == "fusion":
    inputs = _read(one, instructions, computations[called[0]])
  shapes = (one.shape, *inputs)
  moved = sum(nbytes(shape, physical=True) for shape in shapes)
  return Work(1, moved, sum(map(nbytes, shapes)))


def _read(fusion, instructions, body):
  """Returns the shapes of what a fusion reads: of some operands slices."""
  shapes = {}
  for name, one in body.items():
    if one.opcode == "parameter":
      operand = fusion.operands[int(one.operands[0])]
      users = [user for user in body.values() if name in user.operands]
      sliced = [
        u.shape for u in users if u.opcode in ("slice", "dynamic-slice")
      ]
      whole = instructions[operand].shape
      shapes[operand] = sliced if len(sliced) == len(users) else [whole]
  return [shape for parts in shapes.values() for shape in parts]


def _sum(one, other):
  return Work(
    *(a + b for a, b in zip(one[:4], other[:4])),
    *(
      {kind: a.get(kind, 0) + b.get(kind, 0) for kind in {**a, **b}}
      for a, b in zip(one[4:], other[4:])
    ),
  )


def _times(n, work):
  return Work(
    *(n * a for a in work[:4]),
    *({kind: n * a for kind, a in each.items()} for each in work[4:]),
  )
