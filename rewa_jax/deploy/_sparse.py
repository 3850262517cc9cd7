"""Sparse matrices in the place of kernels, and how models take them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from rewa_jax._masks import Mask, kernels, selected
from rewa_jax._trees import path_name
from rewa_jax.baselines import group_axes
from rewa_jax.deploy._checks import check_weights
from rewa_jax.deploy._constants import PRODUCTS
from rewa_jax.deploy._graph import Equation, flatten


def to_bcoo(weights: Any, *, mask: "Mask | None" = kernels) -> Any:
  """Replaces kernels by ``jax.experimental.sparse.BCOO`` arrays.

  Those of convolutions too, which :func:`sparse_apply` computes as products
  with patches of the image: on a CPU these take longer than the convolution,
  however sparse it is.

  Args:
    weights: a tree of weights.
    mask: which leaves to replace, of those with two axes or more: a tree of
      bools with the structure of weights or a prefix of it, a function that
      returns one, or None for all.

  Returns:
    A tree of the same structure, for :func:`sparse_apply`.

  Raises:
    ValueError: if weights are latents or hold NaN, or the mask does not fit
      them or selects nothing by name.
    TypeError: if a selected leaf is not floating point.
  """
  return _replace(
    weights,
    mask,
    lambda _, x: sparse.BCOO.fromdense(x) if jnp.ndim(x) > 1 else x,
  )


def to_bcsr(weights: Any, *, mask: "Mask | None" = kernels) -> Any:
  """Replaces kernels of two axes by ``jax.experimental.sparse.BCSR`` matrices.

  Their rows are outputs, so that of a kernel (inputs, outputs) it is the
  transpose: rows times columns is what JAX computes. Other kernels stay dense.

  Args, Returns and Raises as :func:`to_bcoo`.
  """

  def replace(path, x):
    if jnp.ndim(x) != 2:
      return x
    return sparse.BCSR.fromdense(x.T if _has_outputs_last(path, x) else x)

  return _replace(weights, mask, replace)


def to_scipy(weights: Any, *, mask: "Mask | None" = kernels) -> Any:
  """Replaces kernels of two axes by SciPy's CSR, the rest by NumPy arrays.

  For CPUs without JAX: ``x @ kernel + bias`` is written as ever.

  Args, Returns and Raises as :func:`to_bcoo`.

  Examples:
    >>> import numpy as np
    >>> from rewa_jax import deploy
    >>> layer = {"kernel": np.eye(3, dtype="f"), "bias": np.ones(3, "f")}
    >>> layer = deploy.to_scipy(layer)
    >>> print(np.array([[1.0, 2.0, 3.0]]) @ layer["kernel"] + layer["bias"])
    [[2. 3. 4.]]
  """
  import scipy.sparse

  weights = jax.tree.map(np.asarray, weights)
  return _replace(
    weights, mask, lambda _, x: scipy.sparse.csr_array(x) if x.ndim == 2 else x
  )


def sparse_apply(apply: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a model's function for params with sparse matrices.

  It computes products with them as sparse ones, and everything else as it was:
  any model of linen, of NNX or of one's own, as long as its kernels go into
  products and convolutions and nowhere else.

  Args:
    apply: a function of params and inputs, such as ``model.apply``.

  Returns:
    A function of params in which leaves may be of :func:`to_bcoo` or
    :func:`to_bcsr`, and of inputs; wrap it in ``jax.jit``.

  Raises:
    ValueError: when called, if a sparse matrix meets another operation, which
      is named.

  Examples:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from rewa_jax import deploy
    >>> model, x = nn.Dense(3), jnp.ones((1, 4))
    >>> params = model.init(jax.random.key(0), x)
    >>> apply = jax.jit(deploy.sparse_apply(model.apply))
    >>> y = apply(deploy.to_bcsr(params), x)
    >>> bool(jnp.allclose(y, model.apply(params, x)))
    True
  """

  def run(params, *inputs):
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
      params, is_leaf=_is_sparse
    )
    leaves = [_Matrix.of(path_name(path), leaf) for path, leaf in leaves]
    structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    closed, result = jax.make_jaxpr(apply, return_shape=True)(
      treedef.unflatten(structs), *inputs
    )
    graph = flatten(closed, len(leaves))
    values = dict(graph.constants)
    values.update(zip(graph.leaves, leaves))
    values.update(zip(graph.inputs, jax.tree.leaves(inputs)))
    for equation in graph.equations:
      operands = [values[number] for number in equation.operands]
      bind = _bind if any(map(_is_sparse, operands)) else Equation.bind
      values.update(zip(equation.results, bind(equation, *operands)))
    outputs = [values[number] for number in graph.outputs]
    if any(map(_is_sparse, outputs)):
      raise ValueError(
        "apply returns a sparse matrix as it is, but what it returns must be"
        " arrays. Leave it dense by a mask."
      )
    return jax.tree.unflatten(jax.tree.structure(result), outputs)

  return run


class _Matrix(NamedTuple):
  """A sparse matrix, and whether it is the transpose of what it stands for."""

  matrix: sparse.JAXSparse
  is_transposed: bool

  @classmethod
  def of(cls, path: str, leaf: Any) -> Any:
    """Returns a sparse leaf with its orientation, and others as arrays."""
    if isinstance(leaf, sparse.BCSR):
      return cls(leaf, _has_outputs_last(path, leaf))
    return cls(leaf, False) if _is_sparse(leaf) else jnp.asarray(leaf)

  @property
  def shape(self) -> tuple[int, ...]:
    return self.matrix.shape[:: -1 if self.is_transposed else 1]

  @property
  def dtype(self) -> Any:
    return self.matrix.dtype


def _bind(equation: Equation, *operands: Any) -> list[Any]:
  """Computes an equation of which an operand is a sparse matrix."""
  place = next(n for n, each in enumerate(operands) if _is_sparse(each))
  matrix, is_transposed = operands[place]
  name, params = equation.primitive.name, equation.params
  if name == "convert_element_type":
    matrix = _as_dtype(matrix, params["new_dtype"])
    return [_Matrix(matrix, is_transposed)]
  if name in PRODUCTS and not _is_sparse(operands[1 - place]):
    other = operands[1 - place]
    dtype = params["preferred_element_type"] or other.dtype
    # Sums of sixteen bits lose what dense products keep in wider ones.
    wide = jnp.promote_types(jnp.promote_types(dtype, other.dtype), jnp.float32)
    matrix, other = _as_dtype(matrix, wide), other.astype(wide)
    product = None
    if name == "dot_general":
      numbers = params["dimension_numbers"]
      product = _product(matrix, is_transposed, other, place, numbers)
    elif isinstance(matrix, sparse.BCOO) and place == 1:
      groups = params["feature_group_count"], params["batch_group_count"]
      product = _convolve(other, matrix, params) if groups == (1, 1) else None
    if product is not None:
      return [product.astype(dtype)]
  raise ValueError(
    f"A sparse matrix goes into {equation}, but only its product with an array"
    " and a convolution without groups are known. Leave it dense by a mask."
  )


def _as_dtype(matrix: sparse.JAXSparse, dtype: Any) -> Any:
  (data, *indices), treedef = jax.tree.flatten(matrix)
  return treedef.unflatten([data.astype(dtype), *indices])


def _product(
  matrix: sparse.JAXSparse,
  is_transposed: bool,
  other: jax.Array,
  place: int,
  numbers: Any,
) -> jax.Array | None:
  """Returns the product with an array, None if it is not known how.

  Args:
    matrix: the sparse operand.
    is_transposed: whether it is the transpose of what it stands for.
    other: the dense operand.
    place: of the sparse operand, 0 or 1.
    numbers: of dimensions, of the dense product.
  """
  contracting, batch = numbers
  if isinstance(matrix, sparse.BCOO) and not batch[0]:
    pair: Any = (matrix, other) if place == 0 else (other, matrix)
    product: Any = sparse.bcoo_dot_general(*pair, dimension_numbers=numbers)
    return product
  # Rows times columns, whichever way round the matrix stands there.
  if contracting[place] == (0 if is_transposed else 1,) and not batch[0]:
    columns = jnp.moveaxis(other, contracting[1 - place][0], 0)
    product = matrix @ columns.reshape(len(columns), -1)
    product = product.reshape(-1, *columns.shape[1:])
    return jnp.moveaxis(product, 0, -1) if place else product
  return None


def _convolve(
  images: jax.Array, kernel: sparse.BCOO, params: dict[str, Any]
) -> jax.Array:
  """Convolves as a product of a sparse kernel with patches of images."""
  numbers = params["dimension_numbers"]
  outputs_first = kernel.transpose(numbers.rhs_spec)
  patches = jax.lax.conv_general_dilated_patches(
    images,
    outputs_first.shape[2:],
    params["window_strides"],
    params["padding"],
    params["lhs_dilation"],
    params["rhs_dilation"],
    numbers,
    params["precision"],
  )
  channel = numbers.out_spec[1]
  matrix = outputs_first.reshape(len(outputs_first), patches.shape[channel])
  product: Any = sparse.bcoo_dot_general(
    patches, matrix, dimension_numbers=(((channel,), (1,)), ((), ()))
  )
  return jnp.moveaxis(product, -1, channel)


def _replace(
  weights: Any, mask: Mask | None, replace: Callable[[str, Any], Any]
) -> Any:
  check_weights(weights)
  leaves, treedef = jax.tree_util.tree_flatten_with_path(weights)
  return treedef.unflatten(
    replace(path_name(path), leaf) if is_selected else leaf
    for is_selected, (path, leaf) in zip(selected(mask, weights), leaves)
  )


def _has_outputs_last(path: str, kernel: Any) -> bool:
  return group_axes("output", path, kernel) == (1,)


def _is_sparse(node: Any) -> bool:
  return isinstance(node, (sparse.JAXSparse, _Matrix))
