"""From the AGOP Gram to the feature Gram K = (G + ε² I)^(2α) that every row system uses.

``agop_power`` is α, the power that makes features M = G^α; K is the square of M. At α = ½ K is a shifted copy of G
and at α = 1 one matrix product: no spectral decomposition. Other powers need the eigenvalues of G.
"""

from __future__ import annotations

import numpy as np

from fastrfm.kernels.gram import accumulate_gram, shift_and_mirror


def feature_weights(eigenvalues: np.ndarray, agop_power: float) -> np.ndarray:
    """Return φ of the AGOP's eigenvalues, (n,) float64 of at least 0: features become M x with M = φ(G), K = φ(G)².

    Parameters
    ----------
    eigenvalues : (n,) float64
        Of G + ε² I, above 0.
    agop_power : float
        φ is this power.
    """
    return np.asarray(eigenvalues**agop_power)


def feature_gram(gram: np.ndarray, agop_power: float, smoothing: float, *, unit: float = 1.0) -> np.ndarray:
    """Return K = ((G + smoothing² I) / unit²)^(2 agop_power), symmetric (n, n) float64.

    Parameters
    ----------
    gram : (n, n) float64, C order
        G; only its lower triangle is read, and it is left as it is.
    agop_power : float
        Above 0.
    smoothing : float
        ε, in the unit of the data.
    unit : float
        Above 0, in the unit of the data. With a unit near the size of the estimate no power overflows; the ridge that
        goes with K is then λ / unit^(4 agop_power).
    """
    scale, shift = 1.0 / (unit * unit), (smoothing / unit) ** 2
    out = np.empty_like(gram)
    if agop_power in (0.5, 1.0):
        shift_and_mirror(gram, scale, shift, out)
        return out if agop_power == 0.5 else _self_product(out)
    eigenvalues, vectors = np.linalg.eigh(gram, UPLO="L")
    # Rounding can push the smallest eigenvalues of a Gram below zero; the true ones are not.
    powers = (np.maximum(eigenvalues, 0.0) * scale + shift) ** (2.0 * agop_power)
    return _self_product(np.ascontiguousarray((vectors * np.sqrt(powers)).T))


def _self_product(rows: np.ndarray) -> np.ndarray:
    """Return rowsᵀ rows, (n, n): half the work of a general product, and exactly symmetric."""
    product = np.zeros((rows.shape[1], rows.shape[1]))
    accumulate_gram(rows, product)
    shift_and_mirror(product, 1.0, 0.0, product)
    return product
