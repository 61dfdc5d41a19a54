"""Every public name of google/neural-tangents 0.6.5, with the line that replaces it here.

`THEIRS` and `OURS` are what both sides import and compute with; a `Line` is evaluated on each, and the
results are equal (`tests/test_neural_tangents.py`, against values stored in `tests/references`).
`docs/neural_tangents.md` is made from this.
"""

from typing import NamedTuple


class Line(NamedTuple):
    """A name, their line, ours, and what to know; without lines there is no counterpart, or no
    value to compare.
    """

    name: str
    theirs: str = ""
    ours: str = ""
    note: str = ""
    rtol: float = 1e-6


DATA = """
import numpy as np
rng = np.random.RandomState(0)
x1, x2 = rng.randn(6, 5), rng.randn(4, 5)
images, others = rng.randn(3, 6, 6, 2), rng.randn(2, 6, 6, 2)
w = [rng.randn(5, 7), rng.randn(7, 3)]
y = rng.randn(6, 3)
lower = np.tril(np.ones((6, 6))) / 3
"""
THEIRS = """
import functools, jax, jax.numpy as jnp
import neural_tangents as nt
from neural_tangents import predict, stax
f = lambda p, x: jnp.tanh(x @ p[0]) @ p[1]
D = functools.partial(stax.Dense, W_std=1.3, b_std=0.2)
C = functools.partial(stax.Conv, W_std=1.3, b_std=0.2, padding="SAME")
def mlp(phi):
    return stax.serial(D(8), phi, D(1))[2](x1, x2, ("nngp", "ntk"))
def cnn(*layers):
    return stax.serial(*layers)[2](images, others, ("nngp", "ntk"))
relu_k = stax.serial(D(8), stax.Relu(), D(1))[2]
k = nt.empirical_ntk_fn(f, trace_axes=(-1,), vmap_axes=0)(x1, None, w)
k_test = nt.empirical_ntk_fn(f, trace_axes=(-1,), vmap_axes=0)(x2, x1, w)
f_0, f_test = f(w, x1), f(w, x2)
"""
OURS = """
import flax.linen as nn, jax, jax.numpy as jnp
import ntk_jax
from ntk_jax import infinite_width, mlp_kernels
from ntk_jax.duals import rule
f = lambda p, x: jnp.tanh(x @ p[0]) @ p[1]
normal = nn.initializers.normal
he = nn.initializers.variance_scaling
scales = dict(W_std=1.3, b_std=0.2)
init = dict(kernel_init=he(1.3**2, "fan_in", "normal"), bias_init=normal(0.2))
D = lambda m: nn.Dense(m, **init)
C = lambda m, size, *a, **k: nn.Conv(m, size, *a, **{"padding": "SAME", **init, **k})
def mlp(activation):
    return mlp_kernels(x1, x2, depth=1, activation=activation, **scales)
class Net(nn.Module):
    call: object
    @nn.compact
    def __call__(self, x):
        return self.call(x)
def cnn(call, a=None, b=None):
    kernel_fn = infinite_width(Net(call), learning_rates="variance")
    return kernel_fn(images if a is None else a, others if b is None else b)
flat = lambda x: x.reshape(len(x), -1)
k, k_test = ntk_jax.empirical_ntk(f, w, x1), ntk_jax.empirical_ntk(f, w, x2, x1)
modes = ntk_jax.diagonalize(k)
f_0, f_test = f(w, x1), f(w, x2)
start = dict(fx_train_0=f_0, fx_test_0=f_test, k_test_train=k_test)
ours = lambda t, **o: tuple(ntk_jax.gradient_flow_mse(modes, y, t, **start, **o))
"""

FUNCTIONS = [
    Line("Kernel", note="`Kernels(nngp, ntk)`, a pair of arrays"),
    Line(
        "empirical_ntk_fn",
        "nt.empirical_ntk_fn(f, trace_axes=(-1,), vmap_axes=0)(x1, x2, w)",
        "ntk_jax.empirical_ntk(f, w, x1, x2)",
        '`trace_axes=()` is `outputs="full"`; no `vmap_axes`, no choice of implementation is needed',
    ),
    Line(
        "empirical_nngp_fn",
        "nt.empirical_nngp_fn(f, trace_axes=(-1,))(x1, x2, w)",
        "ntk_jax.empirical_nngp(f, w, x1, x2)",
    ),
    Line(
        "empirical_kernel_fn",
        "nt.empirical_kernel_fn(f, trace_axes=(-1,), vmap_axes=0)(x1, x2, ('nngp', 'ntk'), w)",
        "(ntk_jax.empirical_nngp(f, w, x1, x2), ntk_jax.empirical_ntk(f, w, x1, x2))",
    ),
    Line(
        "empirical_ntk_vp_fn",
        "nt.empirical_ntk_vp_fn(f, x1, None, w)(y)",
        "ntk_jax.ntk_operator(f, w, x1) @ y",
    ),
    Line(
        "NtkImplementation",
        note='`method="auto"`: chosen by cost, for every layer; `explain_ntk` says how',
    ),
    Line(
        "linearize",
        "nt.linearize(f, w)([1.1 * a for a in w], x1)",
        "ntk_jax.linearize(f, w)([1.1 * a for a in w], x1)",
    ),
    Line(
        "taylor_expand",
        "nt.taylor_expand(f, w, 2)([1.1 * a for a in w], x1)",
        "ntk_jax.taylor_expand(f, w, 2)([1.1 * a for a in w], x1)",
    ),
    Line(
        "monte_carlo_kernel_fn",
        ours="ntk_jax.monte_carlo_kernels(lambda key: [jax.random.normal(key, a.shape, a.dtype) for a in w], f, "
        "x1, key=jax.random.key(0), num_samples=4).mean",
        note="with a standard error; other random numbers, hence other draws",
    ),
    Line(
        "batch",
        note="not needed: kernels are made in tiles under `memory_limit`; `tile` writes them to disk",
    ),
    Line(
        "predict.gradient_descent_mse",
        "predict.gradient_descent_mse(k, y)(3.0, f_0, f_test, k_test)",
        "ours(3.0)",
        "**it is continuous time**, like `gradient_flow_mse`; steps are `gradient_descent_mse` here. "
        "`fx_test_0=None` means no test output there",
        1e-5,
    ),
    Line(
        "predict.gradient_descent_mse, a ridge",
        "predict.gradient_descent_mse(k, y, diag_reg=0.1)(3.0, f_0, f_test, k_test)[1]",
        "ours(3.0, diag_reg=0.1 * jnp.trace(k) / len(k))[1]",
        "`diag_reg` is relative to the mean of the diagonal there, absolute here; their training outputs are those of K + ridge",
        1e-5,
    ),
    Line(
        "predict.gradient_descent",
        "predict.gradient_descent(lambda a, b: 0.5 * jnp.mean((a - b) ** 2), k, y)(3.0, f_0, f_test, k_test)",
        "tuple(ntk_jax.gradient_flow('mse', k, y, 3.0, **start)[:2])",
        "any loss, `momentum=`; an adaptive solver (diffrax)",
        1e-4,
    ),
    Line(
        "predict.gradient_descent_mse_ensemble",
        "predict.gradient_descent_mse_ensemble(relu_k, x1, y)(3.0, x2, 'ntk', compute_cov=True)",
        "(lambda e: (e.mean, e.covariance))(ntk_jax.ensemble_mse(mlp_kernels(x1, depth=1, **scales), "
        "mlp_kernels(x2, x1, depth=1, **scales), mlp_kernels(x2, depth=1, **scales), y, 3.0))",
        rtol=1e-4,
    ),
    Line(
        "predict.gp_inference",
        "predict.gp_inference(relu_k(x1, None, 'nngp'), y, diag_reg=0.1)('nngp', relu_k(x2, x1, 'nngp'))",
        "(lambda a: ntk_jax.gp_posterior(a, y, mlp_kernels(x2, x1, depth=1, **scales).nngp, "
        "jnp.ones(4) * 9, noise=0.1 * jnp.trace(a) / 6).mean)(mlp_kernels(x1, depth=1, **scales).nngp)",
        "`gp_posterior` also gives variance or covariance and the evidence",
        1e-5,
    ),
    Line(
        "predict.max_learning_rate",
        ours="ntk_jax.max_learning_rate(modes, 3)",
        note="theirs fails with current SciPy",
    ),
    Line("predict.Gaussian", note="`Ensemble(mean, covariance)`, `Posterior`"),
    Line("predict.ODEState", note="`Flow.velocity` continues a solve with momentum"),
    Line("experimental.empirical_ntk_fn_tf", note="none: TensorFlow networks are not taken"),
    Line("experimental.get_apply_fn_and_params", note="none: likewise"),
]

ELEMENTWISE = [
    Line("stax.ABRelu", "mlp(stax.ABRelu(-0.5, 2.0))", 'mlp(rule("rectifier", positive=2.0, negative=0.5))'),
    Line("stax.Abs", "mlp(stax.Abs())", 'mlp("abs")'),
    Line("stax.Cos", "mlp(stax.Cos(1.2, 0.7, 0.3))", "mlp(lambda u: 1.2 * jnp.cos(0.7 * u + 0.3))"),
    Line("stax.Elementwise", "mlp(stax.Elementwise(jax.nn.tanh, lambda a, b, c: a * b * c / (1 + a * a)))",
         note="`activation=fn`: any function; its dual is found, not given"),
    Line("stax.ElementwiseNumerical", "mlp(stax.ElementwiseNumerical(jnp.tanh, deg=200))", "mlp(jnp.tanh)", rtol=1e-4),
    Line("stax.Erf", "mlp(stax.Erf(1.2, 0.7, 0.3))", "mlp(lambda u: 1.2 * jax.scipy.special.erf(0.7 * u) + 0.3)"),
    Line("stax.Exp", "mlp(stax.Exp(1.2, 0.5))", "mlp(lambda u: 1.2 * jnp.exp(0.5 * u))"),
    Line("stax.ExpNormalized", note='`"normalized_exp"` is it for unit variance; theirs rescales by the variance'),
    Line("stax.Gabor", "mlp(stax.Gabor())", "mlp(lambda u: jnp.exp(-(u**2)) * jnp.sin(u))"),
    Line("stax.Gaussian", "mlp(stax.Gaussian(1.2, -0.5))", "mlp(lambda u: 1.2 * jnp.exp(-0.5 * u**2))"),
    Line("stax.Gelu", "mlp(stax.Gelu())", 'mlp("gelu")'),
    Line("stax.Hermite", note='`rule("hermite", degree=3)` at unit variance; theirs is exact only there'),
    Line("stax.LeakyRelu", "mlp(stax.LeakyRelu(0.2))", 'mlp(rule("leaky_relu", slope=0.2))'),
    Line("stax.Monomial", "mlp(stax.Monomial(3))", 'mlp(rule("monomial", degree=3))'),
    Line("stax.Polynomial", "mlp(stax.Polynomial([1.0, -1.0, 0.5]))", 'mlp(rule("polynomial", coefficients=(1.0, -1.0, 0.5)))'),
    Line("stax.Rbf", "mlp(stax.Rbf(0.7))", 'mlp(rule("rbf", gamma=0.7))'),
    Line("stax.RectifiedMonomial", "mlp(stax.RectifiedMonomial(2))", 'mlp(rule("rectified_monomial", order=2))',
         "orders 0, 1, 2; higher ones by any function"),
    Line("stax.Relu", "mlp(stax.Relu())", 'mlp("relu")'),
    Line("stax.Sigmoid_like", "mlp(stax.Sigmoid_like())", "mlp(lambda u: 0.5 * jax.scipy.special.erf(u / 2.4020563531719796) + 0.5)",
         "an erf in place of the sigmoid; the sigmoid itself is `\"sigmoid\"`"),
    Line("stax.Sign", "mlp(stax.Sign())", 'mlp("sign")'),
    Line("stax.Sin", "mlp(stax.Sin(1.2, 0.7, 0.3))", "mlp(lambda u: 1.2 * jnp.sin(0.7 * u + 0.3))"),
]  # fmt: skip

LAYERS = [
    Line("stax.Dense", "stax.serial(D(8), stax.Relu(), D(1))[2](x1, x2, ('nngp', 'ntk'))",
         "cnn(lambda x: D(1)(nn.relu(D(8)(x))), x1, x2)",
         "initializers carry the scales: `init` above; or `ntk_jax.Dense(m, W_std, b_std)`"),
    Line("stax.Conv", "cnn(C(8, (3, 3)), stax.Relu(), stax.Flatten(), D(1))",
         "cnn(lambda x: D(1)(flat(nn.relu(C(8, (3, 3))(x)))))"),
    Line("stax.ConvLocal", "cnn(stax.ConvLocal(8, (3, 3), W_std=1.3, b_std=0.2), stax.Relu(), stax.Flatten(), D(1))",
         "cnn(lambda x: D(1)(flat(nn.relu(nn.ConvLocal(8, (3, 3), padding='VALID', kernel_init=normal(1.3 / 18**0.5), bias_init=normal(0.2))(x)))))"),
    Line("stax.ConvTranspose", note="`nn.ConvTranspose`; theirs pads and flips otherwise, and only circular padding is exact"),
    Line("stax.AvgPool", "cnn(C(8, (3, 3)), stax.Relu(), stax.AvgPool((2, 2), (2, 2)), stax.Flatten(), D(1))",
         "cnn(lambda x: D(1)(flat(nn.avg_pool(nn.relu(C(8, (3, 3))(x)), (2, 2), (2, 2)))))"),
    Line("stax.SumPool", "cnn(C(8, (3, 3)), stax.Relu(), stax.SumPool((2, 2), (2, 2)), stax.Flatten(), D(1))",
         "cnn(lambda x: D(1)(flat(4 * nn.avg_pool(nn.relu(C(8, (3, 3))(x)), (2, 2), (2, 2)))))"),
    Line("stax.GlobalAvgPool", "cnn(C(8, (3, 3)), stax.Relu(), stax.GlobalAvgPool(), D(1))",
         "cnn(lambda x: D(1)(nn.relu(C(8, (3, 3))(x)).mean((1, 2))))"),
    Line("stax.GlobalSumPool", "cnn(C(8, (3, 3)), stax.Relu(), stax.GlobalSumPool(), D(1))",
         "cnn(lambda x: D(1)(nn.relu(C(8, (3, 3))(x)).sum((1, 2))))"),
    Line("stax.Flatten", "cnn(stax.Flatten(), D(8), stax.Relu(), D(1))", "cnn(lambda x: D(1)(nn.relu(D(8)(flat(x)))))"),
    Line("stax.LayerNorm", "cnn(C(8, (3, 3)), stax.LayerNorm(), stax.Relu(), stax.Flatten(), D(1))",
         "cnn(lambda x: D(1)(flat(nn.relu(nn.LayerNorm(epsilon=1e-12, use_bias=False, use_scale=False)(C(8, (3, 3))(x))))))"),
    Line("stax.Dropout", "cnn(stax.Flatten(), D(8), stax.Relu(), stax.Dropout(0.8, mode='test'), D(1))",
         "cnn(lambda x: D(1)(nn.Dropout(0.2, deterministic=True)(nn.relu(D(8)(flat(x))))))",
         "their rate is the share that is kept; in training, `infinite_width(..., dropout=\"expectation\")`"),
    Line("stax.Identity", "cnn(stax.Flatten(), D(8), stax.Identity(), D(1))", "cnn(lambda x: D(1)(D(8)(flat(x))))"),
    Line("stax.Index", "cnn(C(8, (3, 3)), stax.Relu(), stax.Index((slice(None), slice(1, 3))), stax.Flatten(), D(1))",
         "cnn(lambda x: D(1)(flat(nn.relu(C(8, (3, 3))(x))[:, 1:3])))"),
    Line("stax.Slice", note="Python's own slices"),
    Line("stax.DotGeneral", "cnn(C(8, (3, 3)), stax.Relu(), stax.DotGeneral(lhs=lower, dimension_numbers=(((1,), (1,)), ((), ()))), stax.Flatten(), D(1))",
         note="`jnp.einsum` with a fixed matrix: see `stax.Aggregate`"),
    Line("stax.Aggregate", "stax.serial(D(8), stax.Relu(), stax.Aggregate(aggregate_axis=1), stax.GlobalAvgPool(), D(1))[2]("
         "images[:, 0], others[:, 0], ('nngp', 'ntk'), pattern=(np.stack([lower] * 3), np.stack([lower] * 2)))",
         "cnn(lambda x: D(1)(jnp.einsum('np,ncp->ncp', jnp.ones((1, 1)), jnp.swapaxes(jnp.asarray(lower.T) @ nn.relu(D(8)(x)), 1, 2)).mean(2)), images[:, 0], others[:, 0])",
         "a product with the graph's matrix, which is fixed"),
    Line("stax.GlobalSelfAttention", note="`nn.MultiHeadDotProductAttention`: by `num_samples=`, or `1/width` scores exactly"),
    Line("stax.ImageResize", "cnn(C(8, (3, 3)), stax.Relu(), stax.ImageResize((-1, 3, 3, -1), 'linear'), stax.Flatten(), D(1))",
         "cnn(lambda x: D(1)(flat(jax.image.resize(nn.relu(C(8, (3, 3))(x)), (len(x), 3, 3, 8), 'linear'))))"),
    Line("stax.serial", "stax.serial(D(8), stax.Relu(), D(8), stax.Relu(), D(1))[2](x1, x2, ('nngp', 'ntk'))",
         "mlp_kernels(x1, x2, depth=2, **scales)", "a Flax model calls its layers"),
    Line("stax.repeat", "stax.repeat(stax.serial(D(8), stax.Relu()), 2)[2](x1, x2, 'nngp')",
         note="`depth=`, or a Python loop"),
    Line("stax.parallel", "stax.serial(stax.FanOut(2), stax.parallel(D(8), stax.serial(D(8), stax.Relu(), D(8))), stax.FanInSum(), stax.Relu(), D(1))[2](x1, x2, ('nngp', 'ntk'))",
         "cnn(lambda x: D(1)(nn.relu(D(8)(x) + D(8)(nn.relu(D(8)(x))))), x1, x2)"),
    Line("stax.FanOut", note="a variable that is used twice"),
    Line("stax.FanInSum", "stax.serial(D(8), stax.FanOut(2), stax.parallel(stax.Identity(), stax.serial(stax.Relu(), D(8))), stax.FanInSum(), stax.Relu(), D(1))[2](x1, x2, ('nngp', 'ntk'))",
         "cnn(lambda x: (lambda h: D(1)(nn.relu(h + D(8)(nn.relu(h)))))(D(8)(x)), x1, x2)"),
    Line("stax.FanInConcat", "stax.serial(D(8), stax.FanOut(2), stax.parallel(stax.Relu(), stax.Erf()), stax.FanInConcat(-1), D(1))[2](x1, x2, ('nngp', 'ntk'))",
         "cnn(lambda x: D(1)(jnp.concatenate([nn.relu(D(8)(x)), jax.scipy.special.erf(D(8)(x))], -1)), x1, x2)",
         note="here of independent branches; of one branch they are correlated unit by unit, which theirs leaves out"),
    Line("stax.FanInProd", "stax.serial(stax.FanOut(2), stax.parallel(D(8), stax.serial(D(8), stax.Relu())), stax.FanInProd(), D(1))[2](x1, x2, ('nngp', 'ntk'))",
         "cnn(lambda x: D(1)(D(8)(x) * nn.relu(D(8)(x))), x1, x2)"),
    Line("stax.Padding", note="strings, as Flax takes them"),
    Line("stax.AggregateImplementation", note="none: one implementation"),
    Line("stax.AttentionMechanism", note="written in the model"),
    Line("stax.PositionalEmbedding", note="written in the model"),
    Line("stax.layer", note="none: a Flax model needs no wrapping"),
    Line("stax.requires", note="none: what has no limit is refused with its line"),
    Line("stax.supports_masking", note="none: masks are written in the model"),
    Line("stax.unmask_fn", note="none"),
    Line("stax.MaskedArray", note="none"),
    Line("stax.Bool", note="none: internal"),
    Line("stax.Diagonal", note="none: internal"),
]  # fmt: skip

SECTIONS = {"Functions": FUNCTIONS, "Activations": ELEMENTWISE, "Layers and models": LAYERS}
LINES = [line for lines in SECTIONS.values() for line in lines]
VALUES = [line for line in LINES if line.theirs and line.ours]
