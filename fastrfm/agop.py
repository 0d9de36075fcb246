"""From the AGOP's eigenvalues to the weights of features, M = φ(G), and the feature Gram K = M² of every row system.

``agop_power`` is α, the power that makes features M = G^α; K is the square of M. At α = ½ K is a shifted copy of G
and at α = 1 one matrix product: no spectral decomposition. Other powers need the eigenvalues of G, and so does a
function φ of the user's that stands in place of the power (arXiv 2401.04553 has lin-RFM with such a φ).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrfm.arrays import HOST, HostArrays
from fastrfm.errors import InputError
from fastrfm.kernels.gram import accumulate_gram, shift_and_mirror
from fastrfm.options import Power, name_of

# Of the norm: where functions in place of a power are looked at.
_GRID, _WIDE_GRID = np.geomspace(1e-8, 1.0, 385), np.geomspace(1e-8, 1e3, 529)
_LEAST_WEIGHT = 1e-75  # of φ at the size of the data, and one over the largest
_LARGEST_EXPONENT = 600.0  # e to this power is still a float64


def feature_weights(eigenvalues: np.ndarray, agop_power: Power) -> np.ndarray:
    """Return φ of the AGOP's eigenvalues, (n,) float64 of at least 0: features become M x with M = φ(G), K = φ(G)².

    Parameters
    ----------
    eigenvalues : (n,) float64
        Of G + ε² I, above 0; the data's unit squared.
    agop_power : float or callable
        φ is this power, or this function of such an array.

    Raises
    ------
    InputError
        If the function does not return as many finite numbers of at least 0, not all 0.
    """
    if not callable(agop_power):
        return np.asarray(eigenvalues**agop_power)
    given = np.array(eigenvalues, dtype=np.float64)  # a copy: what a function does to it is its own affair
    try:
        found = np.asarray(agop_power(given))
        if found.dtype.kind not in "biuf":
            raise TypeError(f"it returns {found.dtype}, not real numbers")
        weights = found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"agop_power: {name_of(agop_power)} fails on an array of eigenvalues: {error}") from error
    if weights.shape != eigenvalues.shape:
        raise InputError(
            f"agop_power: {name_of(agop_power)} must return a weight for each of {eigenvalues.shape} eigenvalues, got "
            f"shape {weights.shape}"
        )
    if not np.isfinite(weights).all() or (weights < 0.0).any() or not weights.any():
        raise InputError(
            f"agop_power: {name_of(agop_power)} must return finite weights of at least 0, not all 0; for eigenvalues "
            f"from {eigenvalues.min():.3g} to {eigenvalues.max():.3g} it returned {weights.min()} to {weights.max()}"
        )
    return weights


def gram_unit(agop_power: Power, unit: float) -> float:
    """Return K of one direction of singular value `unit`: what K and λ are divided by where `unit` is given."""
    if not callable(agop_power):
        return float(unit ** (4.0 * agop_power))
    weight = float(feature_weights(np.array([unit * unit]), agop_power)[0])
    if not _LEAST_WEIGHT < weight < 1.0 / _LEAST_WEIGHT:
        raise InputError(
            f"agop_power: {name_of(agop_power)} returns {weight:.3g} for an eigenvalue of {unit * unit:.3g}, whose "
            "powers leave the range of float64: multiply the function by a constant"
        )
    return weight**2


def least_smoothing(agop_power: Power, norm: float, share: float) -> float:
    """Return the smallest ε at which K of a lost direction is at least `share` of that of a singular value `norm`.

    For a function it is looked for on a grid: from there up it holds.
    """
    if not callable(agop_power):
        return float(norm * share ** (1.0 / (4.0 * agop_power)))
    sizes = norm * _GRID
    weights = feature_weights(sizes**2, agop_power) ** 2
    fails = np.flatnonzero(weights < share * weights[-1])
    return float(sizes[min(fails[-1] + 1, sizes.size - 1)]) if fails.size else float(sizes[0])


def size_of_gram(agop_power: Power, value: float, norm: float) -> float:
    """Return the singular value at which K is `value`; for a function the smallest of a grid up to 1e3 norms."""
    if not callable(agop_power):
        return math.exp(min(math.log(value) / (4.0 * agop_power), _LARGEST_EXPONENT))
    for grid in (_GRID, _WIDE_GRID):  # far above the norm a function may overflow: only where it must be
        sizes = norm * grid
        reaches = np.flatnonzero(feature_weights(sizes**2, agop_power) ** 2 >= value)
        if reaches.size:
            return float(sizes[reaches[0]])
    return float(sizes[-1])


def penalty(singular_values: np.ndarray, agop_power: Power, smoothing: float) -> float:
    """Return ψ, the penalty that lin-RFM with these weights minimises: Σ_k ∫ t / φ(t² + ε²)² dt from 0 to σ_k.

    Parameters
    ----------
    singular_values : (k,) array_like of float
        Of a matrix; of a sparse vector the sizes of its coefficients.
    agop_power : float or callable
        At a power α it is Σ [(σ² + ε²)^(p/2) − ε^p] / p with p = 2 − 4α, at p = 0 ½ Σ log(1 + σ²/ε²).
    smoothing : float
        ε > 0, in the unit of the singular values.

    Notes
    -----
    Without smoothing and for φ that falls to 0 the integral may be infinite. Where K⁻¹ = φ(·)⁻² does not rise, that is
    where φ does not fall, ψ is concave in σ² and no iteration raises ½‖P_Ω(X − Y)‖² + λ ψ(X) (own derivation,
    ``docs/theory.md``).

    Examples
    --------
    >>> import numpy as np
    >>> round(penalty([3.0, 4.0], 0.25, 1e-9), 6)  # the nuclear norm
    7.0
    >>> round(penalty([3.0, 4.0], lambda g: g**0.25, 1e-9), 6)
    7.0
    """
    sigma = np.atleast_1d(np.asarray(singular_values, dtype=np.float64))
    if not callable(agop_power):
        power = 2.0 - 4.0 * agop_power
        return float(_penalties(sigma / smoothing, power).sum() * smoothing**power)
    from scipy.integrate import quad

    def slope(log_ratio: float) -> float:  # t = ε sinh(s): decades of σ/ε are covered evenly
        t = smoothing * math.sinh(log_ratio)
        weight = feature_weights(np.array([t * t + smoothing * smoothing]), agop_power)[0]
        return float(t / weight**2 * smoothing * math.cosh(log_ratio))

    ends = [math.asinh(size / smoothing) for size in sigma if size > 0.0]
    return float(sum(quad(slope, 0.0, end, epsabs=0.0, limit=400)[0] for end in ends))


def _penalties(ratios: np.ndarray, power: float) -> np.ndarray:
    """Return [(1 + t²)^(p/2) − 1] / p for every ratio t, or at p = 0 its limit, without cancellation."""
    ratios = np.abs(ratios)
    small = np.minimum(ratios, 1.0)
    # ½ log(1 + t²) in two pieces: no square overflows, and none is lost beside the one.
    logs = 0.5 * np.log1p(small**2) + np.where(ratios > 1.0, np.log(np.hypot(1.0, ratios) / np.sqrt(2.0)), 0.0)
    return np.asarray(logs if abs(power) < 1e-12 else np.expm1(power * logs) / power)


def feature_gram(
    gram: Any, agop_power: Power, smoothing: float, *, unit: float | None = None, arrays: HostArrays = HOST
) -> Any:
    """Return K = (G + smoothing² I)^(2 agop_power), or φ(G + smoothing² I)², over its `unit`, (n, n) float64.

    Parameters
    ----------
    gram : (n, n) float64, C order
        G; only its lower triangle is read, and it is left as it is.
    agop_power : float or callable
        Above 0; or φ, see :func:`feature_weights`.
    smoothing : float
        ε, in the unit of the data.
    unit : float or None
        Above 0, in the unit of the data: K is divided by :func:`gram_unit` of it. With a unit near the size of the
        estimate no power overflows; the ridge that goes with K is then λ / :func:`gram_unit`.
    arrays : HostArrays
        Where G is, and K will be. Eigenvalues are LAPACK's: for powers other than ½ and 1, G comes to the processor.
    """
    size = 1.0 if unit is None else unit
    scale, shift = 1.0 / (size * size), (smoothing / size) ** 2
    if agop_power in (0.5, 1.0):
        out = arrays.empty(*gram.shape)
        arrays.twin(shift_and_mirror)(gram, scale, shift, out)
        return out if agop_power == 0.5 else _self_product(out, arrays)
    eigenvalues, vectors = np.linalg.eigh(arrays.fetch(gram), UPLO="L")
    # Rounding can push the smallest eigenvalues of a Gram below zero; the true ones are not.
    kept = np.maximum(eigenvalues, 0.0)
    if callable(agop_power):
        powers = feature_weights(kept + smoothing**2, agop_power) ** 2
        powers /= 1.0 if unit is None else gram_unit(agop_power, unit)
    else:
        powers = (kept * scale + shift) ** (2.0 * agop_power)
    return _self_product(arrays.put(np.ascontiguousarray((vectors * np.sqrt(powers)).T)), arrays)


def _self_product(rows: Any, arrays: HostArrays) -> Any:
    """Return rowsᵀ rows, (n, n): half the work of a general product, and exactly symmetric."""
    product = arrays.zeros(rows.shape[1], rows.shape[1])
    arrays.twin(accumulate_gram)(rows, product)
    arrays.twin(shift_and_mirror)(product, 1.0, 0.0, product)
    return product
