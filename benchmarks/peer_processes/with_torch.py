"""PyTorch's process: `torch.func` as in its neural tangent kernel tutorial, both of its ways."""

import torch
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from benchmarks.peer_processes.problems import examples
from benchmarks.peer_processes.worker import serve


class MLP(torch.nn.Module):
    """As `networks.MLP`."""

    def __init__(self, depth):
        super().__init__()
        self.depth = depth

    def forward(self, x, p):
        """(1, d) -> (1, outputs)."""
        for i in range(self.depth + 1):
            x = x @ p[f"Dense_{i}/kernel"] + p[f"Dense_{i}/bias"]
            x = torch.nn.functional.relu(x) if i < self.depth else x
        return x


class CNN(torch.nn.Module):
    """As `networks.CNN`: "SAME" padding of a stride of 2 is one row and column at the far end."""

    def forward(self, x, p):
        """(1, h, w, 3) -> (1, outputs)."""
        x = x.permute(0, 3, 1, 2)
        for i, stride in enumerate((1, 2, 2)):
            x = torch.nn.functional.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
            x = torch.nn.functional.relu(
                torch.nn.functional.conv2d(
                    x, p[f"Conv_{i}/kernel"].permute(3, 2, 0, 1), p[f"Conv_{i}/bias"], stride=stride
                )
            )
        return x.mean((2, 3)) @ p["Dense_0/kernel"] + p["Dense_0/bias"]


def make_case(problem, numbers, method):
    """The kernel averaged over outputs."""
    params = {path: torch.from_numpy(value) for path, value in numbers.items()}
    net, x = (
        MLP(problem.depth) if problem.kind == "mlp" else CNN(),
        torch.from_numpy(examples(problem)),
    )

    def single(params, x):
        return functional_call(net, {}, (x[None], params))[0]

    kernel = {"jacobian": _jacobian, "vector_products": _vector_products}[method]

    def call():
        with torch.no_grad():
            return kernel(single, params, x) / problem.outputs

    return call


def _jacobian(single, params, x):
    jacobian = vmap(jacrev(single), (None, 0))(params, x)
    flat = [leaf.flatten(2) for leaf in jacobian.values()]
    return torch.stack([torch.einsum("Naf,Maf->NM", leaf, leaf) for leaf in flat]).sum(0)


def _vector_products(single, params, x):
    def pair(x1, x2):
        out, pull = vjp(lambda p: single(p, x1), params)

        def product(v):
            return jvp(lambda p: single(p, x2), (params,), pull(v))[1]

        return torch.trace(vmap(product)(torch.eye(out.shape[0])))

    return vmap(vmap(pair, (None, 0)), (0, None))(x, x)


if __name__ == "__main__":
    serve(make_case)
