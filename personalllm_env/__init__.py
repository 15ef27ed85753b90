"""Interactive personalisation."""
