"""Sparse regression by fastrfm and by other packages, each as a path of coefficients, or with its own choice.

A path walks 100 steps down, from where nothing is selected to a hundredth of that (a thousandth without noise), each
from the one before, and ends beyond `MOST` nonzero coefficients: the same for all. Without the extra ``bench`` only
fastrfm and what is installed remain.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from fastrfm import SparseRegressionCV, sparse_regression_path

MOST = 250
N_STEPS, CHUNK = 100, 10
POWERS = {"α = ¼": 0.25, "α = ⅓": 1 / 3, "α = ⅜": 0.375, "α = ½": 0.5, "α = 1": 1.0}
Path = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _ours(power: float) -> Path:
    def path(X: np.ndarray, y: np.ndarray, least: float) -> np.ndarray:
        return sparse_regression_path(
            X, y, agop_power=power, least_share=least, fit_intercept=False, tol=1e-5, max_features=MOST, n_threads=1
        )[1]

    return path


def _grid(X: np.ndarray, y: np.ndarray, least: float) -> np.ndarray:
    return np.asarray(np.abs(X.T @ y).max() / len(y) * np.geomspace(1.0, least, N_STEPS))


def _by_chunks(solver: Callable[..., Any]) -> Path:
    """Return the path of a function like ``lasso_path``, a few steps at a time, so that it can end."""

    def path(X: np.ndarray, y: np.ndarray, least: float) -> np.ndarray:
        steps, found, start = _grid(X, y, least), [], None
        for at in range(0, N_STEPS, CHUNK):
            coefs = solver(X, y, alphas=steps[at : at + CHUNK], coef_init=start, tol=1e-5, max_iter=10_000)[1]
            found.append(coefs.T)
            start = np.ascontiguousarray(coefs[:, -1])
            if np.count_nonzero(start) > MOST:
                break
        return np.concatenate(found)

    return path


def _skglm(make_penalty: Callable[[], Any]) -> Path:
    def path(X: np.ndarray, y: np.ndarray, least: float) -> np.ndarray:
        from skglm.datafits import Quadratic
        from skglm.solvers import AndersonCD
        from skglm.utils.jit_compilation import compiled_clone

        solver = AndersonCD(fit_intercept=False, warm_start=True, ws_strategy="fixpoint", tol=1e-5)
        datafit, penalty = compiled_clone(Quadratic()), compiled_clone(make_penalty())
        datafit.initialize(X, y)
        coef, found = np.zeros(X.shape[1]), []
        for step in _grid(X, y, least):
            penalty.alpha = step
            coef = solver.solve(X, y, datafit, penalty, w_init=coef.copy(), Xw_init=X @ coef)[0]
            found.append(coef.copy())
            if np.count_nonzero(coef) > MOST:
                break
        return np.array(found)

    return path


def _omp(X: np.ndarray, y: np.ndarray, least: float) -> np.ndarray:
    from sklearn.linear_model import orthogonal_mp

    return np.asarray(orthogonal_mp(X, y, n_nonzero_coefs=50, return_path=True)).T


def _abess(X: np.ndarray, y: np.ndarray, least: float) -> np.ndarray:
    from abess import LinearRegression

    return np.asarray(LinearRegression(support_size=range(51), fit_intercept=False).fit(X, y).coef_)[None]


def paths() -> dict[str, Path]:
    """Return every method that is installed."""
    found: dict[str, Path] = {f"fastrfm {name}": _ours(power) for name, power in POWERS.items()}
    if _has("sklearn"):
        from sklearn.linear_model import lasso_path

        found |= {"lasso, scikit-learn": _by_chunks(lasso_path), "OMP, scikit-learn": _omp}
    if _has("celer"):
        from celer.homotopy import celer_path

        found["lasso, celer"] = _by_chunks(lambda X, y, **more: celer_path(X, y, "lasso", **more))
    if _has("skglm"):
        from skglm.penalties import L0_5, SCAD, MCPenalty

        found["MCP, skglm"] = _skglm(lambda: MCPenalty(1.0, 3.0))
        found["SCAD, skglm"] = _skglm(lambda: SCAD(1.0, 3.7))
        found["ℓ½, skglm"] = _skglm(lambda: L0_5(1.0))
    if _has("abess"):
        found["abess, its own choice"] = _abess
    return found


def choosers() -> dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]]:
    """Return methods that choose their own settings by five folds: (coefficients, intercept) from X and y."""

    def ours(one_standard_error: bool) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]:
        def fit(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
            model = SparseRegressionCV(one_standard_error=one_standard_error, n_threads=1).fit(X, y)
            return model.coef_, model.intercept_

        return fit

    found = {"fastrfm": ours(False), "fastrfm, one standard error": ours(True)}

    def of(make: Callable[[], Any]) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]:
        def fit(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
            model = make().fit(X, y)
            return np.ravel(model.coef_), float(np.ravel(model.intercept_)[0])

        return fit

    if _has("sklearn"):
        from sklearn.linear_model import LassoCV, OrthogonalMatchingPursuitCV

        found["lasso, scikit-learn"] = of(lambda: LassoCV(cv=5, max_iter=20_000))
        found["OMP, scikit-learn"] = of(lambda: OrthogonalMatchingPursuitCV(cv=5))
    if _has("celer"):
        import celer

        found["lasso, celer"] = of(lambda: celer.LassoCV(cv=5))
    if _has("skglm"):
        found["MCP, skglm"] = _mcp_by_folds
    if _has("abess"):
        from abess import LinearRegression

        found["abess"] = of(lambda: LinearRegression(support_size=range(51), cv=5))
    return found


def _mcp_by_folds(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Return MCP at the step of least error over five folds; skglm brings no cross-validation for it."""
    from skglm.penalties import MCPenalty

    path = _skglm(lambda: MCPenalty(1.0, 3.0))
    folds = np.array_split(np.random.default_rng(0).permutation(len(y)), 5)
    errors = np.zeros((5, N_STEPS))
    for place, test in enumerate(folds):
        train = np.setdiff1d(np.arange(len(y)), test)
        means, mean = X[train].mean(axis=0), y[train].mean()
        coefs = path(np.asfortranarray(X[train] - means), y[train] - mean, 1e-3)
        misfit = ((y[test] - mean)[:, None] - (X[test] - means) @ coefs.T) ** 2
        errors[place] = np.inf
        errors[place, : len(coefs)] = misfit.mean(axis=0)
    coefs = path(np.asfortranarray(X - X.mean(axis=0)), y - y.mean(), 1e-3)
    chosen = coefs[min(int(errors.mean(axis=0).argmin()), len(coefs) - 1)]
    return chosen, float(y.mean() - X.mean(axis=0) @ chosen)


def versions() -> dict[str, str]:
    """Return what is installed."""
    names = {"scikit-learn": "sklearn", "celer": "celer", "skglm": "skglm", "abess": "abess"}
    return {name: metadata.version(name) for name, module in names.items() if _has(module)}


def quietly(work: Callable[..., Any], *given: Any) -> Any:
    """Return what `work` returns, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work(*given)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
