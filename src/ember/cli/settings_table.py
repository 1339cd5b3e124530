"""The table of all settings, as Markdown, for `ember settings` and docs/settings.md."""

from __future__ import annotations

from ember.flags import flag_names
from ember.settings import Settings, variable_names


def settings_table() -> str:
    """All settings as a Markdown table, in the order of settings/fields.py."""
    lines = ["| Variable | Also read | Flag | Default | Meaning |", "|---|---|---|---|---|"]
    for field, info in Settings.model_fields.items():
        name, *rest = variable_names(field)
        others = ", ".join(f"`{other}`" for other in rest)
        default = info.get_default(call_default_factory=True)
        shown = (
            "" if default in (None, [], {}) else f"`{str(default).lower() if default in (True, False) else default}`"
        )
        meaning = (info.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {others} | `{flag_names(field)[0]}` | {shown} | {meaning} |")
    return "\n".join(lines)
