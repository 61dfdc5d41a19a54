"""The pictures of the README, moving and still, from the library: `python docs/gallery.py [--quick]
[--out DIR]`.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import ntk_jax
from ntk_jax import plots

X_FIT, Y_FIT = (
    np.array([-2.0, -1.2, -0.2, 0.4, 1.3, 2.1]),
    np.array([0.3, -0.8, 0.2, 0.9, -0.5, 0.6]),
)
TWO_X, TWO_Y = np.array([[-3.0], [0.5]]), np.array([[2.0], [-1.0]])


def frames(num_steps, num_frames):
    """Step 0 and later steps in equal ratios."""
    return np.unique([0, *np.round(np.geomspace(1, num_steps, num_frames)).astype(int)])


def hundred_networks(quick):
    """An ensemble in training, with the mean and the spread that the kernels predict."""
    width, num_networks, num_steps = (32, 4, 20) if quick else (128, 100, 500)
    x, y, grid = X_FIT[:, None], Y_FIT[:, None], np.linspace(-3, 3, 90)[:, None]
    scales = {"activation": "erf", "W_std": (2.0, 1.5, 1.5), "b_std": (1.0, 0.5, 0.0)}
    model = ntk_jax.MLP((width, width), **scales)

    def kernel(x1, x2=None):
        return ntk_jax.mlp_kernels(x1, x2, depth=2, **scales)

    k = kernel(x)
    learning_rate = 0.2 * float(ntk_jax.max_learning_rate(ntk_jax.diagonalize(k.ntk)))
    history = ntk_jax.train_ensemble(
        lambda key: model.init(key, x)["params"],
        lambda p, a: model.apply({"params": p}, a),
        x,
        y,
        key=jax.random.key(0),
        num_networks=num_networks,
        optimizer=optax.sgd(learning_rate),
        num_steps=num_steps,
        record_every=frames(num_steps, 30).tolist(),
        x_test=grid,
        progress=False,
    )
    t = learning_rate * history.steps
    theory = ntk_jax.ensemble_mse(k, kernel(grid, x), jnp.diagonal(kernel(grid).nngp), y, t)
    std = jnp.sqrt(jnp.maximum(theory.covariance, 0))
    outputs = np.moveaxis(history.fx_test[..., 0], 0, 1)
    return plots.animate_networks(
        grid,
        outputs,
        t,
        data=(x, y),
        mean=theory.mean[..., 0],
        std=std.reshape(theory.mean.shape[:2]),
    )


def hidden_weights(quick):
    """The matrix between two hidden layers, at three widths, from PyTorch's initialization."""
    num_steps, tracks = 10 if quick else 1000, {}
    steps = frames(num_steps, 20 if quick else 40)
    for width in (10,) if quick else (10, 100, 1000):
        model = ntk_jax.MLP((width, width), parameterization="standard")
        apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(0), TWO_X))
        history = ntk_jax.train(
            apply_fn,
            ntk_jax.torch_init(params, jax.random.key(5)),
            TWO_X,
            TWO_Y,
            optimizer=optax.sgd(2e-3),
            num_steps=num_steps,
            record_every=steps.tolist(),
            record=lambda p: p["Dense_1"]["kernel"],
            progress=False,
        )
        tracks[f"width {width}"] = history.recorded
    return plots.animate_weights(tracks, steps)


def function_space(quick):
    """Two outputs on their way to their targets, for a wide and a narrow network."""
    num_steps, paths, kernels = 10 if quick else 400, {}, {}
    steps = frames(num_steps, 45)
    x = np.array([[1.0, 0.2], [0.6, 0.8]])
    for name, width, seed in (("width 4096", 64 if quick else 4096, 1), ("width 6", 6, 9)):
        model = ntk_jax.MLP((width,), W_std=2**0.5)
        apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(seed), x))
        history = ntk_jax.train(
            apply_fn,
            params,
            x,
            np.array([[3.0], [-2.5]]),
            optimizer=optax.sgd(0.05),
            num_steps=num_steps,
            record_every=steps.tolist(),
            record=lambda p, f=apply_fn: ntk_jax.empirical_ntk(f, p, x),
            record_outputs=True,
            progress=False,
        )
        paths[name], kernels[name] = history.fx_train[..., 0], history.recorded
    return plots.animate_function_space(paths, kernels, [3.0, -2.5], 0.05 * steps)


def lazy_to_rich(quick):
    """One network with its output scaled up and down: small scales must learn features to fit,
    large ones need not.
    """
    width, num_steps, outputs, linear = (16, 10, {}, {}) if quick else (200, 20000, {}, {})
    x, y, grid = X_FIT[:, None], Y_FIT[:, None], np.linspace(-3, 3, 121)[:, None]
    steps = frames(num_steps, 45)
    model = ntk_jax.MLP((width,), W_std=(1.0, 2**0.5), b_std=(1.0, None))
    apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(3), x))
    centered = ntk_jax.zero_output(apply_fn, params)
    modes = ntk_jax.diagonalize(ntk_jax.empirical_ntk(centered, params, x))
    k_test_train = ntk_jax.empirical_ntk(centered, params, grid, x)
    rate = 0.1 * float(ntk_jax.max_learning_rate(modes))
    lazy = ntk_jax.gradient_descent_mse(modes, y, steps, rate, k_test_train=k_test_train)
    for alpha in (1.0,) if quick else (0.1, 1.0, 10.0):
        history = ntk_jax.train(
            ntk_jax.scale_output(centered, alpha),
            params,
            x,
            y,
            optimizer=optax.sgd(rate / alpha**2),
            num_steps=num_steps,
            record_every=steps.tolist(),
            x_test=grid,
            record_outputs=True,
            progress=False,
        )
        name = rf"$\alpha$ = {alpha:g} (moved {100 * history.relative_change[-1]:.3g} %)"
        outputs[name], linear[name] = history.fx_test[..., 0], lazy.test[..., 0]
    return plots.animate_output_scale(grid, outputs, rate * steps, data=(x, y), linear=linear)


def phase(quick):
    """Order, chaos, and the line between, of deep erf networks."""
    coarse = {"W_std": np.linspace(0.5, 3, 4), "b_std": np.linspace(0, 0.6, 3)} if quick else {}
    return plots.plot_phase_diagram("erf", **coarse).figure


PICTURES = (hundred_networks, hidden_weights, function_space, lazy_to_rich)
STILLS = (phase,)


def main(argv=None):
    """Make all pictures, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="pictures to make; all if none is named")
    parser.add_argument(
        "--quick", action="store_true", help="tiny networks: seconds, to see that it runs"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES + STILLS:
        if not args.names or picture.__name__ in args.names:
            if picture in STILLS:
                picture(args.quick).savefig(args.out / f"{picture.__name__}.png", dpi=110)
            else:
                plots.save_gif(picture(args.quick), args.out / f"{picture.__name__}.gif")
            plots.plt.close("all")


if __name__ == "__main__":
    matplotlib.use("Agg")
    jax.config.update("jax_enable_x64", True)
    main()
