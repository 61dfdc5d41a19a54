"""Functions f(K) of a symmetric matrix, with derivatives that hold where eigenvalues meet."""
