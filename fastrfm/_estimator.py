"""What makes a class a scikit-learn transformer, with or without scikit-learn installed: a base for ``estimators``.

Names of output columns, ``set_output`` and tags, by scikit-learn's protocols and not by its
classes: nothing here imports it, unless it asks for tags. pandas and polars are imported where a frame was asked for.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Self

import numpy as np

from fastrfm._parameters import Parameters
from fastrfm.errors import InputError, MissingPackageError, NotFittedError

CONTAINERS = ("default", "pandas", "polars")


class Transformer(Parameters):
    """A base class for estimators that complete tables.

    Subclasses name their parameters and the defaults in ``_defaults``, and set ``result_``, ``n_features_in_`` and,
    where the table names its columns, ``feature_names_in_`` in ``fit``.
    """

    n_features_in_: int

    # --- names and frames -------------------------------------------------------------------------------------

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns that ``transform`` gives: those of the fitted table, or x0, x1, …

        Raises
        ------
        NotFittedError
            Before ``fit``.
        InputError
            If `input_features` are given and are not the fitted table's.
        """
        self._check_fitted("get_feature_names_out")
        fitted = getattr(self, "feature_names_in_", None)
        if input_features is None:
            default = [f"x{j}" for j in range(self.n_features_in_)]
            return np.array(default, dtype=object) if fitted is None else fitted.copy()
        names = np.array([str(name) for name in input_features], dtype=object)
        if names.size != self.n_features_in_:
            raise InputError(
                f"input_features should have length equal to the number of features, {self.n_features_in_}, "
                f"got {names.size}"
            )
        if fitted is not None and not np.array_equal(names, fitted):
            raise InputError("input_features is not equal to feature_names_in_, the fitted table's: leave it out")
        return names

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose what ``transform`` and ``fit_transform`` return, as scikit-learn's transformers do.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"} or None
            "default" is a numpy array, the others a data frame of that package. None changes nothing. Where nothing was
            chosen, ``sklearn.set_config(transform_output=...)`` counts if scikit-learn is in use.

        Returns
        -------
        The estimator itself.

        Raises
        ------
        InputError
            If `transform` is none of these.

        Notes
        -----
        Columns are called as :meth:`get_feature_names_out` says. Where pandas comes in and goes out the index stays,
        and so do column labels that are no strings, such as years. The choice is kept by ``sklearn.base.clone``.

        Examples
        --------
        >>> import pandas as pd
        >>> from fastrfm import MatrixCompletion
        >>> table = pd.DataFrame({"a": [1.0, 2.0, None, 4.0], "b": [2.0, 4.0, 6.0, 8.0]}, index=list("stuv"))
        >>> MatrixCompletion(rank=1).set_output(transform="pandas").fit_transform(table).loc["u"].round(4).to_dict()
        {'a': 3.0, 'b': 6.0}
        """
        if transform is None:
            return self
        _check_container(transform)
        # scikit-learn's clone copies the attribute of this name.
        self._sklearn_output_config = {**getattr(self, "_sklearn_output_config", {}), "transform": transform}
        return self

    def _container(self) -> str:
        chosen: str | None = getattr(self, "_sklearn_output_config", {}).get("transform")
        sklearn = sys.modules.get("sklearn")
        if chosen is None and sklearn is not None:
            chosen = sklearn.get_config().get("transform_output")
        return _check_container(chosen or "default")

    def _as_asked(self, array: np.ndarray, table: Any) -> Any:
        """Return the completed `table` in the container that was asked for."""
        container = self._container()
        if container == "default":
            return array
        package = _imported(container)
        if container == "polars":
            return package.DataFrame(array, schema=self.get_feature_names_out().tolist(), orient="row")
        is_frame = isinstance(table, package.DataFrame)
        is_named = is_frame and hasattr(self, "feature_names_in_")  # by labels that need not be str
        columns = table.columns if is_named else self.get_feature_names_out()
        return package.DataFrame(array, index=table.index if is_frame else None, columns=columns)

    # --- what scikit-learn asks -------------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "result_")

    def __sklearn_tags__(self) -> Any:
        # Only scikit-learn calls this, so the import cannot fail where it matters.
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64"]),
            input_tags=InputTags(sparse=True, allow_nan=True),
        )

    def _check_fitted(self, method: str) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"this {type(self).__name__} is not fitted: call fit first, then {method}")


def _check_container(name: str) -> str:
    if name not in CONTAINERS:
        raise InputError(f"the output must be one of {', '.join(CONTAINERS)}, got {name!r}")
    return name


def _imported(container: str) -> Any:
    """Return the package that makes a kind of frame."""
    try:
        return importlib.import_module(container)
    except ImportError:
        raise MissingPackageError(
            f'output as a {container} data frame needs {container}: install it, or use set_output(transform="default")'
        ) from None
