"""Kernels of complex networks, and centered ones, against dense Jacobians by real and imaginary
parts.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from cases.compilations import compilations

pytestmark = pytest.mark.usefixtures("unoptimized")
RNG = np.random.default_rng(0)


def drawn(*shape, imaginary=False):
    a = RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape) * imaginary
    return jax.device_put(a if imaginary else a.real)


X1, X2 = drawn(5, 3), drawn(4, 3)
REAL = {"W": drawn(3, 6), "V": drawn(6, 2)}
COMPLEX = {"W": drawn(3, 6, imaginary=True), "V": drawn(6, 2, imaginary=True)}
MIXED = {"W": REAL["W"], "V": COMPLEX["V"]}


def holomorphic(p, x):
    return jnp.tanh(0.3 * (x.astype(complex) @ p["W"])) @ p["V"]


def phases(p, x):
    return jnp.exp(jax.lax.complex(x @ p["W"], jnp.sin(x @ p["W"]))) @ p["V"].astype(complex)


def twisted(p, x):
    h = x.astype(complex) @ p["W"].astype(complex)
    return jnp.conj(h * jnp.abs(h).astype(complex)) @ p["V"] + (h @ p["V"]).real.astype(complex)


def modulus(p, x):
    return jnp.abs(holomorphic(p, x)) ** 2


CASES = {
    "holomorphic": (holomorphic, COMPLEX),
    "real parameters": (phases, REAL),
    "not holomorphic": (twisted, COMPLEX),
    "some real parameters": (twisted, MIXED),
    "real outputs": (modulus, COMPLEX),
}


def jacobian(f, params, x):
    """(n, O, P): derivatives by real and by imaginary parts, of real and of imaginary parts."""
    split = lambda a: jnp.stack([a.real, a.imag]) if jnp.iscomplexobj(a) else a[None]
    join = lambda a: jax.lax.complex(a[0], a[1]) if len(a) == 2 else a[0]
    out = lambda p: f(jax.tree.map(join, p), x)
    parts = jax.tree.map(split, params)
    found = [jax.jit(jax.jacfwd(lambda p, g=g: g(out(p))))(parts) for g in (jnp.real, jnp.imag)]
    flat = lambda j: np.concatenate([np.reshape(a, (len(x), 2, -1)) for a in jax.tree.leaves(j)], 2)
    return flat(found[0]) + 1j * flat(found[1])


def some_slow(names, quick):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


def close(k, expected):
    np.testing.assert_allclose(k, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("name", some_slow(CASES, quick=("holomorphic", "some real parameters")))
def test_kernels_are_hermitian_products_of_jacobians(name):
    f, params = CASES[name]
    j1, j2 = (jacobian(f, params, x) for x in (X1, X2))
    k = ntk_jax.empirical_ntk(f, params, X1, outputs="full")
    assert jnp.iscomplexobj(k) == (name != "real outputs")
    close(k, np.einsum("iap,jbp->ijab", j1, j1.conj()))
    np.testing.assert_array_equal(k, jnp.conj(k).transpose(1, 0, 3, 2))
    k = ntk_jax.empirical_ntk(f, params, X1, X2)
    close(k, np.einsum("iap,jap->ij", j1, j2.conj()) / 2)
    if name == "holomorphic":
        derivative = jax.jacfwd(f, holomorphic=True)(params, X1)
        j = np.concatenate([np.reshape(a, (5, 2, -1)) for a in jax.tree.leaves(derivative)], 2)
        close(
            2 * np.einsum("iap,jbp->ijab", j, j.conj()), np.einsum("iap,jbp->ijab", j1, j1.conj())
        )


@pytest.mark.slow
def test_diagonals_methods_and_tiles():
    j = jacobian(twisted, COMPLEX, X1)
    for options in ({"memory_limit": 1}, {"method": "vector_products"}):
        k = ntk_jax.empirical_ntk(twisted, COMPLEX, X1, outputs="diagonal", **options)
        close(k, np.einsum("iap,jap->ija", j, j.conj()))


def test_two_functions_one_of_them_real():
    options = {"apply_fn2": modulus, "outputs": "full"}
    j1, j2 = (jacobian(f, COMPLEX, x) for f, x in ((twisted, X1), (modulus, X2)))
    k = ntk_jax.empirical_ntk(twisted, COMPLEX, X1, X2, **options)
    close(k, np.einsum("iap,jbp->ijab", j1, j2.conj()))
    other = ntk_jax.empirical_ntk(modulus, COMPLEX, X2, X1, apply_fn2=twisted, outputs="full")
    close(other, np.conj(k).transpose(1, 0, 3, 2))


@pytest.mark.slow
def test_complex_rows_that_interact():
    f = lambda p, x: holomorphic(p, x) - holomorphic(p, x).mean(0, keepdims=True)
    j = jacobian(f, COMPLEX, X1)
    k = ntk_jax.empirical_ntk(f, COMPLEX, X1, batch_coupled=True, outputs="full")
    close(k, np.einsum("iap,jbp->ijab", j, j.conj()))


@pytest.mark.parametrize("outputs", some_slow(["mean", "diagonal", "full"], quick=("full",)))
@pytest.mark.parametrize("name", some_slow(["twisted", "real"], quick=("twisted",)))
def test_centered_kernels_are_of_gradients_less_their_mean(name, outputs):
    f = twisted if name == "twisted" else lambda p, x: jnp.tanh(x @ p["W"]) @ p["V"]
    params = COMPLEX if name == "twisted" else REAL
    j1, j2 = (jacobian(f, params, x) for x in (X1, X2))
    j1, j2 = (j - j.mean(0) for j in (j1, j2))
    spec = {"mean": "iap,jap->ij", "diagonal": "iap,jap->ija", "full": "iap,jbp->ijab"}[outputs]
    size = 2 if outputs == "mean" else 1
    k = ntk_jax.empirical_ntk(f, params, X1, outputs=outputs, center=True)
    close(k, np.einsum(spec, j1, j1.conj()) / size)
    swapped = k.transpose(1, 0, 3, 2) if outputs == "full" else k.swapaxes(0, 1)
    np.testing.assert_array_equal(k, jnp.conj(swapped))
    k = ntk_jax.empirical_ntk(f, params, X1, X2, outputs=outputs, center=True)
    close(k, np.einsum(spec, j1, j2.conj()) / size)


def test_rows_that_interact_are_still_refused(unchecked_shapes):
    f = lambda p, x: holomorphic(p, x) - holomorphic(p, x).mean(0, keepdims=True)
    with pytest.raises(ValueError, match="row i of the output"):
        ntk_jax.empirical_ntk(f, COMPLEX, X1)


def test_what_has_no_complex_numbers_says_so(unchecked_shapes):
    for call in (ntk_jax.ntk_operator, ntk_jax.tangent_features, ntk_jax.empirical_ntk_by_layer):
        with pytest.raises(
            ValueError, match=r"params\['V'\]: .*got complex128.*empirical_ntk alone"
        ):
            call(holomorphic, COMPLEX, X1)
        with pytest.raises(ValueError, match=r"expected real outputs; got complex128.*f\.real"):
            call(phases, REAL, X1)
    k = ntk_jax.empirical_ntk(holomorphic, COMPLEX, X1)
    with pytest.raises(ValueError, match=r"k_train_train: expected a real kernel.*linalg\.solve"):
        ntk_jax.kernel_regression(k, np.ones(5), k)


def test_few_programs_and_none_again():
    f = lambda p, x: holomorphic(p, x) * 2
    with compilations() as first:
        ntk_jax.empirical_ntk(f, COMPLEX, X1, center=True)
    with compilations() as second:
        ntk_jax.empirical_ntk(f, COMPLEX, X1, center=True)
    assert len(first) <= 3 and not second
