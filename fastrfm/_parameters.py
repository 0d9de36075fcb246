"""Parameters of an estimator by name, as scikit-learn asks for them: a base of transformers and regressors."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from fastrfm.errors import InputError


class Parameters:
    """A base class for estimators; subclasses name their parameters and the defaults in ``_defaults``."""

    _defaults: ClassVar[dict[str, Any]]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's parameters by name; `deep` is accepted for scikit-learn's sake."""
        return {name: getattr(self, name) for name in self._defaults}

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name and return the estimator itself.

        Raises
        ------
        InputError
            If a name is unknown; nothing is then changed.
        """
        unknown = [name for name in params if name not in self._defaults]
        if unknown:
            raise InputError(f"no parameter is called {unknown[0]!r}: use one of {', '.join(self._defaults)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if not self._is_default(name)]
        return f"{type(self).__name__}({', '.join(changed)})"

    def _is_default(self, name: str) -> bool:
        value, default = getattr(self, name), self._defaults[name]
        return value is default or (type(value) is type(default) and value == default)
