"""FusionRoute with any model of transformers. See modeling.py."""

from extra.real.modeling import FusionRoute, FusionRouteConfig

__all__ = ["FusionRoute", "FusionRouteConfig"]
