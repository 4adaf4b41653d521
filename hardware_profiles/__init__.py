"""Hardware profiles: one TOML file a device."""
