"""What estimators of layers share: which configuration their options make."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from fastsae.base import Array, Autoencoder, Network
from fastsae.config import Config, Layer
from fastsae.jacobian import jacobian_norm

# Options whose names the estimator shares with the configuration; the defaults are its too.
_MODEL_OPTIONS = tuple(field.name for field in dataclasses.fields(Config))


class Layered(Network[Config]):
    """An estimator that says by `_layers` what it is made of.

    Options with the name of a field of :class:`fastsae.Config` have its meaning.
    """

    # Details

    def _layers(self, n_features: int) -> tuple[Layer, ...]:
        """The layers for rows of this width; ValueError if an option that they need has no meaning."""
        raise NotImplementedError

    def _model_options(self, n_features: int) -> dict[str, Any]:
        """Options of the model that are not attributes of the same name."""
        return {}

    def _config(self, n_features: int) -> Config:
        options = {name: getattr(self, name) for name in _MODEL_OPTIONS if hasattr(self, name)}
        options["optimizer"] = Config.optimizer if self.solver == "lbfgs" else self.solver
        config = Config(
            **{**options, "n_features": n_features, "layers": self._layers(n_features)}
            | self._model_options(n_features)
        )
        config.validate()
        return config

    @classmethod
    def _config_from_dict(cls, values: Any) -> Config:
        """The inverse of its configuration's `to_dict`."""
        return Config.from_dict(values)

    @classmethod
    def _names_of_options(cls, config: Config) -> dict[str, Any]:
        """The options of `config` under the estimator's names."""
        options = {name: getattr(config, name) for name in _MODEL_OPTIONS if name != "layers"}
        options["solver"] = options.pop("optimizer")
        for i, layer in enumerate(config.layers):
            options |= {f"layers[{i}].{name}": value for name, value in dataclasses.asdict(layer).items()}
        return options


class LayeredAutoencoder(Layered, Autoencoder[Config]):
    """An autoencoder of layers."""

    @property
    def components_(self) -> Array:
        """W1, one filter for each unit of the first layer, shape (n_units, n_features_in_)."""
        return self._fitted_engine("components_").get("W1")

    def jacobian_norm(self, X: Any) -> NDArray[np.float64]:
        """How much the code moves with its input: ``|dh/dx|`` of each row, shape (n_rows,), the Frobenius norm.

        Exact for an encoder of any number of dense layers, and computed in float64 on the host. Its square is what the
        contractive penalty is the mean of. ValueError if a layer of the encoder is not dense. With `scale` the input
        is the scaled row.
        """
        check_is_fitted(self)
        config, parameters = self._engine.config, self._engine.get_parameters()
        blocks = self._blocks_of(self._check(X))
        return np.concatenate([jacobian_norm(config, parameters, block) for _, block in blocks])
