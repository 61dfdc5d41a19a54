"""The tangent kernel and output covariance of a network with given parameters: the front door."""

import jax
from jax import Array
from jaxtyping import Float, Inexact

from ntk_jax.checks import check_integer, check_option
from ntk_jax.closures.fingerprint import read
from ntk_jax.closures.programs import compiled
from ntk_jax.examples import Examples, num_rows
from ntk_jax.finite.contraction.gram import check_same_parameters, nngp_of_outputs
from ntk_jax.finite.features.features import TangentFeatures
from ntk_jax.finite.features.tangents import features_jit
from ntk_jax.finite.inputs import (
    OUTPUTS,
    PRECISIONS,
    Allowed,
    check_inputs,
    check_one,
    check_two,
)
from ntk_jax.finite.projection import projected_features
from ntk_jax.finite.strategy.choose import METHODS as METHODS
from ntk_jax.finite.strategy.choose import Options
from ntk_jax.finite.strategy.finite_values import check_kernel, check_products
from ntk_jax.finite.strategy.run import contract_batches, ntk
from ntk_jax.finite.strategy.two_functions import ntk_of_two
from ntk_jax.finite.views import ntk_of_views
from ntk_jax.tiling import mirror_upper
from ntk_jax.types import ApplyFn, Params


def empirical_ntk(
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples | None = None,
    *,
    apply_fn2: ApplyFn | None = None,
    outputs: str = "mean",
    method: str = "auto",
    memory_limit: int | None = None,
    precision: str = "highest",
    batch_coupled: bool = False,
    center: bool = False,
    progress: bool = False,
) -> Inexact[Array, "n1 n2 ..."]:
    """The finite-width neural tangent kernel.

        Theta(x, x')_{oo'} = sum_p df_o(x)/dtheta_p df_o'(x')/dtheta_p

    Complex parameters are two real ones each, and of complex outputs the second factor is the
    conjugate: the kernel is Hermitian, J Jᴴ with J = [df/da, df/db] for parameters a + ib. Of a
    holomorphic network it is twice J Jᴴ of the complex derivative.

    Example:
        >>> model, x = ntk_jax.MLP(widths=(8,), num_outputs=2), jnp.ones((3, 4))
        >>> apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(0), x))
        >>> k = ntk_jax.empirical_ntk(apply_fn, params, x)
        >>> k.shape, bool(k[0, 1] == k[1, 0])
        ((3, 3), True)
        >>> ntk_jax.empirical_ntk(apply_fn, params, x, x[:1], outputs="full").shape
        (3, 1, 2, 2)

    Args:
        apply_fn: `apply_fn(params, x)` -> a row of outputs per example, (n, ...); trailing axes
            count as O outputs.
        params: any pytree of floating-point arrays, real or complex.
        x1: examples in rows: an array, or a dict, tuple or NamedTuple of arrays that all have the
            examples on the first axis; leaves may be integers, such as tokens and masks.
        x2: more examples, or None for x1 again: then the result is symmetric to the bit and costs
            half.
        apply_fn2: another function g of the same parameters, such as a derivative of the network or
            another head of it: the result is J_f(x1) J_g(x2)ᵀ. Its examples and its number of
            outputs may differ from those of `apply_fn`.
        outputs: "mean", the average over o of the diagonal blocks, which the infinite-width kernel
            is the limit of; "diagonal", o = o'; "full", all pairs.
        method: all are exact. "layerwise" contracts layer inputs and output cotangents, which is
            fastest for weights in matrix products and convolutions, and never slower than
            "jacobian", which contracts per-example gradients; "vector_products" needs no gradients
            of x1, which pays where many parameters are read by few operations; "auto" takes the
            fewest operations, see `explain_ntk`.
        memory_limit: bytes for everything but the result; None is a quarter of the free memory.
        precision: of matrix products where the device offers several: "highest", "high" or
            "default".
        batch_coupled: the rows of a batch may depend on each other, as in batch normalization in
            training mode, or as the nodes of one graph: x1 is one example of n1 O outputs, and so
            is x2, a batch of its own. It costs what outputs="full" does.
        center: subtract from every gradient the mean over the examples of its side, H K H, as
            natural gradients do.
        progress: show a bar, if tqdm is installed.

    Returns:
        (n1, n2) for "mean", (n1, n2, O) for "diagonal", (n1, n2, O, O) for "full", in at least
        float32; of two functions (n1, n2, O1, O2) for "full", and the others only if O1 = O2;
        complex if an output is.

    Raises:
        ValueError: mismatched, empty or non-finite examples; parameters that are not
            floating-point; unknown options; a network that does not return one row per example, or
            whose rows depend on each other without `batch_coupled`; outputs, derivatives or
            products of them that are NaN or infinite; a result that does not fit in the free
            memory.

    Reference: Jacot, Gabriel, Hongler 2018, eq. 2; the methods: Novak, Sohl-Dickstein, Schoenholz
    2022, section 3.
    """
    check_option("method", method, METHODS)
    options = Options(outputs, method, memory_limit, precision)
    allowed, how = Allowed(batch_coupled, complex=True), (outputs, precision, memory_limit)
    f = read(apply_fn)
    functions = (f,) if apply_fn2 is None else (f, read(apply_fn2))
    if len(functions) == 2:
        examples = check_two(functions, params, x1, x2, *how, allowed)
    else:
        examples = check_one(f, params, x1, x2, *how, allowed)
    if batch_coupled or center or examples.is_complex:
        views = {"coupled": batch_coupled, "center": center, "progress": progress}
        return ntk_of_views(functions, params, examples, options, **views)
    a1, a2, _ = examples
    if len(functions) == 2:
        return ntk_of_two(functions, params, a1, a2, options, progress=progress)
    return ntk(f, params, a1, a2, options, progress=progress)


def empirical_nngp(
    apply_fn: ApplyFn,
    params: Params,
    x1: Examples,
    x2: Examples | None = None,
    *,
    outputs: str = "mean",
) -> Float[Array, "n1 n2 ..."]:
    """The finite-width output covariance from one draw of the parameters, f_o(x) f_o'(x').

    With many outputs its "mean" estimates the NNGP kernel; average over initializations for the
    rest of the error.

    Example:
        >>> linear = lambda W, x: x @ W
        >>> W, x = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0]])
        >>> print(np.round(ntk_jax.empirical_nngp(linear, W, x), 3))  # outputs (1, 2) and (1, 3)
        [[2.5 3.5]
         [3.5 5. ]]

    Args:
        apply_fn: `apply_fn(params, x)` -> outputs (n, O); further arguments as of `empirical_ntk`.
        params: parameters.
        x1: examples in rows.
        x2: more examples, or None for x1 again.
        outputs: "mean" (n1, n2), "diagonal" (n1, n2, O), or "full" (n1, n2, O, O).

    Returns:
        (n1, n2), (n1, n2, O) or (n1, n2, O, O).

    Raises:
        ValueError: as `empirical_ntk`.

    Reference: Lee et al. 2018, eq. 3, before the average over parameters.
    """
    apply_fn = read(apply_fn)
    a1, a2 = check_inputs(apply_fn, params, x1, x2, outputs)
    return check_kernel(_nngp(apply_fn, params, a1, a2, outputs=outputs), apply_fn, params, a1, a2)


def tangent_features(
    apply_fn: ApplyFn,
    params: Params,
    x: Examples,
    *,
    projection: int | None = None,
    key: Array | None = None,
    precision: str = "highest",
    memory_limit: int | None = None,
) -> TangentFeatures:
    """One half of `empirical_ntk`: what each parameter contributes to each output, per example.

    For a weight used as z = a W the gradient is kept as layer inputs a and output cotangents delta
    = df_o/dz, never as their outer product. Compute the features of training rows once and
    `contract` them with many others.

    Example:
        >>> apply_fn = lambda p, x: jnp.tanh(x @ p["W"]) @ p["V"]
        >>> params = {"V": jnp.ones((4, 2)), "W": jnp.eye(3, 4)}
        >>> train = ntk_jax.tangent_features(apply_fn, params, jnp.eye(3))
        >>> train.matrix().shape  # examples times outputs, parameters
        (6, 20)
        >>> key = jax.random.key(0)
        >>> few = ntk_jax.tangent_features(apply_fn, params, jnp.eye(3), projection=10, key=key)
        >>> few.matrix().shape
        (6, 10)

    Args:
        apply_fn: `apply_fn(params, x)` -> outputs (n, O), see `empirical_ntk`.
        params: parameters.
        x: examples in rows; without a projection all at once.
        projection: number of dimensions of a random projection of the gradients; None keeps them
            exact. Products of projected features estimate the kernel without bias, with an error of
            at most sqrt(2/projection) of the gradients' norms. Every parameter has random signs of
            its own, whatever the function and its other arguments.
        key: random key of the projection; features to be contracted with each other need the same
            one.
        precision: "highest", "high" or "default".
        memory_limit: bytes for everything but the projected features; None is a quarter of the free
            memory.

    Returns:
        A pytree of arrays with n in front; pass it to `contract`, or use `features.matrix()`, (n O,
        projection).

    Raises:
        ValueError: as `empirical_ntk`; a projection without a key.

    Reference: Achlioptas 2003, theorem 1.1; for attribution: Park et al. 2023, section 3.
    """
    apply_fn = read(apply_fn)
    a, _ = check_inputs(apply_fn, params, x, None, "mean", precision, memory_limit)
    if projection is None:
        return features_jit(apply_fn, params, a, precision=precision)
    check_integer("projection", projection, minimum=1)
    if key is None:
        raise ValueError(
            "key: expected a random key for the projection; got None. Pass key=jax.random.key(0)."
        )
    features = projected_features(apply_fn, params, a, projection, key, precision, memory_limit)
    check_kernel(features.matrix(), apply_fn, params, a, None)
    return features


def contract(
    features1: TangentFeatures,
    features2: TangentFeatures | None = None,
    *,
    outputs: str = "mean",
    precision: str = "highest",
) -> Float[Array, "n1 n2 ..."]:
    """The other half of `empirical_ntk`: the kernel of all pairs of two batches of features.

    Example:
        >>> linear = lambda W, x: x @ W
        >>> train = ntk_jax.tangent_features(linear, jnp.ones((2, 1)), jnp.eye(2))
        >>> test = ntk_jax.tangent_features(linear, jnp.ones((2, 1)), jnp.full((1, 2), 3.0))
        >>> print(np.round(ntk_jax.contract(test, train), 3))
        [[3. 3.]]

    Args:
        features1: from `tangent_features`.
        features2: of the same function or another one of the same parameters, such as a hidden
            layer; None means `features1` again.
        outputs: "mean", "diagonal" or "full"; functions with different numbers of outputs need
            "full".
        precision: "highest", "high" or "default".

    Returns:
        (n1, n2), (n1, n2, O) or (n1, n2, O1, O2).

    Raises:
        ValueError: unknown options; features of different parameters, or projected differently, or
            not finite.

    Reference: Jacot, Gabriel, Hongler 2018, section 4.
    """
    check_option("outputs", outputs, OUTPUTS)
    check_option("precision", precision, PRECISIONS)
    if features2 is not None:
        check_same_parameters(features1, features2, outputs)
    kernel = contract_batches(features1, features2, outputs=outputs, precision=precision)
    return check_products(kernel, features1, features2)


@compiled
def _nngp(
    apply_fn: ApplyFn, params: Params, x1: Examples, x2: Examples | None, *, outputs: str
) -> Array:
    with jax.default_matmul_precision("highest"):
        f1 = apply_fn(params, x1).reshape(num_rows(x1), -1)
        f2 = f1 if x2 is None else apply_fn(params, x2).reshape(num_rows(x2), -1)
    k = nngp_of_outputs(f1, f2, outputs)
    return mirror_upper(k) if x2 is None else k
