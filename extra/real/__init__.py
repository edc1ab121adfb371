"""FusionRoute with any model of transformers. See modeling.py."""

import sys

try:
    from extra.real.modeling import FusionRoute, FusionRouteConfig
except ModuleNotFoundError as e:
    print(f"error: {e.name} is missing: pip install -r requirements-real.txt", file=sys.stderr)
    sys.exit(2)

__all__ = ["FusionRoute", "FusionRouteConfig"]
