"""Every channel rule on small models."""
