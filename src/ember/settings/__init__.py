"""The worker's settings: `fields.py` has them all, `values.py` and `forms.py` check them, `sources.py` reads them."""

from ember.settings.fields import Settings, variable_names
from ember.settings.sources import SettingsError, load_arguments, load_settings, variables, warn_unused

__all__ = ["Settings", "SettingsError", "load_arguments", "load_settings", "variable_names", "variables", "warn_unused"]
